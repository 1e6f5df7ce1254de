"""Finds out what it costs to free much memory, which short measurements do not show.

Since Linux 6.7 the list grows while much is freed or taken, up to an eighth of the zone's memory
shared out among its CPUs (pcp->high_max, mm/page_alloc.c): 570 MiB of one with 9 GiB and 2 CPUs. A
page that the list takes costs a quarter less to free than one after it. What either costs depends
on where memory lay before, and how it is scattered since: a tenth more or less from one 32 MiB to
the next. So it is measured over as much of it as a run frees.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from replay import native
from replay.backings import BACKINGS
from replay.memory import GuestMemory
from replay.native.types import Operations
from replay.ranges import Runs, empty
from replay.residency import Residency
from replay.results import FreeList
from replay.worker import call_in_fresh_process, process_context
from tracer.trace.schema import PFN_SHIFT

Float64s = npt.NDArray[np.float64]
CHUNK_PAGES = 4096
CALL_PAGES = 512
FEW_PAGES = 4 * CHUNK_PAGES
"""Less is freed without regard to the list."""
MOST_PAGES = 1 << 20
"""Longer lists are not looked for."""
LEAST_STEP = 0.05
MOST_SPREAD = 0.8
TIMEOUT_NS = 120_000_000_000


@dataclass(frozen=True)
class SweepJob:
    """Memory that is freed from its end to its begin, in one fresh process.

    Args:
        title: Of the job.
        backing: A name in `BACKINGS`.
        cpu: To run on; None: any.
        pages: Of the memory; all are populated first.
        sibling_cpus: A thread of the process runs on each meanwhile.
        resting_cpu: A thread sleeps there.
    """

    title: str
    backing: str
    cpu: int | None
    pages: int
    sibling_cpus: tuple[int, ...] = ()
    resting_cpu: int | None = None


def measure_free_list(
    job: SweepJob, rounds: int, stepped: Callable[[], None] = lambda: None
) -> FreeList:
    """Measure how many pages can be freed in a run before they cost more, and what they cost.

    Args:
        job: Its `pages` are the most that a run frees; at least `FEW_PAGES`.
        rounds: Processes to measure it in; the step is looked for in their medians, chunk by chunk.
        stepped: Called after each process.

    Raises:
        AerostatError: The memory cannot be had, or a process failed.
    """
    processes = process_context()
    swept = min(job.pages, MOST_PAGES) // CHUNK_PAGES * CHUNK_PAGES
    sweeps = []
    for _ in range(rounds):
        sweeps.append(
            call_in_fresh_process(processes, sweep, replace(job, pages=swept), TIMEOUT_NS)
        )
        stepped()
    page_ns = np.median(sweeps, axis=0)
    at = step(page_ns)
    within = page_ns[:at] if at else page_ns
    return FreeList(
        int(BACKINGS[job.backing].discard),
        at * CHUNK_PAGES,
        float(np.mean(within)),
        float(np.mean(page_ns[at:])),
    )


def sweep(job: SweepJob) -> list[float]:
    """Free the memory; ns of a page, by the chunk that it is in."""
    if job.cpu is not None:
        os.sched_setaffinity(0, {job.cpu})
    spare = np.arange(job.pages, job.pages + CALL_PAGES, dtype=np.uint64)
    resident = Runs(np.zeros(1, np.int64), np.array([job.pages + CALL_PAGES]))
    size_bytes = (job.pages + CALL_PAGES) << PFN_SHIFT
    with GuestMemory(size_bytes, job.backing, 0, "never") as memory:
        memory.restore(Residency(resident, empty(), "sweep"))
        firsts = range(job.pages - CHUNK_PAGES, -1, -CHUNK_PAGES)
        with native.Siblings(job.sibling_cpus, memory.mapping, spare, job.resting_cpu):
            return [free(memory, first, CHUNK_PAGES) / CHUNK_PAGES for first in firsts]


def free(memory: GuestMemory, first: int, pages: int, call_pages: int = CALL_PAGES) -> int:
    """Free pages from the last to the first, in calls of so many at most; ns that it took."""
    begin = first + np.arange(0, pages, call_pages)[::-1]
    length = np.minimum(first + pages - begin, call_pages)
    count = len(begin)
    outcome = memory.execute(
        Operations(
            advice=np.full(count, int(BACKINGS[memory.backing].discard), np.uint8),
            offset_bytes=(begin << PFN_SHIFT).astype(np.uint64),
            length_bytes=(length << PFN_SHIFT).astype(np.uint64),
            request=np.zeros(count, np.int64),
        )
    )
    return min(outcome.wall_ns, outcome.cpu_ns)


def step(samples: Sequence[float] | Float64s) -> int:
    """Find where samples go up for good; 0 where they do not.

    At the best place their distances from the medians before and after it add up to least. The step
    must be as high as `LEAST_STEP`, and leave at most `MOST_SPREAD` of the distances from one
    median. One that is none does no harm, since what is measured beyond it costs the same.
    """
    values = np.asarray(samples, np.float64)
    if len(values) < 2:
        return 0
    spread = [_spread(values[:at]) + _spread(values[at:]) for at in range(1, len(values))]
    at = int(np.argmin(spread)) + 1
    before, after = np.median(values[:at]), np.median(values[at:])
    is_high = after > before * (1 + LEAST_STEP)
    return at if is_high and spread[at - 1] <= _spread(values) * MOST_SPREAD else 0


def _spread(values: np.ndarray) -> float:
    return float(np.abs(values - np.median(values)).sum())
