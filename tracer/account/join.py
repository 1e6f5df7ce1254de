"""Pairs what the guest sent with what the host received, and fits the clocks."""

from collections import defaultdict
from dataclasses import dataclass, fields
from hashlib import sha256
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tracer.account.align import align, content_hashes
from tracer.account.clocks import ClockFit, fit_clocks
from tracer.trace.columns import FlatRuns, flat_runs
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
    if any(not trace.segment_files("requests", side) for side in Side):
        return Joined((), None)
    seen = _seen(trace)
    queues, times = [], []
    for queue in Queue:
        # Not popped: a queue that one side alone has is no pair.
        guest, host = seen.get((Side.GUEST, queue)), seen.get((Side.HOST, queue))
        if guest is None or host is None or queue is Queue.STATS:
            continue
        pairs, in_guest, in_host = _pair(queue, guest, host)
        if len(pairs.guest_row) or _both(pairs):
            queues.append(pairs)
            times.append(_usable(guest, host, in_guest, in_host))
        # What was read of this queue is not needed any more.
        del seen[Side.GUEST, queue], seen[Side.HOST, queue], guest, host
    columns = [_concatenate(list(parts)) for parts in zip(*times, strict=True)]
    del times
    return Joined(tuple(queues), fit_clocks(*columns) if columns else None)


def times_ns(table: pa.Table | pa.RecordBatch, name: str) -> Int64s:
    """One time column of requests, `NOT_OBSERVED` where null or not a possible time."""
    column = pc.fill_null(table.column(name), int(NOT_OBSERVED))
    values = column.to_numpy().astype(np.int64, copy=False)
    return np.where((values >= 0) & (values < _LATEST_NS), values, NOT_OBSERVED)


def notice_ns(table: pa.Table | pa.RecordBatch) -> Int64s:
    """When the guest first knew of the answer: its interrupt if seen in time, else the wake-up.

    A recorder takes the interrupt down only if the ring then held something that the driver had not
    taken yet (bpf/guest_events.bpf.c), so the push came before. kick_ns bounds nothing:
    virtqueue_kick may return before or after the device has popped.
    """
    send, ack, wake = (times_ns(table, name) for name in ("send_ns", "ack_ns", "wake_ns"))
    return np.where((ack >= send) & (ack <= wake) & (ack != NOT_OBSERVED), ack, wake)


class _Seen:
    """The requests with pages of one queue, as one side saw them, in the order in which it did.

    All that is kept of a request, 56 bytes: its ranges alone take up to 3 KiB.

    Attributes:
        row: Its row in the requests table.
        hashes: Equal where the ranges are.
        digests: The same, in pairs, and nobody can forge it.
        first_ns: When the guest sent it, or the host took it.
        last_ns: When the guest first knew of the answer, or the host gave it.
    """

    def __init__(self, parts: list["_Part"]) -> None:
        seq = np.concatenate([part.seq for part in parts])
        # A recorder's rows are in order; a copy of each column is saved.
        order = None if np.all(seq[:-1] <= seq[1:]) else np.argsort(seq, kind="stable")
        del seq

        def column(name: str) -> Any:
            values = np.concatenate([getattr(part, name) for part in parts])
            return values if order is None else values[order]

        self.row: Int64s = column("row")
        self.hashes: npt.NDArray[np.uint64] = column("hashes")
        self.digests: npt.NDArray[np.uint64] = column("digests")
        self.first_ns: Int64s = column("first_ns")
        self.last_ns: Int64s = column("last_ns")


@dataclass(frozen=True, slots=True)
class _Part:
    """A batch's share of `_Seen`, and the numbers that its side gave the requests."""

    seq: npt.NDArray[np.uint64]
    row: Int64s
    hashes: npt.NDArray[np.uint64]
    digests: npt.NDArray[np.uint64]
    first_ns: Int64s
    last_ns: Int64s

    def of(self, rows: npt.NDArray[np.bool_]) -> "_Part":
        """Keep these rows of it."""
        return _Part(*(getattr(self, item.name)[rows] for item in fields(self)))


def _seen(trace: Trace) -> dict[tuple[Side, int], _Seen]:
    """Read every request, batch by batch."""
    parts: dict[tuple[Side, int], list[_Part]] = defaultdict(list)
    first_row = 0
    for side in Side:
        for batch in trace.batches("requests", side):
            part, has_pages = _read(side, batch, first_row)
            first_row += batch.num_rows
            queues = batch.column("queue").to_numpy()
            for queue in np.unique(queues[has_pages]).tolist():
                parts[side, queue].append(part.of(has_pages & (queues == queue)))
    return {key: _Seen(parts.pop(key)) for key in list(parts)}


def _read(side: Side, batch: pa.RecordBatch, first_row: int) -> tuple[_Part, npt.NDArray[np.bool_]]:
    """Take what pairing needs of a batch; say which rows name pages."""
    runs = flat_runs(pa.chunked_array([batch.column("runs")]))
    is_guest = side == Side.GUEST
    part = _Part(
        seq=batch.column("seq").to_numpy(),
        row=np.arange(first_row, first_row + batch.num_rows, dtype=np.int64),
        hashes=content_hashes(*runs),
        digests=_digests(runs),
        first_ns=times_ns(batch, "send_ns" if is_guest else "pop_ns"),
        last_ns=notice_ns(batch) if is_guest else times_ns(batch, "push_ns"),
    )
    return part, np.diff(runs.offsets) > 0


def _digests(runs: FlatRuns) -> npt.NDArray[np.uint64]:
    """Digest each row's ranges in wire order: uint64[n, 2]."""
    items = np.empty(len(runs.pfn), np.dtype([("pfn", "<u8"), ("pages", "<i4")]))
    items["pfn"], items["pages"] = runs.pfn, runs.pages
    raw, ends = memoryview(items.tobytes()), (runs.offsets * items.itemsize).tolist()
    found = b"".join([sha256(raw[begin:end]).digest()[:16] for begin, end in pairwise(ends)])
    return np.frombuffer(found, np.uint64).reshape(-1, 2)


def _pair(queue: Queue, guest: _Seen, host: _Seen) -> tuple[Pairs, Int64s, Int64s]:
    """Pair one queue's requests; also say which of each side's they are."""
    timed = bool(np.all(guest.first_ns != NOT_OBSERVED) and np.all(host.first_ns != NOT_OBSERVED))
    in_guest, in_host = align(
        guest.hashes,
        host.hashes,
        guest.first_ns if timed else None,
        host.first_ns if timed else None,
    )
    # Equal hashes alone can be forged.
    same = np.all(guest.digests[in_guest] == host.digests[in_host], axis=1)
    in_guest, in_host = in_guest[same], in_host[same]
    pairs = Pairs(
        queue,
        guest.row[in_guest],
        host.row[in_host],
        np.delete(guest.row, in_guest),
        np.delete(host.row, in_host),
    )
    return pairs, in_guest, in_host


def _usable(
    guest: _Seen, host: _Seen, in_guest: Int64s, in_host: Int64s
) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """The four times of the pairs that have them all, in a possible order."""
    send, notice = guest.first_ns[in_guest], guest.last_ns[in_guest]
    pop, push = host.first_ns[in_host], host.last_ns[in_host]
    usable = (send != NOT_OBSERVED) & (pop != NOT_OBSERVED) & (send <= notice) & (pop <= push)
    return send[usable], pop[usable], push[usable], notice[usable]


def _both(pairs: Pairs) -> bool:
    return len(pairs.guest_only) > 0 and len(pairs.host_only) > 0


def _concatenate(parts: list[Int64s]) -> Int64s:
    return np.concatenate([np.empty(0, np.int64), *parts])
