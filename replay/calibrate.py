"""Measures, in fresh processes, what one call costs by its length and by what it finds.

A formula does not do: on runs of other lengths than those it was fitted to it errs by up to a
quarter, most where the kernel goes over from flushing single pages to flushing all (33 pages,
arch/x86/mm/tlb.c, tlb_single_page_flush_ceiling). So the cost is a table, and between two lengths
of it the time of a call is taken to rise evenly.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from replay import native
from replay.backings import BACKINGS
from replay.budget import MARGIN_BYTES, available_bytes, huge_pool_bytes
from replay.cells import (
    UNIT_PAGES,
    Cell,
    Conditions,
    Kind,
    area_pages,
    cells_of,
    effect_of,
    memory_pages,
)
from replay.free_list import free
from replay.memory import GuestMemory
from replay.native.types import Effect, Operations
from replay.ranges import Int64s, Runs, empty
from replay.residency import Residency
from replay.worker import call_in_fresh_process, process_context
from tracer.trace.errors import AerostatError
from tracer.trace.schema import PAGE_BYTES, PFN_SHIFT

TIMEOUT_NS = 120_000_000_000
HALF_UNIT_PAGES = UNIT_PAGES // 2
"""Calls that empty a page table leave it there; one on all of it takes it away as well."""
LEAST_CALLS = 256
"""Of a cell that finds nothing, which can be done again: of a few, the first would stand out."""
REFILLS = 8
"""Of a cell of larger host pages, of which a machine keeps few."""


@dataclass(frozen=True)
class CalibrationJob:
    """All cells of one kind, in one fresh process."""

    title: str
    kind: Kind
    conditions: Conditions
    seed: int


def calibrate(
    kinds: Sequence[Kind],
    conditions: Conditions,
    rounds: int,
    seed: int,
    stepped: Callable[[], None] = lambda: None,
) -> dict[Cell, list[float]]:
    """Measure the table, each kind and round in a fresh process, rounds interleaved.

    Args:
        kinds: The calls to measure.
        conditions: What they share with the runs to predict.
        rounds: Processes for each kind; the table takes medians over them.
        seed: Of the order of cells, which differs from round to round.
        stepped: Called after each process.

    Returns:
        For each cell one sample a round, in ns of a call.

    Raises:
        AerostatError: There is not the memory for it, or a process failed.
    """
    _require_memory(kinds, conditions)
    processes = process_context()
    samples: dict[Cell, list[float]] = defaultdict(list)
    for turn in range(rounds):
        for kind in kinds:
            job = CalibrationJob(f"calibration of {kind}", kind, conditions, seed + turn)
            measured = call_in_fresh_process(processes, measure, job, TIMEOUT_NS)
            for cell, time_ns in measured.items():
                samples[cell].append(time_ns)
            stepped()
    return dict(samples)


def _require_memory(kinds: Sequence[Kind], conditions: Conditions) -> None:
    most_pages = 0
    for kind in kinds:
        filled = effect_of(kind, conditions.backing) == Effect.FILLS
        most_pages = max(most_pages, memory_pages(cells_of(kind, conditions), filled=filled))
    needed_bytes = (most_pages + conditions.filler_pages + UNIT_PAGES) << PFN_SHIFT
    of_pool = conditions.backing == "hugetlb"
    if needed_bytes > (huge_pool_bytes() if of_pool else available_bytes() - MARGIN_BYTES):
        kept = "free huge pages" if of_pool else "memory"
        raise AerostatError(
            "cannot calibrate on this machine now",
            reason=f"it takes {needed_bytes >> 20} MiB of {kept}, and there is not so much",
            remedy="free memory, or replay without a prediction",
        )


def measure(job: CalibrationJob) -> dict[Cell, float]:
    """Measure every cell of one kind in this process.

    All memory is populated before the first call, as before a run. What a cell frees is taken again
    elsewhere, so that the list of free pages keeps its room, until the cells that find it full.

    Returns:
        ns of each call, or of each range of a shared one. Of a `split` cell: of the calls after the
        one that splits; that one's surplus stands in the cell of 0 pages.
    """
    conditions = job.conditions
    if conditions.cpu is not None:
        os.sched_setaffinity(0, {conditions.cpu})
    cells = cells_of(job.kind, conditions)
    np.random.default_rng(job.seed).shuffle(cells)
    cells.sort(key=lambda cell: cell.state == "full")
    areas = _areas(cells)
    # Read by siblings; no cell discards it.
    spare = np.arange(areas[-1][1], areas[-1][1] + UNIT_PAGES, dtype=np.uint64)
    filler = areas[-1][1] + UNIT_PAGES
    fresh = filler + conditions.filler_pages
    size_bytes = (fresh + memory_pages(cells)) << PFN_SHIFT
    frees = effect_of(job.kind, conditions.backing) == Effect.FREES
    with GuestMemory(size_bytes, conditions.backing, job.seed, conditions.thp) as memory:
        memory.restore(_residency(cells, areas, fresh))
        beside = conditions.sibling_cpus, memory.mapping, spare, conditions.resting_cpu
        with native.Siblings(*beside):
            found: dict[Cell, float] = {}
            is_full = False
            for cell, (first, _) in zip(cells, areas, strict=True):
                if cell.state == "full" and not is_full:
                    free(memory, filler, conditions.filler_pages)
                    is_full = True
                found |= _measure_cell(memory, cell, first, job.seed)
                if cell.state == "emptied" or (frees and cell.state in ("small", "split")):
                    pages = area_pages(cell)
                    memory.touch(_runs([(fresh, fresh + pages)]))
                    fresh += pages
    return found


def _areas(cells: Sequence[Cell]) -> list[tuple[int, int]]:
    """First page of each cell's memory and the page after its last, one after the other."""
    ends = np.cumsum([area_pages(cell) for cell in cells]).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _residency(cells: Sequence[Cell], areas: Sequence[tuple[int, int]], end: int) -> Residency:
    """What a process needs: the cells' memory, and small pages from there to the page `end`."""
    small, huge = [(areas[-1][1], end)], []
    for cell, area in zip(cells, areas, strict=True):
        if cell.state in ("split", "huge"):
            huge.append(area)
        elif cell.state != "untouched":
            small.append(area)
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
    if cell.state == "lazy":
        _time(memory, cell, starts)
    if cell.state == "emptied":
        free(memory, first, pages, HALF_UNIT_PAGES)
    if cell.state == "untouched" and effect_of(cell.kind, memory.backing) != Effect.FILLS:
        starts = np.resize(starts, max(len(starts), LEAST_CALLS * cell.kind.ranges))
    if cell.state == "huge" and BACKINGS[memory.backing].host_page_bytes > PAGE_BYTES:
        return {cell: _time_refilled(memory, cell, first, starts)}
    return {cell: _time(memory, cell, starts)}


def _time_refilled(memory: GuestMemory, cell: Cell, first: int, starts: Int64s) -> float:
    """Fill the cell's memory again and again: 16 huge pages go in some microseconds."""
    times_ns = []
    for _ in range(REFILLS):
        memory.touch(_runs([(first, first + area_pages(cell))]))
        times_ns.append(_time(memory, cell, starts))
    return float(np.median(times_ns))


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
