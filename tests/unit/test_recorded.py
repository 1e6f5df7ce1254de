"""What recorded call times tell: two heights, how many calls were of the upper, and lost CPUs."""

import numpy as np
import pytest

from replay.recorded import LOST_CPU_NS, Calls, heights


def calls(*rows: tuple[int, float, float]) -> Calls:
    """Rows as (calls, mean ns, worst ns)."""
    count = np.array([row[0] for row in rows], np.int64)
    row = np.repeat(np.arange(len(rows)), count)
    mean_ns = np.array([each[1] for each in rows], np.float64)
    worst_ns = np.array([each[2] for each in rows], np.float64)
    return Calls(mean_ns[row], row, worst_ns, count)


def told(*rows: tuple[int, float, float]):
    made = calls(*rows)
    return heights(made, np.ones(len(made.row), bool))


def test_one_height() -> None:
    found = told(*[(1, 1000.0 + i, 1000.0 + i) for i in range(100)])
    assert found.high_ns is None
    assert found.interrupted_share == 0
    assert found.low_ns == pytest.approx(1049, abs=1)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.25, 0.8])
def test_single_calls_of_two_heights_are_counted(share: float) -> None:
    interrupted = round(1000 * share)
    rows = [(1, 1500.0, 1500.0)] * (1000 - interrupted) + [(1, 15_000.0, 15_000.0)] * interrupted
    found = told(*rows)
    assert (found.low_ns, found.high_ns) == (1500, 15_000)
    assert found.interrupted_share == pytest.approx(share)


def test_calls_that_are_long_by_themselves_are_told_apart_by_an_interrupt() -> None:
    rows = [(1, 8000.0 + i, 8000.0 + i) for i in range(70)] + [(1, 18_000.0, 18_000.0)] * 30
    made = calls(*rows)
    everything = np.ones(len(made.row), bool)
    assert heights(made, everything).high_ns is None
    found = heights(made, everything, 10_000.0)
    assert found.high_ns == 18_000
    assert found.interrupted_share == pytest.approx(0.3, abs=0.01)
    assert heights(made, everything, 30_000.0).high_ns is None


def test_merged_calls_are_counted_by_their_mean() -> None:
    rows = [(64, 1000.0, 1200.0)] * 10 + [(64, 11_000.0, 12_000.0)] * 10 + [(64, 6000.0, 12_000.0)]
    assert told(*rows).interrupted_share == pytest.approx(10.5 / 21)


def test_a_lost_cpu_is_not_an_interrupt() -> None:
    lost_ns = 40.0 * LOST_CPU_NS
    rows = [(1, 1000.0, 1000.0)] * 99 + [(1, lost_ns, lost_ns), (4, (lost_ns + 3000) / 4, lost_ns)]
    found = told(*rows)
    assert found.high_ns is None
    assert found.interrupted_share == 0
    assert found.lost_cpu_ns == pytest.approx(2 * (lost_ns - 1000))


def test_nothing_chosen() -> None:
    made = calls((1, 1000.0, 1000.0))
    assert heights(made, np.zeros(1, bool)) is None
