"""What the ledger sums: columns of the requests table, and pages that one side could not see."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracer.account.clocks import ClockFit
from tracer.account.join import NOT_OBSERVED, Int64s, Joined, times_ns
from tracer.trace.manifest import SideInfo
from tracer.trace.reader import Trace
from tracer.trace.schema import Caller, Queue, Side


class Columns:
    """The requests table in numpy, as far as sums need it."""

    def __init__(self, trace: Trace) -> None:
        self._table = trace.table("requests")
        self.side = self._table.column("side").to_numpy()
        self.queue = self._table.column("queue").to_numpy()
        self.seq = self._table.column("seq").to_numpy()
        self.caller = self._table.column("caller").fill_null(int(Caller.OTHER)).to_numpy()

    def rows(self, side: Side, queue: Queue) -> npt.NDArray[np.bool_]:
        """Say of each row whether it is of this side and queue."""
        return np.asarray((self.side == side) & (self.queue == queue))

    def numbers(self, side: Side, queue: Queue) -> Int64s:
        """Row numbers of this side and queue."""
        return np.flatnonzero(self.rows(side, queue)).astype(np.int64)

    def ns(self, name: str, rows: Int64s) -> Int64s:
        """One time column of these rows; where it was not observed, long before all."""
        return times_ns(self._table, name)[rows]

    def pages_of(self, rows: Int64s) -> int:
        """Sum the pages of these rows."""
        return sum(self._table.column("pages").take(rows).to_pylist())

    def spans_ns(self, rows: npt.NDArray[np.bool_]) -> tuple[Int64s, Int64s]:
        """When the guest's driver began and ended its work on each of these requests."""
        begin, send = (times_ns(self._table, name)[rows] for name in ("begin_ns", "send_ns"))
        end = send
        for name in ("wake_ns", "free_ns", "end_ns"):
            end = np.maximum(end, times_ns(self._table, name)[rows])
        return np.where(begin == NOT_OBSERVED, send, begin), end

    def known(self, name: str, rows: npt.NDArray[np.bool_]) -> int:
        """Sum a column over the rows that have it."""
        return sum(self._table.column(name).filter(rows).drop_null().to_pylist())

    def total(self, name: str, rows: npt.NDArray[np.bool_]) -> int | None:
        """Sum a column; None if there is no row or any row lacks it: the sum is not known then."""
        column = self._table.column(name).filter(rows)
        if not len(column) or column.null_count:
            return None
        # Python integers: a hostile file's counts may sum past 64 bits.
        values: list[int] = column.to_pylist()
        return sum(values)


@dataclass(frozen=True)
class Counted:
    """Pages of requests beside a counter that was read as their recording began and ended.

    Attributes:
        pages: Of the requests in between.
        is_exact: Whether none was under way at either reading, and so half counted.
    """

    pages: int
    is_exact: bool


def counted_pages(columns: Columns, rows: npt.NDArray[np.bool_], guest: SideInfo) -> Counted:
    """Sum the pages of the requests that lie between the two readings of the kernel's counters.

    Args:
        columns: The requests.
        rows: Which of them the counter counts.
        guest: The guest's side, with the span of each reading.
    """
    first, last = columns.spans_ns(rows)
    begin = guest.begin_ns, guest.counters.get("counted_begin_ns", guest.begin_ns)
    inside = last >= begin[0]
    under_way = inside & (first <= begin[1])
    if guest.end_ns is not None:
        end = guest.end_ns, guest.counters.get("counted_end_ns", guest.end_ns)
        inside &= first <= end[1]
        under_way |= inside & (last >= end[0])
    chosen = rows.copy()
    chosen[rows] = inside
    return Counted(columns.total("pages", chosen) or 0, not bool(np.any(under_way)))


def one_sided_pages(
    trace: Trace, joined: Joined, queues: tuple[Queue, ...]
) -> dict[Side, dict[Queue, int]]:
    """Count, by queue, the pages that one side saw while the other was not recorded.

    The two recorders never start at the same instant, and the guest reports pages when it likes.

    Args:
        trace: A trace with both sides.
        joined: Its pairs and clock fit; without a fit nothing is known to be one-sided.
        queues: Those to look at.
    """
    guest, host = trace.manifest.sides["guest"], trace.manifest.sides["host"]
    found: dict[Side, dict[Queue, int]] = {Side.HOST: {}, Side.GUEST: {}}
    if joined.clock is None or guest.end_ns is None or host.end_ns is None:
        return found
    begin_ns, end_ns = joined.clock.to_host_ns(np.array([guest.begin_ns, guest.end_ns])).tolist()
    columns = Columns(trace)
    pairs = {pairs.queue: pairs for pairs in joined.queues}
    for queue in queues:
        seen = pairs.get(queue)
        rows = columns.numbers(Side.HOST, queue) if seen is None else seen.host_only
        # A request under way at either end is on both sides of it: neither kernel saw it whole.
        outside = (columns.ns("pop_ns", rows) < begin_ns) | (columns.ns("push_ns", rows) > end_ns)
        found[Side.HOST][queue] = columns.pages_of(rows[outside])
        rows = columns.numbers(Side.GUEST, queue) if seen is None else seen.guest_only
        sent_ns, woke_ns = (
            _host_ns(joined.clock, columns.ns(name, rows)) for name in ("send_ns", "wake_ns")
        )
        outside = (sent_ns < host.begin_ns) | (np.maximum(sent_ns, woke_ns) > host.end_ns)
        found[Side.GUEST][queue] = columns.pages_of(rows[outside])
    return found


def _host_ns(clock: ClockFit, guest_ns: Int64s) -> Int64s:
    seen = guest_ns != NOT_OBSERVED
    return np.where(seen, clock.to_host_ns(np.where(seen, guest_ns, 0)), NOT_OBSERVED)
