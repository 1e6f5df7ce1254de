"""A stream of requests that anybody can make again, and the process that is killed writing it."""

from __future__ import annotations

import os
import sys

import numpy as np
import pyarrow as pa

from tracer.trace.runs import encode_runs
from tracer.trace.schema import REQUESTS, RUNS, Queue, Side, Wire
from tracer.trace.storage import Storage
from tracer.trace.writer import TraceWriter

BATCH_ROWS = 2048
_PAGES = 256
_GUEST_PAGES = 1 << 21
_ROTATE_BYTES = 8 << 20


def batch_of(number: int) -> pa.RecordBatch:
    """Make one batch of the stream: requests of 256 pages each, as of a fragmented guest.

    Args:
        number: Of the batch; the same number gives the same rows.
    """
    rng = np.random.default_rng(number)
    pfns = rng.integers(0, _GUEST_PAGES, BATCH_ROWS * _PAGES)
    offsets, pfn, pages = encode_runs(pfns, np.arange(BATCH_ROWS + 1) * _PAGES)
    item = RUNS.value_field.type
    values = pa.StructArray.from_arrays(
        [pa.array(pfn.astype(np.uint64)), pa.array(pages.astype(np.int32))],
        fields=[item.field(0), item.field(1)],
    )
    seq = np.arange(number * BATCH_ROWS, (number + 1) * BATCH_ROWS)
    columns = {
        "side": np.full(BATCH_ROWS, Side.HOST),
        "seq": seq,
        "queue": np.full(BATCH_ROWS, Queue.INFLATE),
        "wire": np.full(BATCH_ROWS, Wire.PFNS),
        "pages": np.full(BATCH_ROWS, _PAGES),
        "pop_ns": 1000 * seq,
        "push_ns": 1000 * seq + 500,
    }
    arrays = [
        pa.array(columns[field.name]).cast(field.type)
        if field.name in columns
        else pa.nulls(BATCH_ROWS, field.type)
        for field in REQUESTS
    ]
    arrays[REQUESTS.get_field_index("runs")] = pa.ListArray.from_arrays(
        pa.array(offsets.astype(np.int32)), values, type=RUNS
    )
    return pa.RecordBatch.from_arrays(arrays, schema=REQUESTS)


def write_until_killed(bundle: str) -> None:
    """Write the stream, and say of each batch when it begins and when it is done."""
    with TraceWriter(bundle, Side.HOST, storage=Storage(rotate_bytes=_ROTATE_BYTES)) as writer:
        number = 0
        while True:
            batch = batch_of(number)
            sys.stdout.write("begin\n")
            sys.stdout.flush()
            writer.append("requests", batch)
            sys.stdout.write("done\n")
            sys.stdout.flush()
            number += 1


if __name__ == "__main__":
    os.nice(10)  # whoever watches has to be quicker
    write_until_killed(sys.argv[1])
