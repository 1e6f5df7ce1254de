"""A calibration measures every cell it was asked for, in a fresh process, and gives memory back."""

import numpy as np
import pytest

from replay import calibrate as calibrate_module
from replay.backings import BACKINGS, Advice
from replay.calibrate import calibrate
from replay.cells import Cell, Conditions, Kind, State, cells_of
from replay.foretell import Session, foretell
from replay.free_list import (
    CHUNK_PAGES,
    FEW_PAGES,
    TIMEOUT_NS,
    SweepJob,
    free,
    measure_free_list,
    sweep,
)
from replay.memory import GuestMemory
from replay.plan import Context
from replay.ranges import Runs, empty
from replay.requests import from_pfns
from replay.residency import Residency
from replay.strategies import load_strategy
from replay.worker import call_in_fresh_process, process_context
from tracer.trace.errors import AerostatError
from tracer.trace.manifest import Region
from tracer.trace.schema import Queue


@pytest.mark.parametrize(
    ("kind", "backing", "states"),
    [
        (Kind(int(Advice.DONTNEED)), "anon", ("untouched", "emptied", "small", "split", "huge")),
        (Kind(int(Advice.DONTNEED), 8), "anon", ("untouched", "emptied", "small")),
        (Kind(int(Advice.PUNCH_HOLE)), "memfd", ("untouched", "emptied", "small")),
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


def test_huge_pages_that_are_not_there_are_refused(monkeypatch) -> None:
    monkeypatch.setattr("replay.calibrate.huge_pool_bytes", lambda: 8 << 20)
    conditions = Conditions("hugetlb", "madvise", None, (), ("untouched", "huge"), 512)
    with pytest.raises(AerostatError, match="cannot calibrate") as refused:
        calibrate([Kind(int(Advice.PUNCH_HOLE))], conditions, rounds=1, seed=1)
    assert "66 MiB of free huge pages" in refused.value.reason


@pytest.mark.parametrize("kind", [Kind(int(Advice.PUNCH_HOLE)), Kind(int(Advice.REMOVE), 8)])
def test_larger_host_pages_are_measured_resident_and_not(huge_page_pool: int, kind: Kind) -> None:
    conditions = Conditions("hugetlb", "madvise", None, (), ("untouched", "huge"), 512)
    samples = calibrate([kind], conditions, rounds=1, seed=1)
    assert set(samples) == set(cells_of(kind, conditions))
    assert all(ns > 0 for (ns,) in samples.values())


def test_a_full_list_of_free_pages_is_measured_after_it_was_filled() -> None:
    kind = Kind(int(Advice.DONTNEED))
    states: tuple[State, ...] = ("untouched", "small", "full")
    conditions = Conditions("anon", "madvise", None, (), states, 1, filler_pages=3 * CHUNK_PAGES)
    samples = calibrate([kind], conditions, rounds=1, seed=1)
    assert {cell.state for cell in samples} == set(states)
    assert all(ns > 0 for (ns,) in samples.values())


def test_what_was_freed_lazily_before_costs_less_to_free_lazily() -> None:
    """By a factor of 2 to 4; half of it is left for a busy machine."""
    kind = Kind(int(Advice.FREE))
    conditions = Conditions("anon", "madvise", None, (), ("untouched", "small", "lazy"), 512)
    samples = calibrate([kind], conditions, rounds=3, seed=1)
    first, again = (min(samples[Cell(kind, state, False, 512)]) for state in ("small", "lazy"))
    assert again < first


@pytest.mark.parametrize("backing", ["anon", "memfd"])
def test_the_room_of_the_list_of_free_pages_is_within_what_was_freed(backing: str) -> None:
    job = SweepJob("sweep", backing, None, FEW_PAGES + 100)
    found = measure_free_list(job, rounds=1)
    assert 0 <= found.pages < FEW_PAGES
    assert found.advice == BACKINGS[backing].discard
    assert min(found.within_ns, found.beyond_ns) > 0
    job = SweepJob("sweep", backing, None, FEW_PAGES)
    page_ns = call_in_fresh_process(process_context(), sweep, job, TIMEOUT_NS)
    assert len(page_ns) == FEW_PAGES // CHUNK_PAGES
    assert all(ns > 0 for ns in page_ns)


def test_a_sweep_beside_a_sibling_frees_as_much() -> None:
    job = SweepJob("sweep", "anon", 0, FEW_PAGES, sibling_cpus=(1,))
    page_ns = call_in_fresh_process(process_context(), sweep, job, TIMEOUT_NS)
    assert len(page_ns) == FEW_PAGES // CHUNK_PAGES
    assert all(ns > 0 for ns in page_ns)


def test_what_is_freed_is_freed() -> None:
    with GuestMemory(1300 << 12, "anon", 1, "never") as memory:
        memory.restore(Residency(Runs(np.zeros(1, np.int64), np.array([1300])), empty(), ""))
        assert free(memory, 100, 1100) > 0
        assert memory.resident_pages() == 200
        assert memory.verify().findings.wrong == 0


def test_plans_that_free_much_are_foretold_by_the_room_of_the_list() -> None:
    region = Region("ram", 0, None, (FEW_PAGES + 512) << 12, "anon", 4096)
    context = Context((region,), 4096, "anon")
    falling = np.arange(FEW_PAGES + 512)[::-1]
    requests = from_pfns([(Queue.INFLATE, part.tolist()) for part in np.split(falling, 66)])
    plans = [load_strategy(name).plan(requests, context) for name in ("request", "free")]
    pages = Runs(np.zeros(1, np.int64), np.array([FEW_PAGES + 512]))
    told: list[tuple[str, int, int]] = []
    found = foretell(
        plans,
        context,
        Residency(pages, empty(), ""),
        Session("madvise", None, (), 1),
        lambda *step: told.append(step),
    )
    # Three sweeps, and three processes for DONTNEED and for FREE each.
    assert told == [("calibrate", done, 9) for done in range(10)]
    assert not any(found.notes)
    assert found.free_list is not None
    assert {point.state for point in found.calibration if point.advice == Advice.DONTNEED} == {
        "untouched",
        "small",
        "full",
    }
    assert all(told is not None and told > 0 for told in found.discard_ns)


def test_beside_siblings_a_calibration_takes_more_samples() -> None:
    region = Region("ram", 0, None, 64 << 12, "anon", 4096)
    context = Context((region,), 4096, "anon")
    requests = from_pfns([(Queue.INFLATE, [*range(64)])])
    plans = [load_strategy("request").plan(requests, context)]
    pages = Residency(Runs(np.zeros(1, np.int64), np.array([64])), empty(), "")
    for siblings, rounds in (((), 3), ((1,), 7)):
        found = foretell(plans, context, pages, Session("madvise", 0, siblings, 1))
        assert not any(found.notes)
        assert {len(point.samples_ns) for point in found.calibration} == {rounds}


def test_calls_on_nothing_are_repeated_but_not_those_that_fill_it(monkeypatch) -> None:
    """A first call is slow; a second of POPULATE_WRITE would find what the first has made."""
    timed, starts_of = calibrate_module._time, {}

    def remembering(memory: GuestMemory, cell: Cell, starts: np.ndarray) -> float:
        starts_of[cell] = starts
        return timed(memory, cell, starts)

    monkeypatch.setattr(calibrate_module, "_time", remembering)
    conditions = Conditions("anon", "madvise", None, (), ("untouched",), 2048)
    for advice in (Advice.DONTNEED, Advice.POPULATE_WRITE):
        job = calibrate_module.CalibrationJob("test", Kind(int(advice)), conditions, 1)
        assert calibrate_module.measure(job).keys() <= starts_of.keys()
    counts = {cell: (len(starts), len(set(starts.tolist()))) for cell, starts in starts_of.items()}
    assert all(n >= 256 for cell, (n, _) in counts.items() if cell.kind.advice == Advice.DONTNEED)
    assert all(
        n == each for cell, (n, each) in counts.items() if cell.kind.advice == Advice.POPULATE_WRITE
    )
