"""Traces of a flood of single calls, by the recorder's own writer, in batches of its own size.

A guest inflates pages one by one in no order, so that each is a run and a call of its own: the most
rows that a page can have. One request in eight gives an earlier one's pages back, so that contents
repeat and the queue changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from replay.ranges import Int64s
from tracer.engine import decode
from tracer.record.capture import BATCH_BYTES
from tracer.record.machine import clock_anchor, side_info
from tracer.trace.manifest import Manifest, Region
from tracer.trace.schema import CALLS, PFN_SHIFT, REQUESTS, RUNS, Mark, Queue, Side, Wire
from tracer.trace.writer import TraceWriter

PFNS = decode.PFNS
ROWS = BATCH_BYTES // decode.HOST_REQUEST.itemsize
RETURNS = 8
MEMORY_PAGES = 1 << 24
EVERY_NS = 500_000
GUEST_AHEAD_NS = 7_000_000_000
"""The guest's clock less the host's."""
LOST_EVERY = 1009
"""Of the requests, one side lacks so many, and the other side others."""
DONTNEED, WILLNEED = 4, 3


def write_host(path: Path, requests: int, *, calls: bool = True, lossy: bool = False) -> Path:
    """Write what the host's recorder saw of a flood of requests of 256 pages.

    Args:
        path: The bundle to make.
        requests: How many.
        calls: Whether each page has a call.
        lossy: Whether some requests are missing, as they are where a recorder starts late.
    """
    with TraceWriter(path, Side.HOST) as writer:
        writer.mark(Mark.ATTACH, 0)
        for seq, queue, pfns in _parts(requests):
            kept = seq % LOST_EVERY != 0 if lossy else np.full(len(seq), True)
            writer.append("requests", _received(seq[kept], queue[kept], pfns[kept], calls=calls))
            if calls:
                # 256 pages of 8,192 calls are a batch of the recorder's: 128 bytes a record.
                for first in range(0, len(seq), 32):
                    step = slice(first, first + 32)
                    writer.append("calls", _made(seq[step], queue[step], pfns[step]))
        writer.close(_manifest("host", {}))
    return path


def write_guest(path: Path, requests: int) -> Path:
    """Write what the guest's recorder saw of it; it missed a few requests."""
    moved = {Queue.INFLATE: 0, Queue.DEFLATE: 0}
    with TraceWriter(path, Side.GUEST) as writer:
        for seq, queue, pfns in _parts(requests):
            kept = seq % LOST_EVERY != LOST_EVERY // 2
            for code in moved:
                moved[code] += PFNS * int(np.count_nonzero(queue == code))
            writer.append("requests", _sent(seq[kept], queue[kept], pfns[kept]))
        counters = {f"vmstat_balloon_{code.name.lower()}_begin": 0 for code in moved}
        counters |= {f"vmstat_balloon_{code.name.lower()}_end": n for code, n in moved.items()}
        writer.close(_manifest("guest", counters))
    return path


def _parts(requests: int) -> Iterator[tuple[Int64s, Int64s, Int64s]]:
    """Numbers, queues and PFNs of a batch of requests after the other."""
    rng = np.random.default_rng(11)
    for first in range(0, requests, ROWS):
        seq = np.arange(first, min(first + ROWS, requests), dtype=np.int64)
        pfns = rng.integers(0, MEMORY_PAGES, (len(seq), PFNS))
        back = np.flatnonzero(seq % RETURNS == RETURNS - 1)
        pfns[back] = pfns[np.maximum(back - 3, 0)]
        queue = np.where(seq % RETURNS == RETURNS - 1, int(Queue.DEFLATE), int(Queue.INFLATE))
        yield seq, queue, pfns


def _received(seq: Int64s, queue: Int64s, pfns: Int64s, *, calls: bool) -> pa.RecordBatch:
    pop_ns = seq * EVERY_NS + 20_000
    seen = {
        "discard_calls": np.full(len(seq), PFNS),
        "discard_ns": np.full(len(seq), 200_000),
        "discard_bytes": np.full(len(seq), PFNS * 4096),
    }
    return _requests(
        Side.HOST,
        seq + 1,
        queue,
        pfns,
        pop_ns=pop_ns,
        push_ns=pop_ns + 300_000 + seq % 977,
        **(seen if calls else {}),
    )


def _sent(seq: Int64s, queue: Int64s, pfns: Int64s) -> pa.RecordBatch:
    send_ns = seq * EVERY_NS + GUEST_AHEAD_NS
    return _requests(
        Side.GUEST,
        seq + 1,
        queue,
        pfns,
        begin_ns=send_ns - 40_000,
        send_ns=send_ns,
        wake_ns=send_ns + 340_000 + seq % 977,
        end_ns=send_ns + 350_000,
    )


def _requests(
    side: Side, seq: Int64s, queue: Int64s, pfns: Int64s, **columns: Int64s
) -> pa.RecordBatch:
    item = RUNS.value_field.type
    flat = pfns.reshape(-1).astype(np.uint64)
    values = pa.StructArray.from_arrays(
        [pa.array(flat), pa.array(np.ones(len(flat), np.int32))],
        fields=[item.field(0), item.field(1)],
    )
    offsets = np.arange(len(seq) + 1, dtype=np.int32) * PFNS
    return decode.batch(
        REQUESTS,
        len(seq),
        side=np.full(len(seq), int(side)),
        seq=seq,
        queue=queue,
        wire=np.full(len(seq), int(Wire.PFNS)),
        pages=np.full(len(seq), PFNS),
        runs=pa.ListArray.from_arrays(pa.array(offsets), values, type=RUNS),
        **columns,
    )


def _made(seq: Int64s, queue: Int64s, pfns: Int64s) -> pa.RecordBatch:
    """One call for each page."""
    rows = pfns.size
    place = pfns.reshape(-1) << 12
    first_ns = np.repeat(seq * EVERY_NS + 25_000, PFNS) + np.tile(np.arange(PFNS) * 1000, len(seq))
    took_ns = 300 + place % 509
    advice = np.where(queue == Queue.DEFLATE, WILLNEED, DONTNEED)
    return decode.batch(
        CALLS,
        rows,
        side=np.full(rows, int(Side.HOST)),
        request_seq=np.repeat(seq + 1, PFNS),
        tid=np.full(rows, 77),
        call=np.zeros(rows, np.int64),
        advice=np.repeat(advice, PFNS),
        hva=place + (1 << 46),
        gpa=place,
        length_bytes=np.full(rows, 4096),
        step=np.zeros(rows, np.int64),
        count=np.ones(rows, np.int64),
        first_ns=first_ns,
        last_ns=first_ns + took_ns,
        total_ns=took_ns,
        worst_ns=took_ns,
        errno=np.zeros(rows, np.int64),
    )


def _manifest(side: str, counters: dict[str, int]) -> Manifest:
    begin = clock_anchor()
    info = side_info(begin=(0, begin[1]), end=begin, detail="calls", probes=(), counters=counters)
    memory = Region("ram", 0, None, MEMORY_PAGES << PFN_SHIFT, "anon", 4096)
    regions = (memory,) if side == "host" else ()
    return Manifest(sides={side: info}, regions=regions, complete=True)
