"""The table of stage b: what stands in it, and what it says where the trace has no pace."""

from dataclasses import replace

import pytest

from aerostat.replay_tables import draw_results
from aerostat.send_tables import draw_sending, siblings_in_words
from tests.unit.replay_results import make_results, make_strategy


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "no sibling threads"), (1, "1 sibling thread"), (12, "12 sibling threads")],
)
def test_every_head_says_how_many_siblings_ran(count: int, text: str, capsys) -> None:
    assert siblings_in_words(count) == text
    results = make_results(make_strategy("qemu", [10, 20]))
    draw_results(replace(results, settings=replace(results.settings, siblings=count)))
    printed = capsys.readouterr().out
    assert f"times: medians of 2 runs with their 50 % intervals in percent, {text}" in printed
    assert f"memory: medians of 2 runs; {text}" in printed
    assert "stage b over virtqueues: medians of 2 runs, no sibling threads" in printed


def test_executed_and_projected_stand_side_by_side(capsys) -> None:
    qemu = replace(make_strategy("qemu", [10]), projected_send_ns=279_000, wire_requests=4)
    draw_sending(make_results(qemu))
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  qemu")]
    assert " ".join(row.split()) == "qemu pfns 4 1 1 56 B 100 ns 100 ns 25 ns 279 us"


def test_a_trace_of_one_side_has_no_pace(capsys) -> None:
    draw_sending(make_results(make_strategy("nop", [10])))
    assert "no pace of its own" in capsys.readouterr().out
