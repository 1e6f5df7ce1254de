"""What of a trace decides how much a strategy can gain: run lengths and residency."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tracer.trace.reader import Trace
from tracer.trace.schema import Queue, Side

Int64s = npt.NDArray[np.int64]

HUGE_PAGES = 512
"""4 KiB pages in a 2 MiB huge page."""


@dataclass(frozen=True)
class RunLengths:
    """How the requests of one queue and side name their pages.

    Attributes:
        queue: The queue.
        side: The side whose rows were counted.
        requests: Requests that named pages.
        runs: Runs of PFNs that rise or fall by one.
        pages: 4 KiB pages in them.
        median_pages: Half of all pages are in runs at least this long.
        longest_pages: Length of the longest run.
        falling_percent: Share of pages in runs that fall.
        huge_percent: Share of pages in runs of 2 MiB or more.
    """

    queue: Queue
    side: Side
    requests: int
    runs: int
    pages: int
    median_pages: int
    longest_pages: int
    falling_percent: float
    huge_percent: float


@dataclass(frozen=True)
class Residency:
    """What of guest memory had a host page when the balloon began to move.

    Attributes:
        pages: 4 KiB pages looked at.
        resident_pages: Those with a host page.
        huge_pages: Those within a huge page, in 4 KiB pages; None if not observed.
    """

    pages: int
    resident_pages: int
    huge_pages: int | None


def run_lengths(trace: Trace) -> tuple[RunLengths, ...]:
    """Measure the runs of every queue that moved pages; host rows where there are any.

    Args:
        trace: A trace of one side or both.
    """
    table = trace.table("requests")
    queues, sides = table.column("queue").to_numpy(), table.column("side").to_numpy()
    found = []
    for queue in (Queue.INFLATE, Queue.DEFLATE, Queue.FREE_PAGE_HINT, Queue.REPORTING):
        for side in (Side.HOST, Side.GUEST):
            rows = table.filter(pa.array((queues == queue) & (sides == side)))
            lengths = _lengths(rows)
            if len(lengths):
                found.append(_summary(queue, side, rows.num_rows, lengths))
                break
    return tuple(found)


def _lengths(rows: pa.Table) -> Int64s:
    """Pages of each run, negative where the run falls."""
    chunks = [chunk.flatten().field("pages") for chunk in rows.column("runs").chunks]
    arrays = [chunk.to_numpy(zero_copy_only=False) for chunk in chunks]
    lengths: Int64s = np.concatenate([np.empty(0, np.int64), *arrays]).astype(np.int64)
    return np.extract(lengths != 0, lengths)


def _summary(queue: Queue, side: Side, requests: int, lengths: Int64s) -> RunLengths:
    sizes = np.sort(np.abs(lengths))
    reach = np.cumsum(sizes)
    pages = int(reach[-1])
    return RunLengths(
        queue=queue,
        side=side,
        requests=requests,
        runs=len(lengths),
        pages=pages,
        median_pages=int(sizes[np.searchsorted(reach, pages / 2)]),
        longest_pages=int(sizes[-1]),
        falling_percent=100.0 * int(-lengths[lengths < 0].sum()) / pages,
        huge_percent=100.0 * int(sizes[sizes >= HUGE_PAGES].sum()) / pages,
    )


def residency(trace: Trace) -> Residency | None:
    """Sum the first residency snapshot; None if none was taken.

    Args:
        trace: Any trace.
    """
    table = trace.table("residency")
    if table.num_rows == 0:
        return None
    when = table.column("ts_ns").to_numpy()
    table = table.filter(pa.array(when == when.min()))
    pages = table.column("pages").to_numpy().astype(np.float64)
    resident = table.column("resident").to_numpy().astype(bool)
    huge = table.column("huge")
    known = huge.null_count < table.num_rows
    is_huge = huge.fill_null(False).to_numpy().astype(bool)
    return Residency(
        pages=int(pages.sum()),
        resident_pages=int(pages[resident].sum()),
        huge_pages=int(pages[is_huge].sum()) if known else None,
    )
