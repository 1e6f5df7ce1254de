"""A calibration measures every cell it was asked for, in a fresh process, and gives memory back."""

import pytest

from replay.backings import Advice
from replay.calibrate import Cell, Conditions, Kind, calibrate, cells_of
from tracer.trace.errors import AerostatError


@pytest.mark.parametrize(
    ("kind", "backing", "states"),
    [
        (Kind(int(Advice.DONTNEED)), "anon", ("untouched", "small", "split", "huge")),
        (Kind(int(Advice.DONTNEED), 8), "anon", ("untouched", "small")),
        (Kind(int(Advice.PUNCH_HOLE)), "memfd", ("untouched", "small")),
    ],
)
def test_every_cell_has_a_sample_a_round(kind: Kind, backing: str, states) -> None:
    conditions = Conditions(backing, "madvise", None, (), states, 512)
    samples = calibrate([kind], conditions, rounds=2, seed=1)
    surplus = {Cell(kind, "split", False, 0)} if "split" in states else set()
    assert set(samples) == {*cells_of(kind, conditions), *surplus}
    assert all(len(values) == 2 for values in samples.values())
    assert all(min(values) > 0 for cell, values in samples.items() if cell.pages)


def test_memory_that_is_not_there_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("replay.calibrate.available_bytes", lambda: 300 << 20)
    conditions = Conditions("anon", "madvise", None, (), ("untouched", "small"), 512)
    with pytest.raises(AerostatError, match="cannot calibrate"):
        calibrate([Kind(int(Advice.DONTNEED))], conditions, rounds=1, seed=1)
