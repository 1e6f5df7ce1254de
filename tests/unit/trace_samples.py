"""Small traces by the real writer, for tests of the format."""

import os

import pyarrow as pa

from tracer.trace.manifest import Manifest, Region, SideInfo, VmInfo
from tracer.trace.schema import CALLS, REQUESTS, RESIDENCY, Queue, Side, Wire
from tracer.trace.writer import TraceWriter

GIB = 1 << 30


def request(seq, runs=((1000, 256),), **columns):
    return {
        "side": Side.HOST,
        "seq": seq,
        "queue": Queue.INFLATE,
        "wire": Wire.PFNS,
        "pages": sum(abs(pages) for _, pages in runs),
        "runs": [{"pfn": pfn, "pages": pages} for pfn, pages in runs],
        "pop_ns": 1000 * seq,
        "push_ns": 1000 * seq + 500,
        **columns,
    }


def call(request_seq, **columns):
    return {
        "side": Side.HOST,
        "request_seq": request_seq,
        "tid": 7,
        "call": 0,
        "advice": 4,
        "gpa": 1000 << 12,
        "length_bytes": 4096,
        "step": 1,
        "count": 256,
        "first_ns": 1,
        "last_ns": 2,
        "total_ns": 3,
        "worst_ns": 1,
        "errno": 0,
        **columns,
    }


def requests(rows):
    return pa.RecordBatch.from_pylist(list(rows), schema=REQUESTS)


def calls(rows):
    return pa.RecordBatch.from_pylist(list(rows), schema=CALLS)


def residency(count):
    rows = [
        {"ts_ns": 5, "pfn": i, "pages": 1, "resident": True, "huge": None} for i in range(count)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=RESIDENCY)


def described(side=Side.HOST, **columns):
    """A manifest with one side and 2 GiB of memory at 0."""
    columns = {
        "vm": VmInfo(name="vm0", pid=77, memory_bytes=2 * GIB, features=("must-tell-host",)),
        "regions": (Region("below-4g", 0, 0x7F0000000000, 2 * GIB, "anon", 4096),),
        **columns,
    }
    return Manifest(sides={side.name.lower(): SideInfo(4096, 100, 9000)}, **columns)


def write_trace(path, side=Side.HOST, batches=3, rows=20, manifest=None, **options):
    """A whole trace: `batches` batches of `rows` requests, one call for each request."""
    writer = TraceWriter(path, side, **options)
    for batch in range(batches):
        numbers = range(batch * rows, (batch + 1) * rows)
        writer.append("requests", requests(request(seq, side=side) for seq in numbers))
        if side is Side.HOST:
            writer.append("calls", calls(call(seq) for seq in numbers))
    writer.close(manifest or described(side))
    return path


def torn_trace(path, batches=3, rows=20):
    """What a killed recorder leaves; returns the path of the requests' part."""
    writer = TraceWriter(path, Side.HOST, manifest=described())
    for batch in range(batches):
        numbers = range(batch * rows, (batch + 1) * rows)
        writer.append("requests", requests(request(seq) for seq in numbers))
    os.close(writer._lock)  # no close and no abort: nothing more is written; death ends the lock
    return path / "requests" / "_host-00001.arrow.part"
