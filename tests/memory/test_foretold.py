"""A replay that predicts: every plan of one thread, from a table that the results keep."""

from pathlib import Path

import pytest

from aerostat.replay_tables import prediction_line
from replay.results_file import load_results
from replay.schedule import ReplayOptions, replay_trace
from tests.memory.conftest import MakeTrace

STRATEGIES = ("qemu", "range", "vectored", "free", "parallel", "populate")


def test_predictions_stand_beside_what_was_measured(make_trace: MakeTrace, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    options = ReplayOptions(
        make_trace(huge=True),
        STRATEGIES,
        runs=1,
        warmup=0,
        watched_runs=0,
        predict=True,
        output=path,
    )
    results = replay_trace(options)
    told = {each.name: each.predicted_discard_ns for each in results.strategies}
    assert told.pop("nop") == 0
    assert told.pop("parallel") is None
    (why,) = (text for text in results.warnings if "not foretold" in text)
    assert why.startswith("stage d of parallel was not foretold: what calls of 2 threads cost")
    assert all(ns is not None and ns > 0 for ns in told.values())
    advice = {point.advice for point in results.calibration if point.ranges == 1}
    assert advice == {3, 4, 8, 23}
    assert {point.ranges for point in results.calibration} == {1, 8, 512}
    states = {point.state for point in results.calibration}
    assert states == {"untouched", "emptied", "split", "huge"}
    assert all(len(point.samples_ns) == 3 for point in results.calibration)
    assert load_results(path) == results
    assert "at the median" in prediction_line(results)


def test_nothing_is_predicted_unasked(make_trace: MakeTrace) -> None:
    results = replay_trace(ReplayOptions(make_trace(), ("qemu",), runs=1, warmup=0, watched_runs=0))
    assert results.calibration == ()
    assert all(each.predicted_discard_ns is None for each in results.strategies)
    assert prediction_line(results) == ""


def test_no_memory_to_calibrate_is_a_warning(make_trace: MakeTrace, monkeypatch) -> None:
    monkeypatch.setattr("replay.calibrate.available_bytes", lambda: 257 << 20)
    results = replay_trace(
        ReplayOptions(make_trace(), ("qemu",), runs=1, warmup=0, watched_runs=0, predict=True)
    )
    assert all(each.predicted_discard_ns is None for each in results.strategies)
    (why,) = (text for text in results.warnings if "foretold" in text)
    assert why.startswith("stage d of nop, qemu was not foretold: cannot calibrate")


def test_larger_host_pages_are_foretold(make_trace: MakeTrace, huge_page_pool: int) -> None:
    results = replay_trace(
        ReplayOptions(
            make_trace(),
            ("qemu", "bulk"),
            runs=1,
            warmup=0,
            watched_runs=0,
            residency="touched",
            predict=True,
            backing="hugetlb",
        )
    )
    assert {point.state for point in results.calibration} == {"untouched", "huge"}
    told = {each.name: each.predicted_discard_ns for each in results.strategies}
    operations = {each.name: each.operations for each in results.strategies}
    assert all(ns is not None for ns in told.values())
    assert all(told[name] for name, count in operations.items() if count)


@pytest.mark.parametrize(
    ("name", "backing"),
    # All calls of bulk are shared: none is alone, and none is calibrated alone.
    [("bulk", "anon"), ("bulk", "memfd"), ("qemu", "memfd"), ("qemu", "file-private")],
)
def test_a_strategy_is_predicted_by_itself(make_trace: MakeTrace, name: str, backing: str) -> None:
    results = replay_trace(
        ReplayOptions(
            make_trace(),
            (name,),
            runs=1,
            warmup=0,
            watched_runs=0,
            predict=True,
            backing=backing,
        )
    )
    predicted = results.strategies[-1].predicted_discard_ns
    assert predicted is not None
    assert predicted > 0
