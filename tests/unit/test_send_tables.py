"""The table of stage b: what stands in it, and what it says where the trace has no pace."""

from dataclasses import replace

import pytest

from aerostat.headline_tables import draw_headline
from aerostat.replay_tables import draw_results
from aerostat.send_tables import draw_sending, siblings_in_words
from aerostat.verbs.replay import _draw
from replay.against import against
from replay.headline import Case, Headline
from replay.results import Results
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


def test_one_run_has_neither_median_nor_interval(capsys) -> None:
    results = make_results(make_strategy("qemu", [10]), make_strategy("range", [10]))
    draw_results(results)
    draw_headline(headline(results))
    printed = capsys.readouterr().out
    assert "times: 1 run, no interval, no sibling threads" in printed
    assert "memory: 1 run; " in printed
    assert "stage b over virtqueues: 1 run, no sibling threads" in printed
    assert "1 runs" not in printed


@pytest.mark.parametrize(
    ("replayed", "text"),
    [(1, "Not all of its memory: short of it"), (0, "Not the whole trace: short of it")],
)
def test_what_was_cut_is_told(replayed: int, text: str, capsys) -> None:
    base = make_results(make_strategy("qemu", [10, 20]))
    settings = replace(base.settings, cut_reason="short of it", requests_replayed=replayed)
    draw_results(replace(base, settings=settings))
    assert text in capsys.readouterr().out


@pytest.mark.parametrize(
    ("siblings", "resting", "text"),
    [
        (0, 1, "no sibling threads, one that sleeps"),
        (0, 0, "no sibling threads"),
        (2, 0, "2 sibling threads"),
    ],
)
def test_tables_of_who_is_faster_say_it_too(siblings: int, resting: int, text: str, capsys) -> None:
    base = make_results(make_strategy("range", [10, 20]), make_strategy("qemu", [10, 20]))
    settings = replace(base.settings, siblings=siblings, resting_threads=resting, against="range")
    results = replace(base, settings=settings, against=against(base.strategies, "range"))
    _draw(results)
    printed = capsys.readouterr().out
    assert f"{text}, on CPU 3" in printed
    assert f"against range: medians of 2 pairs, {text}" in heads(printed)
    draw_headline(headline(results))
    printed = capsys.readouterr().out
    assert f"THP never, {text}, medians of 2 runs" in printed
    assert f"no page touched before, as in the seed's idle guest; {text}" in heads(printed)
    assert f"against range: medians of 2 pairs, {text}" in heads(printed)


def heads(printed: str) -> list[str]:
    """Whole lines, without the blanks that a table's title ends with."""
    return [line.rstrip() for line in printed.splitlines()]


def headline(results: Results) -> Headline:
    """The seed's experiment as if these results had come out of it."""
    settings, strategies = results.settings, results.strategies
    pairs = [against(strategies, name) for name in ("qemu", "range")]
    return Headline(
        created_utc=results.created_utc,
        aerostat_version=results.aerostat_version,
        trace="t.balloon",
        scale=1,
        inflated_bytes=7 << 30,
        memory_bytes=8 << 30,
        recorded_pages=1,
        copies=1.0,
        holes=0,
        holes_kept=0,
        runs=settings.runs,
        warmup=settings.warmup,
        seed=settings.seed,
        siblings=settings.siblings,
        resting_threads=settings.resting_threads,
        cpu=settings.cpu,
        environment=results.environment,
        refused=(),
        cases=(Case("untouched", 0, (), strategies, *pairs),),
    )


def test_executed_and_projected_stand_side_by_side(capsys) -> None:
    qemu = replace(make_strategy("qemu", [10]), projected_send_ns=279_000, wire_requests=4)
    draw_sending(make_results(qemu))
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  qemu")]
    assert " ".join(row.split()) == "qemu pfns 4 1 1 56 B 100 ns 100 ns 25 ns 279 us"


def test_a_trace_of_one_side_has_no_pace(capsys) -> None:
    draw_sending(make_results(make_strategy("nop", [10])))
    assert "no pace of its own" in capsys.readouterr().out
