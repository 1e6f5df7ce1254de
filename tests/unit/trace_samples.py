"""Small traces by the real writer, for tests of the format."""

import os

import numpy as np
import pyarrow as pa

from tracer.trace.manifest import Manifest, Region, SideInfo, VmInfo
from tracer.trace.schema import CALLS, REQUESTS, RESIDENCY, Queue, Side, Wire
from tracer.trace.storage import Storage
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


def large_batch(first_seq, rows):
    """Requests whose runs do not compress, 20 KB each, to fill disks and budgets with."""
    rng = np.random.default_rng(first_seq)
    lists = [[(int(pfn), 1) for pfn in rng.integers(0, 1 << 19, 5000)] for _ in range(rows)]
    return requests(request(first_seq + i, runs) for i, runs in enumerate(lists))


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


def tell(writer, losses):
    """Hand losses to a writer."""
    for loss in losses:
        writer.loss(loss.stream, loss.count, loss.since_ns, loss.until_ns, cause=loss.cause)


def write_trace(
    path, side=Side.HOST, batches=3, rows=20, manifest=None, force=False, losses=(), **storage
):
    """A whole trace: `batches` batches of `rows` requests, one call for each request."""
    writer = TraceWriter(path, side, force=force, storage=Storage(**storage))
    for batch in range(batches):
        numbers = range(batch * rows, (batch + 1) * rows)
        writer.append("requests", requests(request(seq, side=side) for seq in numbers))
        if side is Side.HOST:
            writer.append("calls", calls(call(seq) for seq in numbers))
    tell(writer, losses)
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
