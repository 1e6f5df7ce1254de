"""Traces of two million pages, by the recorder's own writer, in batches of the recorder's size.

The orders, from the easiest to one that no guest has:

    plain       the reference trace's inflate, again and again, each time in memory above
    returning   runs of 16 pages, shuffled; every fourth request takes an earlier one's pages back
    single      every page by itself, in random order
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from replay.ranges import Int64s
from replay.requests import load_requests
from tracer.engine import decode
from tracer.record.capture import BATCH_BYTES
from tracer.record.machine import clock_anchor, side_info
from tracer.trace.manifest import Manifest, Region
from tracer.trace.reader import open_trace
from tracer.trace.runs import encode_runs
from tracer.trace.schema import PFN_SHIFT, REQUESTS, RUNS, Queue, Side, Wire
from tracer.trace.writer import TraceWriter

PAGES = 2_000_000
PFNS = decode.PFNS
REFERENCE = Path("traces/plain.balloon")
EVERY_NS = 400_000
"""Between two requests, as in the seed."""
ROWS = BATCH_BYTES // decode.HOST_REQUEST.itemsize


def plain(pages: int) -> tuple[Int64s, Int64s]:
    """PFNs, and the queue of each request of 256 of them."""
    recorded = load_requests(open_trace(REFERENCE))
    inflates = np.flatnonzero(recorded.queue == Queue.INFLATE).tolist()
    once = np.concatenate([recorded.pfns(index) for index in inflates])
    span = int(once.max()) + 1
    times = -(-pages // len(once))
    return _whole((once + np.arange(times)[:, np.newaxis] * span).reshape(-1)[:pages])


def returning(pages: int) -> tuple[Int64s, Int64s]:
    """As `plain`; a fragmented guest that changes its mind."""
    order = np.random.default_rng(3).permutation(pages // 16)
    pfns, queue = _whole((order[:, np.newaxis] * 16 + np.arange(16)[::-1]).reshape(-1))
    by_request = pfns.reshape(-1, PFNS)
    back = np.arange(3, len(by_request), 4)
    by_request[back] = by_request[back - 2]
    queue[back] = Queue.DEFLATE
    return pfns, queue


def single(pages: int) -> tuple[Int64s, Int64s]:
    """As `plain`; nothing to merge within a request."""
    return _whole(np.random.default_rng(7).permutation(pages))


def _whole(pfns: Int64s) -> tuple[Int64s, Int64s]:
    pfns = pfns[: len(pfns) // PFNS * PFNS]
    return pfns, np.full(len(pfns) // PFNS, Queue.INFLATE, np.int64)


ORDERS: Mapping[str, Callable[[int], tuple[Int64s, Int64s]]] = {
    "plain": plain,
    "returning": returning,
    "single": single,
}


def write(path: Path, order: str, pages: int = PAGES) -> int:
    """Write a trace; return its pages, those of whole requests."""
    pfns, queue = ORDERS[order](pages)
    region = Region("ram", 0, None, (int(pfns.max()) + 1) << PFN_SHIFT, "anon", 4096)
    with TraceWriter(path, Side.HOST) as writer:
        for first in range(0, len(queue), ROWS):
            part = queue[first : first + ROWS]
            held = pfns[first * PFNS : (first + len(part)) * PFNS]
            writer.append("requests", _batch(held, part, first))
        begin = clock_anchor()
        side = side_info(begin=begin, end=begin, detail="requests", probes=(), counters={})
        writer.close(Manifest(sides={"host": side}, regions=(region,), complete=True))
    return len(pfns)


def _batch(pfns: Int64s, queue: Int64s, first: int) -> pa.RecordBatch:
    rows = len(queue)
    offsets, pfn, pages = encode_runs(pfns, np.arange(rows + 1) * PFNS)
    item = RUNS.value_field.type
    values = pa.StructArray.from_arrays(
        [pa.array(pfn.astype(np.uint64)), pa.array(pages.astype(np.int32))],
        fields=[item.field(0), item.field(1)],
    )
    runs = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values, type=RUNS)
    seq = np.arange(first, first + rows)
    return decode.batch(
        REQUESTS,
        rows,
        side=np.full(rows, Side.HOST),
        seq=seq,
        queue=queue,
        wire=np.full(rows, Wire.PFNS),
        pages=np.full(rows, PFNS),
        runs=runs,
        pop_ns=seq * EVERY_NS + 1,
        push_ns=seq * EVERY_NS + EVERY_NS // 2,
    )
