"""Measures, in fresh processes, what one call costs by its length and by what it finds.

A formula does not do: on runs of other lengths than those it was fitted to it errs by up to a
quarter, most where the kernel goes over from flushing single pages to flushing all (33 pages,
arch/x86/mm/tlb.c, tlb_single_page_flush_ceiling). So the cost is a table, and between two lengths
of it the time of a call is taken to rise evenly.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from replay import native
from replay.budget import MARGIN_BYTES, available_bytes
from replay.memory import GuestMemory
from replay.native.types import Operations
from replay.ranges import Int64s, Runs, empty
from replay.residency import Residency, Thp
from replay.worker import call_in_fresh_process, process_context
from tracer.trace.errors import AerostatError
from tracer.trace.schema import PFN_SHIFT

State = Literal["untouched", "small", "split", "huge"]
"""What a call finds: no pages; 4 KiB pages; pages of huge pages split before; huge pages."""

LENGTHS = (1, 2, 4, 8, 16, 32, 33, 34, 64, 128, 256, 512, 1024, 2048, 8192)
"""Pages of one call. 33 and 34 stand on both sides of the flush ceiling."""
SPLIT_LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Those that fill a huge page evenly: its memory goes with the last of them."""
HUGE_LENGTHS = (512, 1024, 2048, 8192)
FAR_LENGTHS = tuple(length for length in LENGTHS if length <= 128)
SHARES = (8, 512)
"""Ranges that share a process_madvise."""
UNIT_PAGES = 512
TIMEOUT_NS = 120_000_000_000
AREA_PAGES = (4096, 8192)
"""Memory of one cell: of short calls, and of those from 128 pages up."""


@dataclass(frozen=True)
class Kind:
    """A sort of call that plans make: its advice, and how many ranges share one; 1: one madvise."""

    advice: int
    ranges: int = 1


@dataclass(frozen=True)
class Cell:
    """One entry of the table.

    Args:
        kind: The call.
        state: What it finds.
        far: Calls jump about in memory; else each begins where the one before ended.
        pages: Length of each call, or of each range.
    """

    kind: Kind
    state: State
    far: bool
    pages: int


@dataclass(frozen=True)
class Conditions:
    """What the calibration must share with the runs that it shall predict.

    `cpu`, `sibling_cpus` and `thp` are as in a run's job; `states` are those to measure, and
    `pages` is the longest call.
    """

    backing: str
    thp: Thp
    cpu: int | None
    sibling_cpus: tuple[int, ...]
    states: tuple[State, ...]
    pages: int


@dataclass(frozen=True)
class CalibrationJob:
    """All cells of one kind, in one fresh process."""

    title: str
    kind: Kind
    conditions: Conditions
    seed: int


def cells_of(kind: Kind, conditions: Conditions) -> list[Cell]:
    """List what has to be measured to predict one kind of call.

    Lengths go one step beyond the longest call, so that nothing is guessed below 32 MiB.
    """
    return [
        Cell(kind, state, far, pages)
        for state in conditions.states
        for far in (False, True)
        for pages in _lengths(state, far)
        if pages <= 2 * conditions.pages or pages == _lengths(state, far)[0]
    ]


def _lengths(state: State, far: bool) -> tuple[int, ...]:
    if state == "huge":
        return () if far else HUGE_LENGTHS
    if state == "split":
        return () if far else SPLIT_LENGTHS
    return FAR_LENGTHS if far else LENGTHS


def area_pages(cell: Cell) -> int:
    """Memory that a cell's calls go over.

    Not always enough for a shared call to be full: of long ranges a few make the call's own part
    vanish as well as many do.
    """
    least = AREA_PAGES[0] if cell.pages < 128 else AREA_PAGES[1]
    return -(-max(least, cell.pages) // UNIT_PAGES) * UNIT_PAGES


def memory_pages(cells: Sequence[Cell]) -> int:
    """Memory that all cells of a job take, resident at once."""
    return sum(area_pages(cell) for cell in cells if cell.state != "untouched")


def calibrate(
    kinds: Sequence[Kind], conditions: Conditions, rounds: int, seed: int
) -> dict[Cell, list[float]]:
    """Measure the table, each kind and round in a fresh process, rounds interleaved.

    Args:
        kinds: The calls to measure.
        conditions: What they share with the runs to predict.
        rounds: Processes for each kind; the table takes medians over them.
        seed: Of the order of cells, which differs from round to round.

    Returns:
        For each cell one sample a round, in ns of a call.

    Raises:
        AerostatError: There is not the memory for it, or a process failed.
    """
    needed_bytes = (
        max((memory_pages(cells_of(kind, conditions)) for kind in kinds), default=0) << 12
    )
    if needed_bytes > available_bytes() - MARGIN_BYTES:
        raise AerostatError(
            "cannot calibrate on this machine now",
            reason=f"it takes {needed_bytes >> 20} MiB of memory, and there is not so much",
            remedy="free memory, or replay without a prediction",
        )
    processes = process_context()
    samples: dict[Cell, list[float]] = defaultdict(list)
    for turn in range(rounds):
        for kind in kinds:
            job = CalibrationJob(f"calibration of {kind}", kind, conditions, seed + turn)
            measured = call_in_fresh_process(processes, measure, job, TIMEOUT_NS)
            for cell, time_ns in measured.items():
                samples[cell].append(time_ns)
    return dict(samples)


def measure(job: CalibrationJob) -> dict[Cell, float]:
    """Measure every cell of one kind in this process.

    All memory is populated before the first call, as before a run.

    Returns:
        ns of each call, or of each range of a shared one. Of a `split` cell: of the calls after the
        one that splits; that one's surplus stands in the cell of 0 pages.
    """
    conditions = job.conditions
    if conditions.cpu is not None:
        os.sched_setaffinity(0, {conditions.cpu})
    cells = cells_of(job.kind, conditions)
    np.random.default_rng(job.seed).shuffle(cells)
    areas = _areas(cells)
    # Read by siblings; no cell discards it.
    spare = np.arange(areas[-1][1], areas[-1][1] + UNIT_PAGES, dtype=np.uint64)
    size_bytes = (areas[-1][1] + UNIT_PAGES) << PFN_SHIFT
    with GuestMemory(size_bytes, conditions.backing, job.seed, conditions.thp) as memory:
        memory.restore(_residency(cells, areas))
        with native.Siblings(conditions.sibling_cpus, memory.mapping, spare):
            found: dict[Cell, float] = {}
            for cell, (first, _) in zip(cells, areas, strict=True):
                found |= _measure_cell(memory, cell, first, job.seed)
    return found


def _areas(cells: Sequence[Cell]) -> list[tuple[int, int]]:
    """First page of each cell's memory and the page after its last, one after the other."""
    ends = np.cumsum([area_pages(cell) for cell in cells]).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _residency(cells: Sequence[Cell], areas: Sequence[tuple[int, int]]) -> Residency:
    small, huge = [(areas[-1][1], areas[-1][1] + UNIT_PAGES)], []
    for cell, area in zip(cells, areas, strict=True):
        if cell.state == "small":
            small.append(area)
        elif cell.state != "untouched":
            huge.append(area)
    return Residency(_runs(small), _runs(huge), "calibration")


def _runs(areas: Sequence[tuple[int, int]]) -> Runs:
    if not areas:
        return empty()
    bounds = np.array(areas, np.int64)
    return Runs(bounds[:, 0], bounds[:, 1] - bounds[:, 0])


def _measure_cell(memory: GuestMemory, cell: Cell, first: int, seed: int) -> dict[Cell, float]:
    pages = area_pages(cell)
    if cell.state == "split":
        return _measure_split(memory, cell, first, pages)
    starts = first + np.arange(pages // cell.pages, dtype=np.int64)[::-1] * cell.pages
    if cell.far:
        starts = np.random.default_rng(seed).permutation(starts)
    return {cell: _time(memory, cell, starts)}


def _measure_split(memory: GuestMemory, cell: Cell, first: int, pages: int) -> dict[Cell, float]:
    """Split every huge page by the first call on it, then go on with the others."""
    starts = first + np.arange(pages // cell.pages, dtype=np.int64)[::-1] * cell.pages
    splits = (starts + cell.pages) % UNIT_PAGES == 0
    splitting_ns = _time(memory, cell, starts[splits])
    others_ns = _time(memory, cell, starts[~splits])
    surplus = Cell(cell.kind, "split", False, 0)
    return {cell: others_ns} | ({surplus: splitting_ns - others_ns} if cell.pages == 1 else {})


def _time(memory: GuestMemory, cell: Cell, starts: Int64s) -> float:
    """Mean ns of a call, or range, over calls that begin at some pages, in this order."""
    count = len(starts)
    joined = None
    if cell.kind.ranges > 1:
        joined = (np.arange(count) % cell.kind.ranges != 0).astype(np.uint8)
    operations = Operations(
        advice=np.full(count, cell.kind.advice, np.uint8),
        offset_bytes=(starts << PFN_SHIFT).astype(np.uint64),
        length_bytes=np.full(count, cell.pages << PFN_SHIFT, np.uint64),
        request=np.zeros(count, np.int64),
        joined=joined,
    )
    outcome = memory.execute(operations)
    # Where others want the CPU too, the wall holds their time; a sample shall not.
    return min(outcome.wall_ns, outcome.cpu_ns) / count
