"""Pairs what the guest sent with what the host received, and fits the clocks."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tracer.account.align import align, content_hashes
from tracer.account.clocks import ClockFit, fit_clocks
from tracer.trace.reader import Trace
from tracer.trace.schema import Queue, Side

Int64s = npt.NDArray[np.int64]

NOT_OBSERVED = np.iinfo(np.int64).min
"""Stands for null in integer columns while they are in numpy."""
_LATEST_NS = 1 << 60
"""Times beyond this (36 years of uptime) are nobody's clock; they are taken as not observed, so
that sums and differences of times stay within 64 bits whatever a trace file says."""


@dataclass(frozen=True)
class Pairs:
    """The requests of one queue, paired.

    Attributes:
        queue: The queue.
        guest_row: Rows of the guest's requests in the requests table, in order.
        host_row: The host's row of the same request, in order, as long as `guest_row`.
        guest_only: Rows of the guest for which no host row was found.
        host_only: Rows of the host for which no guest row was found.
    """

    queue: Queue
    guest_row: Int64s
    host_row: Int64s
    guest_only: Int64s
    host_only: Int64s


@dataclass(frozen=True)
class Joined:
    """Both sides of a trace, paired request by request.

    Attributes:
        queues: One entry for each queue in which both sides saw a request with pages.
        clock: The guest's clock in the host's, or None where no pair has all four times.
    """

    queues: tuple[Pairs, ...]
    clock: ClockFit | None

    @property
    def guest_row(self) -> Int64s:
        """Guest rows of all pairs, queue after queue."""
        return _concatenate([pairs.guest_row for pairs in self.queues])

    @property
    def host_row(self) -> Int64s:
        """Host rows of all pairs, queue after queue."""
        return _concatenate([pairs.host_row for pairs in self.queues])


def join(trace: Trace) -> Joined:
    """Pair the guest's and the host's requests of a trace.

    Two rows are a pair only if they name the same pages in the same wire order on the same queue,
    and pairs do not cross. Rows that one side lost or saw alone stay unpaired. Takes n log n time.

    Args:
        trace: A trace; with one side only nothing is paired.

    Returns:
        Row numbers into `trace.table("requests")`, and the clock fit.
    """
    table = trace.table("requests")
    requests = _Requests(table)
    found = [requests.pair(queue) for queue in Queue if queue is not Queue.STATS]
    queues = tuple(pairs for pairs in found if len(pairs.guest_row) or _both(pairs))
    guest = _concatenate([pairs.guest_row for pairs in queues])
    host = _concatenate([pairs.host_row for pairs in queues])
    return Joined(queues, _fit(table, guest, host))


def times_ns(table: pa.Table, name: str) -> Int64s:
    """One time column of the requests table, `NOT_OBSERVED` where null or not a possible time."""
    column = pc.fill_null(table.column(name), int(NOT_OBSERVED))
    values = column.to_numpy().astype(np.int64, copy=False)
    return np.where((values >= 0) & (values < _LATEST_NS), values, NOT_OBSERVED)


def notice_ns(table: pa.Table) -> Int64s:
    """When the guest first knew of the answer: its interrupt if seen in time, else the wake-up.

    A recorder takes the interrupt down only if the ring then held something that the driver had not
    taken yet (bpf/guest_events.bpf.c), so the push came before. kick_ns bounds nothing:
    virtqueue_kick may return before or after the device has popped.
    """
    send, ack, wake = (times_ns(table, name) for name in ("send_ns", "ack_ns", "wake_ns"))
    return np.where((ack >= send) & (ack <= wake) & (ack != NOT_OBSERVED), ack, wake)


class _Requests:
    """Columns of the requests table that pairing needs."""

    def __init__(self, table: pa.Table) -> None:
        self.side = table.column("side").to_numpy()
        self.queue = table.column("queue").to_numpy()
        self.seq = table.column("seq").to_numpy()
        self.send_ns = times_ns(table, "send_ns")
        self.pop_ns = times_ns(table, "pop_ns")
        runs = table.column("runs").combine_chunks()
        runs = runs.chunk(0) if isinstance(runs, pa.ChunkedArray) else runs
        lengths = pc.fill_null(pc.list_value_length(runs), 0).to_numpy().astype(np.int64)
        self.offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        items = runs.flatten()
        self.pfn = items.field("pfn").to_numpy()
        self.pages = items.field("pages").to_numpy()
        self.hashes = content_hashes(self.offsets, self.pfn, self.pages)

    def pair(self, queue: Queue) -> Pairs:
        """Pair one queue's rows."""
        guest, host = self._rows(Side.GUEST, queue), self._rows(Side.HOST, queue)
        send_ns, pop_ns = self.send_ns[guest], self.pop_ns[host]
        timed = bool(np.all(send_ns != NOT_OBSERVED) and np.all(pop_ns != NOT_OBSERVED))
        in_guest, in_host = align(
            self.hashes[guest],
            self.hashes[host],
            send_ns if timed else None,
            pop_ns if timed else None,
        )
        same = self._same_content(guest[in_guest], host[in_host])
        in_guest, in_host = in_guest[same], in_host[same]
        return Pairs(
            queue,
            guest[in_guest],
            host[in_host],
            np.delete(guest, in_guest),
            np.delete(host, in_host),
        )

    def _rows(self, side: Side, queue: Queue) -> Int64s:
        """Rows with pages of one side and queue, in the order in which that side saw them."""
        rows = np.flatnonzero((self.side == side) & (self.queue == queue))
        rows = rows[np.diff(self.offsets)[rows] > 0]
        return rows[np.argsort(self.seq[rows], kind="stable")].astype(np.int64)

    def _same_content(self, guest: Int64s, host: Int64s) -> npt.NDArray[np.bool_]:
        """Compare the runs of row pairs in full: equal hashes alone can be forged."""
        lengths = self.offsets[guest + 1] - self.offsets[guest]
        same = lengths == self.offsets[host + 1] - self.offsets[host]
        guest, host, lengths = guest[same], host[same], lengths[same]
        starts = np.cumsum(lengths) - lengths
        step = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
        left = np.repeat(self.offsets[guest], lengths) + step
        right = np.repeat(self.offsets[host], lengths) + step
        differs = (self.pfn[left] != self.pfn[right]) | (self.pages[left] != self.pages[right])
        rows = np.repeat(np.flatnonzero(same), lengths)
        same[rows[differs]] = False
        return np.asarray(same, np.bool_)


def _fit(table: pa.Table, guest: Int64s, host: Int64s) -> ClockFit | None:
    """Fit the clocks on the pairs that have all four times in a possible order."""
    send, notice = times_ns(table, "send_ns")[guest], notice_ns(table)[guest]
    pop, push = times_ns(table, "pop_ns")[host], times_ns(table, "push_ns")[host]
    usable = (send != NOT_OBSERVED) & (pop != NOT_OBSERVED) & (send <= notice) & (pop <= push)
    return fit_clocks(send[usable], pop[usable], push[usable], notice[usable])


def _both(pairs: Pairs) -> bool:
    return len(pairs.guest_only) > 0 and len(pairs.host_only) > 0


def _concatenate(parts: list[Int64s]) -> Int64s:
    return np.concatenate([np.empty(0, np.int64), *parts])
