"""What the ledger sums of the requests, in one pass that holds one batch at a time."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tracer.account.clocks import ClockFit
from tracer.account.join import NOT_OBSERVED, Int64s, Joined, times_ns
from tracer.trace.manifest import SideInfo
from tracer.trace.numbers import Numbers
from tracer.trace.reader import Trace
from tracer.trace.schema import Caller, Queue, Side

Bools = npt.NDArray[np.bool_]
Span = tuple[int, int]

_LOW = 32
"""Bits that are added up apart from those above: no sum of a batch leaves 64 bits then."""
_COLUMNS = (
    *("seq", "queue", "caller", "pages", "rejected_pages"),
    *("begin_ns", "send_ns", "kick_ns", "wake_ns", "free_ns", "end_ns", "pop_ns", "push_ns"),
    *("discard_calls", "discard_ns"),
)
"""All but the ranges, which are most of a row."""


@dataclass(slots=True)
class Sum:
    """A column, added up.

    Attributes:
        rows: How many rows there are.
        nulls: How many of them lack it.
        known: Sum over the others.
    """

    rows: int = 0
    nulls: int = 0
    known: int = 0

    @property
    def total(self) -> int | None:
        """The sum; None if there is no row or any row lacks it: the sum is not known then."""
        return self.known if self.rows and not self.nulls else None

    def add(self, column: pa.Array) -> None:
        """Add a batch's part of the column."""
        self.rows += len(column)
        self.nulls += column.null_count
        self.known += _exact(column)


def _exact(column: pa.Array) -> int:
    """Add up integers of any width: a hostile file's counts may sum past 64 bits."""
    values = column.drop_null().to_numpy()
    low = values & values.dtype.type(2**_LOW - 1)
    # A shift by the whole width is not defined; such columns have nothing above.
    high = 0 if values.itemsize * 8 <= _LOW else int((values >> values.dtype.type(_LOW)).sum())
    return (high << _LOW) + int(low.sum(dtype=np.uint64))


@dataclass(slots=True)
class QueueSums:
    """The requests of one queue as one side saw them.

    Attributes:
        pages: Pages they named; its `rows` counts them.
        rejected: Pages outside the guest's memory.
        calls: Discard system calls.
        discard_ns: Time in those.
        apart_pages: Pages of those that came while the other side was not recorded.
        net_pages: Pages that moved between the two events of `actual`.
        numbers: Their numbers; the host's alone.
    """

    pages: Sum = field(default_factory=Sum)
    rejected: Sum = field(default_factory=Sum)
    calls: Sum = field(default_factory=Sum)
    discard_ns: Sum = field(default_factory=Sum)
    apart_pages: int = 0
    net_pages: int = 0
    numbers: Numbers = field(default_factory=Numbers)


@dataclass(slots=True)
class Counted:
    """Pages of requests beside a counter that was read as their recording began and ended.

    Attributes:
        all_pages: Of every request that the counter counts.
        pages: Of those in between.
        is_exact: Whether none was under way at either reading, and so half counted.
    """

    all_pages: int = 0
    pages: int = 0
    is_exact: bool = True


class RequestSums:
    """The sums of every queue and side.

    Args:
        trace: A trace of one side or both.
        joined: Its pairs and clock fit, where it has both.
        between: The times of two events of `actual`, after and up to which requests are counted.

    Attributes:
        rows: Rows of each side.
        queues: Codes that any row has, known or not.
        counted: What the guest kernel's counters count: `inflate`, `deflate` and `migration`.
    """

    def __init__(
        self, trace: Trace, joined: Joined | None = None, between: Span | None = None
    ) -> None:
        self.rows = dict.fromkeys(Side, 0)
        self.queues: set[int] = set()
        self.counted: dict[str, Counted] = defaultdict(Counted)
        self._sums: dict[tuple[Side, int], QueueSums] = defaultdict(QueueSums)
        self._between, self._guest = between, trace.manifest.sides.get("guest")
        self._apart = None if joined is None else _Apart.of(trace, joined)
        self._has_clock = joined is not None and joined.clock is not None
        self._stats_ns: dict[Side, list[Int64s]] = {side: [] for side in Side}
        for side in Side:
            for batch in trace.batches("requests", side):
                self._add(side, batch.select(_COLUMNS))

    def of(self, side: Side, queue: Queue) -> QueueSums:
        """The sums of one side and queue."""
        return self._sums[side, queue]

    def stats_ns(self, side: Side) -> Int64s:
        """When the guest sent each of its statistics, or the host took each.

        They are kept only where the clocks are fitted.
        """
        return np.concatenate([np.empty(0, np.int64), *self._stats_ns[side]])

    def _add(self, side: Side, batch: pa.RecordBatch) -> None:
        first_row = self.rows[Side.HOST] + self.rows[Side.GUEST]
        self.rows[side] += batch.num_rows
        queues = batch.column("queue").to_numpy()
        for queue in np.unique(queues).tolist():
            self.queues.add(queue)
            mine = np.flatnonzero(queues == queue)
            rows = batch if len(mine) == batch.num_rows else batch.take(pa.array(mine))
            self._add_queue(side, queue, rows, mine + first_row)

    def _add_queue(self, side: Side, queue: int, rows: pa.RecordBatch, numbers: Int64s) -> None:
        """Add rows of one queue.

        Args:
            side: Whose.
            queue: Which.
            rows: The columns.
            numbers: Their numbers in the whole table.
        """
        sums = self._sums[side, queue]
        sums.pages.add(rows.column("pages"))
        pages = rows.column("pages").to_numpy().astype(np.int64)
        if self._apart is not None:
            outside = self._apart.outside(side, queue, rows, numbers)
            sums.apart_pages += int(pages[outside].sum())
        if self._has_clock and queue == Queue.STATS:
            times = times_ns(rows, "kick_ns" if side == Side.GUEST else "pop_ns")
            self._stats_ns[side].append(times)
        if side == Side.GUEST:
            self._count(queue, rows, pages)
            return
        sums.rejected.add(rows.column("rejected_pages"))
        sums.calls.add(rows.column("discard_calls"))
        sums.discard_ns.add(rows.column("discard_ns"))
        sums.numbers.add(rows.column("seq").to_numpy())
        if self._between is not None:
            push_ns = times_ns(rows, "push_ns")
            within = (push_ns > self._between[0]) & (push_ns <= self._between[1])
            rejected = _exact(rows.column("rejected_pages").filter(pa.array(within)))
            sums.net_pages += int(pages[within].sum()) - rejected

    def _count(self, queue: int, rows: pa.RecordBatch, pages: Int64s) -> None:
        """Add what the guest kernel's counters count."""
        if self._guest is None or queue not in (Queue.INFLATE, Queue.DEFLATE):
            return
        moved = rows.column("caller").fill_null(int(Caller.OTHER)).to_numpy() == Caller.MIGRATION
        inside, under_way = _counted(rows, self._guest)
        of_name = {Queue(queue).name.lower(): ~moved}
        if queue == Queue.INFLATE:
            of_name["migration"] = moved
        for name, chosen in of_name.items():
            counted = self.counted[name]
            counted.all_pages += int(pages[chosen].sum())
            counted.pages += int(pages[chosen & inside].sum())
            counted.is_exact &= not bool(np.any(chosen & under_way))


def _counted(rows: pa.RecordBatch, guest: SideInfo) -> tuple[Bools, Bools]:
    """Which requests lie between the readings of the kernel's counters, and which at one of them.

    Args:
        rows: Requests of the guest.
        guest: Its side, with the span of each reading.
    """
    first, last = _spans_ns(rows)
    begin = guest.begin_ns, guest.counters.get("counted_begin_ns", guest.begin_ns)
    inside = last >= begin[0]
    under_way = inside & (first <= begin[1])
    if guest.end_ns is not None:
        end = guest.end_ns, guest.counters.get("counted_end_ns", guest.end_ns)
        inside &= first <= end[1]
        under_way |= inside & (last >= end[0])
    return inside, under_way


def _spans_ns(rows: pa.RecordBatch) -> tuple[Int64s, Int64s]:
    """When the guest's driver began and ended its work on each of these requests."""
    begin, send = (times_ns(rows, name) for name in ("begin_ns", "send_ns"))
    end = send
    for name in ("wake_ns", "free_ns", "end_ns"):
        end = np.maximum(end, times_ns(rows, name))
    return np.where(begin == NOT_OBSERVED, send, begin), end


@dataclass(frozen=True, slots=True)
class _Apart:
    """Finds the requests that one side saw while the other was not recorded.

    The two recorders never start at the same instant, and the guest reports pages when it likes.
    """

    clock: ClockFit
    guest_ns: Span
    host_ns: Span
    unpaired: dict[int, tuple[Int64s, Int64s]]

    @classmethod
    def of(cls, trace: Trace, joined: Joined) -> "_Apart | None":
        """None where nothing is known to be one-sided, for want of a clock fit or of an end."""
        guest, host = (trace.manifest.sides.get(name) for name in ("guest", "host"))
        if joined.clock is None or guest is None or host is None:
            return None
        if guest.end_ns is None or host.end_ns is None:
            return None
        begin, end = joined.clock.to_host_ns(np.array([guest.begin_ns, guest.end_ns])).tolist()
        # In the order of the table, so that a batch's part of them can be found.
        unpaired = {
            int(pairs.queue): (np.sort(pairs.host_only), np.sort(pairs.guest_only))
            for pairs in joined.queues
        }
        return cls(joined.clock, (begin, end), (host.begin_ns, host.end_ns), unpaired)

    def outside(self, side: Side, queue: int, rows: pa.RecordBatch, numbers: Int64s) -> Bools:
        """Say of each of these rows whether it is such a request."""
        outside = self._host(rows) if side == Side.HOST else self._guest(rows)
        if queue not in self.unpaired:
            return outside
        only = self.unpaired[queue][0 if side == Side.HOST else 1]
        near = only[np.searchsorted(only, numbers[0]) : np.searchsorted(only, numbers[-1] + 1)]
        return np.asarray(outside & np.isin(numbers, near, assume_unique=True))

    def _host(self, rows: pa.RecordBatch) -> Bools:
        # A request under way at either end is on both sides of it: neither kernel saw it whole.
        pop_ns, push_ns = times_ns(rows, "pop_ns"), times_ns(rows, "push_ns")
        return np.asarray((pop_ns < self.guest_ns[0]) | (push_ns > self.guest_ns[1]))

    def _guest(self, rows: pa.RecordBatch) -> Bools:
        sent_ns, woke_ns = (self._to_host(times_ns(rows, name)) for name in ("send_ns", "wake_ns"))
        last_ns = np.maximum(sent_ns, woke_ns)
        return np.asarray((sent_ns < self.host_ns[0]) | (last_ns > self.host_ns[1]))

    def _to_host(self, guest_ns: Int64s) -> Int64s:
        seen = guest_ns != NOT_OBSERVED
        return np.where(seen, self.clock.to_host_ns(np.where(seen, guest_ns, 0)), NOT_OBSERVED)
