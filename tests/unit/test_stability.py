"""Warnings about times: each names what varied and says what to do."""

import dataclasses
from pathlib import Path

import pytest

from replay.results import CalibrationPoint, StrategyResult
from replay.stability import (
    CpuTime,
    calibration_stability,
    machine_warnings,
    read_cpu_time,
    run_stability,
)

from .replay_results import MACHINE, make_results, make_run, make_strategy

STEADY = [1000, 1001, 1002, 1003]


@pytest.mark.parametrize(
    ("change", "siblings", "said"),
    [
        ({"load_1min": 3.0}, 0, "load is 3.00"),
        ({"governor": "powersave"}, 0, "cpupower"),
        ({"virtualisation": "Some Cloud"}, 0, "virtual"),
        ({"turbo": "0", "cpu_model": "Intel"}, 0, "no_turbo"),
        ({"turbo": "1", "cpu_model": "AMD"}, 0, "cpufreq/boost"),
        ({"swap_bytes": 1}, 0, "swapoff"),
        ({}, 4, "--siblings 3"),
    ],
)
def test_of_the_machine(change: dict[str, object], siblings: int, said: str) -> None:
    machine = make_results(make_strategy("qemu", [1]), **change).environment
    assert machine_warnings(MACHINE, 0) == ()
    (warning,) = machine_warnings(machine, siblings)
    assert said in warning


def told(*strategies: StrategyResult, stolen: float | None = None, **settings) -> tuple[str, ...]:
    results = make_results(*strategies)
    changed = dataclasses.replace(results.settings, **settings)
    return run_stability(changed, strategies, stolen)


def test_a_steady_replay_says_nothing() -> None:
    assert told(make_strategy("qemu", STEADY), stolen=0.001) == ()


def test_runs_that_may_move() -> None:
    (warning,) = told(make_strategy("qemu", STEADY), cpu=None)
    assert "--cpu auto" in warning


def test_too_few_runs_to_compare() -> None:
    (warning,) = told(make_strategy("qemu", STEADY[:3]))
    assert "--runs 4" in warning


def test_time_that_the_host_took() -> None:
    (warning,) = told(make_strategy("qemu", STEADY), stolen=0.25)
    assert "25.0%" in warning
    assert told(make_strategy("qemu", STEADY), stolen=None) == ()


def point(*samples_ns: float, pages: int = 1) -> CalibrationPoint:
    return CalibrationPoint(4, 1, "small", False, pages, samples_ns)


def test_a_calibration_whose_samples_disagree() -> None:
    steady, surplus = point(100, 104, 101), point(1, -50, 90, pages=0)
    assert calibration_stability((steady, steady, point(100, 300, 100), surplus)) == ()
    (warning,) = calibration_stability((steady, point(100, 130, 101), point(50, 60, 75), surplus))
    assert "30% apart" in warning
    assert calibration_stability(()) == ()


def test_a_stage_that_waited_for_its_cpu_is_named() -> None:
    waited = dataclasses.replace(make_run(1000), preemptions=3, discard_cpu_ns=500)
    slow = dataclasses.replace(
        make_strategy("qemu", STEADY), runs=(waited, waited, make_run(1000), make_run(1000))
    )
    (warning,) = told(slow, make_strategy("range", STEADY))
    assert warning.startswith("qemu: in half of the runs or more, stage d waited for its CPU")
    assert "--cpu" in warning
    # Threads of a plan wait for each other, and one interruption in four runs is no pattern.
    assert told(dataclasses.replace(slow, threads=2)) == ()
    assert told(dataclasses.replace(slow, runs=(waited, *(make_run(1000),) * 3))) == ()


def test_scatter_is_told_with_its_size_and_a_number_of_runs() -> None:
    (warning,) = told(make_strategy("qemu", [1000, 1400, 2000, 1200]), make_strategy("x", STEADY))
    assert "qemu 2" in warning
    assert "--runs 15" in warning


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1\n", CpuTime(36, 8)),
        ("cpu  1 2 3\n", CpuTime(6, 0)),
        ("cpu  x\n", CpuTime(0, 0)),
        ("", CpuTime(0, 0)),
    ],
)
def test_cpu_time_is_read(tmp_path: Path, text: str, found: CpuTime) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text(text)
    assert read_cpu_time(tmp_path) == found


def test_stolen_share() -> None:
    assert CpuTime(100, 10).stolen_share(CpuTime(200, 35)) == 0.25
    assert CpuTime(100, 10).stolen_share(CpuTime(100, 10)) is None
    now = read_cpu_time()
    assert now.all_ticks > 0
