"""What the host's rows say of moved pages beside its requests: system calls, and `actual`."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracer.account.ledger_columns import Columns
from tracer.trace.reader import Trace
from tracer.trace.schema import PAGE_BYTES, Call, Mark, Queue, Side

_PUNCH_HOLE = 2
"""FALLOC_FL_PUNCH_HOLE, include/uapi/linux/falloc.h, since 2.6.38."""
_GIVES_BACK = (4, 8, 9, 24)
"""MADV_DONTNEED, FREE (4.5), REMOVE, DONTNEED_LOCKED (5.18): asm-generic/mman-common.h."""
_WILLNEED = 3
_DISCARDED = (Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING)


@dataclass(frozen=True)
class Discards:
    """The VMM's system calls for one queue's requests.

    Attributes:
        calls: How many, failed ones included; None if not observed.
        total_ns: Time in them; None if not observed.
    """

    calls: int | None
    total_ns: int | None


@dataclass(frozen=True)
class ActualChange:
    """The device's `actual` at two times, and the requests between them, in 4 KiB pages.

    Attributes:
        change_pages: Of `actual`, inflated less deflated pages.
        net_pages: Pages of the requests that ended in between, inflates less deflates, without
            those outside the guest's memory; None where requests are missing.
    """

    change_pages: int
    net_pages: int | None


def captured_discards(trace: Trace) -> dict[Queue, Discards]:
    """Count the VMM's own discard calls per queue: what a faithful replay has to reproduce.

    Args:
        trace: A trace with a host side; without one every count is None.

    Returns:
        Calls and time of each queue that moves pages.
    """
    columns = Columns(trace)
    found = {}
    for queue in _DISCARDED:
        rows = columns.rows(Side.HOST, queue)
        found[queue] = Discards(
            columns.total("discard_calls", rows), columns.total("discard_ns", rows)
        )
    return found


def discarded_pages(trace: Trace, columns: Columns, queue: Queue) -> int | None:
    """Count the pages that successful calls covered for a queue's requests.

    Args:
        trace: A trace with a host side.
        columns: Its requests.
        queue: Of deflates only what was advised as needed counts.

    Returns:
        4 KiB pages, None if calls were not observed.
    """
    rows = columns.rows(Side.HOST, queue)
    if columns.total("discard_calls", rows) is None:
        return None
    by_kind = _bytes_by_kind(trace, columns.seq[rows], deflate=queue is Queue.DEFLATE)
    if by_kind:
        # Shared memory takes two calls a page, hole punch and madvise: count the page once.
        return max(by_kind) // PAGE_BYTES
    total = columns.total("discard_bytes", rows)
    return None if total is None else total // PAGE_BYTES


def _bytes_by_kind(trace: Trace, seqs: npt.NDArray[np.uint64], *, deflate: bool) -> list[int]:
    """Bytes covered by each kind of successful call that belongs to these requests."""
    calls = trace.table("calls")
    call, advice, error = (calls.column(c).to_numpy() for c in ("call", "advice", "errno"))
    request = calls.column("request_seq")
    linked = np.isin(request.fill_null(0).to_numpy(), seqs)
    linked &= ~request.is_null().to_numpy() & (error == 0)
    linked &= calls.column("side").to_numpy() == Side.HOST
    # In doubles: exact to 2**53 pages, and a hostile length cannot wrap round.
    length = calls.column("length_bytes").to_numpy().astype(np.float64)
    covered = length * calls.column("count").to_numpy()
    punch = (call == Call.FALLOCATE) & (advice & _PUNCH_HOLE != 0)
    kinds = [(call != Call.FALLOCATE) & (advice == value) for value in _GIVES_BACK]
    if deflate:
        kinds, punch = [], (call != Call.FALLOCATE) & (advice == _WILLNEED)
    sums = [covered[linked & kind].sum() for kind in [punch, *kinds] if np.any(linked & kind)]
    return [int(value) for value in sums]


def actual_between(trace: Trace, columns: Columns) -> ActualChange | None:
    """Read `actual` from the events that the recorder saw, where it could not ask the device.

    A guest writes `actual` once the device has answered (virtio_balloon's work function, since
    2.6.25), so the requests between two of its writes are those whose answer lies between them.

    Args:
        trace: A trace with a host side.
        columns: Its requests.

    Returns:
        None where fewer than two events were seen; QEMU's event goes by what is left to the guest.
    """
    side = trace.manifest.sides.get("host")
    if side is None:
        return None
    marks = trace.table("marks", Side.HOST)
    actual = (marks.column("mark").to_numpy() == Mark.ACTUAL) & (
        marks.column("ts_ns").to_numpy() >= side.begin_ns
    )
    events = marks.filter(actual).select(["ts_ns", "value"]).drop_null().to_pylist()
    if len(events) < 2:
        return None
    first, last = (pick(events, key=lambda event: event["ts_ns"]) for pick in (min, max))
    net = 0
    for queue, sign in ((Queue.INFLATE, 1), (Queue.DEFLATE, -1)):
        rows = columns.rows(Side.HOST, queue)
        push_ns = columns.ns("push_ns", columns.numbers(Side.HOST, queue))
        rows[rows] = (push_ns > first["ts_ns"]) & (push_ns <= last["ts_ns"])
        pages = (columns.total("pages", rows) or 0) - columns.known("rejected_pages", rows)
        net += sign * pages
    change = (first["value"] - last["value"]) // PAGE_BYTES
    return ActualChange(change, None if trace.losses else net)
