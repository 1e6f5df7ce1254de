"""What of a trace decides how much a strategy can gain: run lengths and residency."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tracer.trace.reader import Trace
from tracer.trace.schema import Queue, Side

Int64s = npt.NDArray[np.int64]
_FEW_LENGTHS = 1 << 16
_PAGE_QUEUES = (Queue.INFLATE, Queue.DEFLATE, Queue.FREE_PAGE_HINT, Queue.REPORTING)
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
    seen: dict[tuple[Queue, Side], _Lengths] = defaultdict(_Lengths)
    for side in Side:
        for batch in trace.batches("requests", side):
            queues = batch.column("queue").to_numpy()
            for queue in _PAGE_QUEUES:
                mine = queues == queue
                if mine.any():
                    seen[queue, side].add(batch.column("runs").filter(pa.array(mine)))
    found = []
    for queue in _PAGE_QUEUES:
        sides = [side for side in (Side.HOST, Side.GUEST) if seen[queue, side].runs]
        if sides:
            found.append(_summary(queue, sides[0], seen[queue, sides[0]]))
    return tuple(found)


class _Lengths:
    """How many runs there are of each length, in pages, which is negative where they fall.

    Attributes:
        requests: That they are of.
        runs: In all; those of no pages are left out.
    """

    def __init__(self) -> None:
        self.requests = self.runs = 0
        self._parts: list[tuple[Int64s, Int64s]] = []
        self._merged = self._waiting = 0

    def add(self, runs: pa.ListArray) -> None:
        """Add the runs of a batch of requests."""
        self.requests += len(runs)
        pages = runs.flatten().field("pages").to_numpy().astype(np.int64)
        lengths, counts = np.unique(pages[pages != 0], return_counts=True)
        self.runs += int(counts.sum())
        self._parts.append((lengths, counts))
        self._waiting += len(lengths)
        # A trace may have no two runs alike: they are merged when as many wait as there are.
        if self._waiting > max(self._merged, _FEW_LENGTHS):
            self.merged()

    def merged(self) -> tuple[Int64s, Int64s]:
        """Every length once, rising, and how many runs have it."""
        every, of_each = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        lengths, place = np.unique(every, return_inverse=True)
        counts = np.zeros(len(lengths), np.int64)
        np.add.at(counts, place.reshape(-1), of_each)
        self._parts, self._merged, self._waiting = [(lengths, counts)], len(lengths), 0
        return lengths, counts


def _summary(queue: Queue, side: Side, seen: _Lengths) -> RunLengths:
    lengths, counts = seen.merged()
    order = np.argsort(np.abs(lengths), kind="stable")
    lengths, counts = lengths[order], counts[order]
    sizes = np.abs(lengths)
    covered = sizes * counts
    reach = np.cumsum(covered)
    pages = int(reach[-1])
    return RunLengths(
        queue=queue,
        side=side,
        requests=seen.requests,
        runs=seen.runs,
        pages=pages,
        median_pages=int(sizes[np.searchsorted(reach, pages / 2)]),
        longest_pages=int(sizes[-1]),
        falling_percent=100.0 * int(covered[lengths < 0].sum()) / pages,
        huge_percent=100.0 * int(covered[sizes >= HUGE_PAGES].sum()) / pages,
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
