"""The guest's small records: hints and statistics become request rows, the others marks."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import pyarrow as pa

from tracer.engine.decode import batch, times
from tracer.engine.ring import Records
from tracer.trace.schema import PFN_SHIFT, REQUESTS, RUNS, Queue, Side, Wire

GUEST_EVENT = np.dtype(
    [
        ("begin_ns", np.uint64),
        ("send_ns", np.uint64),
        ("kick_ns", np.uint64),
        ("end_ns", np.uint64),
        ("value", np.uint64),
        ("length_bytes", np.uint64),
        ("tid", np.uint32),
        ("kind", np.uint16),
        ("flags", np.uint16),
    ],
    align=True,
)


class EventKind(IntEnum):
    """Enum guest_event_kind of bpf/records.h."""

    HINT_ID = 0
    HINT_BLOCK = 1
    STATS = 2
    TARGET = 3
    ACTUAL = 4
    PUFF = 5


def is_request(records: Records) -> np.ndarray:
    """Say of each record whether it is a buffer of a virtqueue."""
    return np.asarray(records["kind"] <= EventKind.STATS, np.bool_)


def event_requests(records: Records, first_seq: int) -> pa.RecordBatch:
    """Build rows of the requests table: each hint, the begin and end of hints, each answer.

    Args:
        records: GUEST_EVENT[n] that `is_request`.
        first_seq: Number of the first row.
    """
    count = len(records)
    kind, value = records["kind"], records["value"]
    is_block = (kind == EventKind.HINT_BLOCK) & (records["flags"] == 0)
    is_id = (kind == EventKind.HINT_ID) & (records["flags"] == 0)
    is_stats = kind == EventKind.STATS
    longest = np.uint64(2**31 - 1)
    length = np.minimum(records["length_bytes"] >> np.uint64(PFN_SHIFT), longest)
    pages = np.where(is_block, length, 0).astype(np.int64)
    item = RUNS.value_field.type
    items = pa.StructArray.from_arrays(
        [
            pa.array((value[is_block] >> np.uint64(PFN_SHIFT)).astype(np.uint64)),
            pa.array(pages[is_block].astype(np.int32)),
        ],
        fields=[item.field(0), item.field(1)],
    )
    starts = pa.array(np.concatenate(([0], np.cumsum(is_block))).astype(np.int32))
    return batch(
        REQUESTS,
        count,
        side=np.full(count, Side.GUEST),
        seq=np.arange(first_seq, first_seq + count),
        queue=np.where(is_stats, Queue.STATS, Queue.FREE_PAGE_HINT),
        wire=np.full(count, Wire.SCATTERLIST),
        tid=records["tid"],
        pages=pages,
        runs=pa.ListArray.from_arrays(starts, items, type=RUNS),
        hint_id=pa.array(value.astype(np.uint32), pa.uint32(), mask=~is_id),
        begin_ns=times(records["begin_ns"]),
        send_ns=times(records["send_ns"]),
        kick_ns=times(records["kick_ns"]),
        end_ns=times(records["end_ns"]),
    )
