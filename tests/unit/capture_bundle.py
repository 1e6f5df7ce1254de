"""A small two-sided capture, written by the real writer, whose stages can be added up by hand.

The host's clock is the guest's plus 1,000,000 ns.
"""

import pyarrow as pa

from tracer.account.merge import merge_sides
from tracer.trace.manifest import Manifest, ProbeRecord, SideInfo
from tracer.trace.reader import open_trace
from tracer.trace.schema import CALLS, REQUESTS, Caller, Queue, Side, Wire
from tracer.trace.writer import TraceWriter

OFFSET_NS = 1_000_000
WIRES = {Queue.REPORTING: Wire.SCATTERLIST}


def request(side, seq, queue, runs, **columns):
    return {
        "side": side,
        "seq": seq,
        "queue": queue,
        "wire": WIRES.get(queue, Wire.PFNS),
        "pages": sum(abs(pages) for _, pages in runs),
        "runs": [{"pfn": pfn, "pages": pages} for pfn, pages in runs],
        **columns,
    }


def sent(seq, queue, runs, times, **columns):
    """One guest row; times are begin, send, kick, ack, wake, free, end."""
    names = ("begin_ns", "send_ns", "kick_ns", "ack_ns", "wake_ns", "free_ns", "end_ns")
    columns = {"caller": Caller.TARGET} | columns
    return request(Side.GUEST, seq, queue, runs, **dict(zip(names, times, strict=True)), **columns)


def received(seq, queue, runs, times, *, calls):
    """One host row; times are pop, push and the length of its calls, which cover the request."""
    pop_ns, push_ns, discard_ns = times
    covered = sum(abs(pages) for _, pages in runs) * 4096
    return request(
        Side.HOST,
        seq,
        queue,
        runs,
        pop_ns=pop_ns,
        push_ns=push_ns,
        discard_ns=discard_ns,
        discard_calls=calls,
        discard_bytes=covered if calls else 0,
    )


def call(request_seq, advice, count, length_bytes=4096, **columns):
    return {
        "side": Side.HOST,
        "request_seq": request_seq,
        "tid": 1,
        "call": 0,
        "advice": advice,
        "length_bytes": length_bytes,
        "step": 1 if count > 1 else 0,
        "count": count,
        "first_ns": 0,
        "last_ns": 0,
        "total_ns": 0,
        "worst_ns": 0,
        "errno": 0,
        **columns,
    }


FIRST, SECOND, BACK, REPORT = (
    [(1000, 256)],
    [(5000, -128)],
    [(4873, 128)],
    [(8192, 512), (16384, 512)],
)

GUEST_ROWS = [
    sent(0, Queue.INFLATE, FIRST, (10_000, 20_000, 22_000, 57_000, 60_000, None, 65_000)),
    sent(
        1,
        Queue.INFLATE,
        SECOND,
        (80_000, 295_000, 297_000, 345_000, 350_000, None, 357_000),
        puff_ns=200_000,
    ),
    sent(2, Queue.DEFLATE, BACK, (400_000, 404_000, 405_000, 430_000, 432_000, 440_000, 443_000)),
    sent(
        3,
        Queue.REPORTING,
        REPORT,
        (None, 500_000, 501_000, None, 530_000, None, None),
        caller=Caller.REPORTING,
    ),
]
HOST_ROWS = [
    received(10, Queue.INFLATE, FIRST, (1_025_000, 1_055_000, 18_000), calls=256),
    received(11, Queue.INFLATE, SECOND, (1_300_000, 1_340_000, 22_000), calls=128),
    received(12, Queue.DEFLATE, BACK, (1_410_000, 1_425_000, 5_000), calls=128),
    received(13, Queue.REPORTING, REPORT, (1_508_000, 1_520_000, 9_000), calls=2),
]
DONTNEED, WILLNEED = 4, 3
CALL_ROWS = [
    call(10, DONTNEED, 256),
    call(11, DONTNEED, 128),
    call(12, WILLNEED, 128),
    call(13, DONTNEED, 1, 512 * 4096),
    call(13, DONTNEED, 1, 512 * 4096),
]
GUEST_COUNTERS = {
    "vmstat_balloon_inflate_begin": 1000,
    "vmstat_balloon_inflate_end": 1384,
    "vmstat_balloon_deflate_begin": 50,
    "vmstat_balloon_deflate_end": 178,
}
HOST_COUNTERS = {
    "actual_bytes_begin": 2 << 30,
    "actual_bytes_end": (2 << 30) - 256 * 4096,
    "lost_requests": 0,
    "lost_calls": 0,
}


def probe(point, cost_ns, status="attached"):
    return ProbeRecord(point=point, way="uprobe", target=point, status=status, cost_ns=cost_ns)


def write_side(
    path,
    side,
    rows,
    *,
    calls=(),
    counters=None,
    probes=(),
    losses=(),
    page_size_bytes=4096,
    end_ns=2_000_000,
    regions=(),
):
    """Write one side's bundle and return its path."""
    name = side.name.lower()
    info = SideInfo(
        page_size_bytes=page_size_bytes,
        begin_ns=0,
        end_ns=end_ns,
        counters=dict(counters or {}),
        probes=tuple(probes),
    )
    writer = TraceWriter(path, side)
    for table, schema, items in (("requests", REQUESTS, rows), ("calls", CALLS, calls)):
        if items:
            writer.append(table, pa.RecordBatch.from_pylist(list(items), schema=schema))
    for loss in losses:
        writer.loss(loss.stream, loss.count, loss.since_ns, loss.until_ns, cause=loss.cause)
    writer.close(Manifest(sides={name: info}, regions=regions))
    return path


def write_host(path, rows=HOST_ROWS, **changes):
    return write_side(
        path, Side.HOST, rows, **{"calls": CALL_ROWS, "counters": HOST_COUNTERS} | changes
    )


def write_guest(path, rows=GUEST_ROWS, **changes):
    return write_side(path, Side.GUEST, rows, **{"counters": GUEST_COUNTERS} | changes)


def both(tmp_path, *, host=None, guest=None):
    """Both sides as one trace; `host` and `guest` change what is written of each."""
    path = write_host(tmp_path / "vm.balloon", **(host or {}))
    merge_sides(path, write_guest(tmp_path / "guest.balloon", **(guest or {})))
    return open_trace(path)
