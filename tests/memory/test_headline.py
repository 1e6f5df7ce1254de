"""The seed's experiment at a small scale, really run: every page once, both protocols, all keys."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from aerostat.cli import main
from aerostat.headline import default_trace
from replay.headline import MEMORY_PAGES, PAGES, HeadlineOptions, measure_headline
from tests.memory.conftest import MakeTrace
from tests.unit.test_cli_traces import documented_keys, keys_of, run_json
from tracer.trace.errors import ExitCode

SMALL = ("--memory-limit", "40M", "--runs", "6", "--warmup", "0")
PART = 256


@pytest.fixture(scope="module")
def document() -> dict:
    from aerostat import headline

    options = HeadlineOptions(
        default_trace(), ("bulk",), runs=6, warmup=0, memory_limit_bytes=40 << 20
    )
    return json.loads(json.dumps(headline.document(measure_headline(options))))


def runs_of(document: dict, residency: str) -> dict[str, list[dict]]:
    case = next(case for case in document["cases"] if case["residency"] == residency)
    return {strategy["name"]: strategy["runs"] for strategy in case["strategies"]}


def test_it_is_a_stated_part_of_the_seeds_size(document: dict) -> None:
    assert document["scale"] == 1 / PART
    assert document["inflated_bytes"] == (PAGES << 12) // PART
    assert document["memory_bytes"] == (MEMORY_PAGES << 12) // PART
    assert document["allocate_ns"] is None
    assert document["siblings"] == 0
    assert document["resting_threads"] == int(len(os.sched_getaffinity(0)) > 1)


def test_it_warns_of_what_makes_its_times_unsure() -> None:
    options = HeadlineOptions(
        default_trace(),
        runs=2,
        warmup=0,
        residency=("untouched",),
        cpu=None,
        memory_limit_bytes=40 << 20,
    )
    (case,) = measure_headline(options).cases
    assert any("2 runs are too few" in warning for warning in case.warnings)
    assert any("free to move between CPUs" in warning for warning in case.warnings)


@pytest.mark.parametrize("residency", ["untouched", "touched"])
def test_every_strategy_discards_every_page_once(document: dict, residency: str) -> None:
    pages = PAGES // PART
    found = runs_of(document, residency)
    assert list(found) == ["nop", "qemu", "range", "bulk"]
    for name, runs in found.items():
        assert len(runs) == 6
        for run in runs:
            gone = pages if residency == "touched" and name != "nop" else 0
            freed = run["resident_before_pages"] - run["resident_after_pages"]
            assert (run["gone_pages"], freed) == (gone, gone)
            assert (run["failures"], run["huge_pages"]) == (0, 0)
    assert {run["merge_ns"] > 0 for run in found["range"]} == {True}
    assert {run["merge_ns"] for run in found["qemu"]} == {0}


def test_ranges_are_many_times_as_fast_on_untouched_memory(document: dict) -> None:
    """By counts, not by time: 7168 pages in one range protocol request, or 28 requests of PFNs."""
    case = document["cases"][0]
    by_name = {strategy["name"]: strategy for strategy in case["strategies"]}
    assert by_name["qemu"]["calls"] == PAGES // PART
    assert by_name["range"]["calls"] < by_name["qemu"]["calls"] / 10
    assert by_name["range"]["wire_requests"] == 1
    assert by_name["bulk"]["calls"] <= by_name["range"]["calls"]
    pair = {each["name"]: each for each in case["against_pfns"]}
    totals = [
        np.array(
            [
                run["send_ns"] + run["merge_ns"] + run["translate_ns"] + run["discard_ns"]
                for run in by_name[name]["runs"]
            ]
        )
        for name in ("qemu", "range")
    ]
    assert pair["range"]["times"] == pytest.approx(float(np.median(totals[0] / totals[1])))
    assert pair["qemu"]["times"] == 1


def test_every_key_is_documented(document: dict) -> None:
    assert keys_of(document) <= documented_keys("replay")


def test_the_table_stands_beside_the_seeds(capsys) -> None:
    assert (
        main(["replay", "--seed-headline", *SMALL, "--residency", "untouched", "-s", "range"]) == 0
    )
    out = capsys.readouterr().out
    for text in (
        "4.13 s",
        "590 ms",
        "1/16 of the seed's size",
        "seed, ranges (2016)",
        "ranges (range)",
    ):
        assert text in out
    assert "every inflated page" not in out


def test_the_order_of_another_trace(make_trace: MakeTrace, capsys) -> None:
    code, found = run_json(
        capsys, "replay", str(make_trace()), "--seed-headline", *SMALL, "-s", "range", "--json"
    )
    assert code == 0
    assert found["trace"] != default_trace().name
    assert found["recorded_pages"] * found["copies"] == pytest.approx(PAGES // PART)


def test_a_lossy_trace_is_not_stretched_unasked(make_trace: MakeTrace, capsys) -> None:
    path = make_trace("lossy", lost=3)
    assert main(["replay", str(path), "--seed-headline", *SMALL]) == ExitCode.CAPTURE_INCOMPLETE
    assert "--allow-loss" in capsys.readouterr().err


def test_what_was_measured_is_shown_though_the_reference_was_refused(
    make_trace: MakeTrace, capsys
) -> None:
    arguments = ("-s", "qemu", "--against", "punch", "--runs", "6", "--no-predict")
    assert main(["replay", str(make_trace()), *arguments]) == ExitCode.FAILURE
    out, err = capsys.readouterr()
    assert "times: medians of 6 runs" in out
    assert "no file to punch a hole into" in err


def test_strategies_against_one_of_them(make_trace: MakeTrace, tmp_path: Path, capsys) -> None:
    arguments = ("replay", str(make_trace()), "-s", "qemu", "--against", "range", "--runs", "6")
    path = tmp_path / "r.json"
    code, found = run_json(capsys, *arguments, "--json", "-o", str(path))
    assert code == 0
    assert json.loads(path.read_text()) == found
    assert [each["name"] for each in found["against"]] == ["nop", "qemu", "range"]
    assert keys_of(found) <= documented_keys("replay")
    assert main([*arguments]) == 0
    assert "against range: medians of 6 pairs" in capsys.readouterr().out
