"""Fuzz target: the bytes of one segment, read as a closed one and as a torn one.

Run alone: python -m tests.fuzz.segment [CORPUS_OR_INPUT...] [libFuzzer options].
"""

import tempfile
from pathlib import Path

from tests.fuzz.engine import explore, instrumented

with instrumented("tracer.trace"):
    from tracer.trace.errors import TraceError
    from tracer.trace.schema import TABLES
    from tracer.trace.segment_reader import (
        FREE_BYTES,
        MAX_EXPANSION,
        Tail,
        closed_batches,
        torn_batches,
    )

NAMES = (*TABLES,)
_place = Path(tempfile.mkdtemp(prefix="aerostat-fuzz-")) / "segment.arrow"


def one(data: bytes) -> None:
    """Read a segment: whole, as far as it goes, or not at all, but never more than it may hold."""
    if not data:
        return
    table = NAMES[data[0] % len(NAMES)]
    _place.write_bytes(data[1:])
    allowed = MAX_EXPANSION * len(data) + FREE_BYTES
    closed = -1
    try:
        closed = rows_of(closed_batches(_place, table), allowed)
    except TraceError as problem:
        assert str(problem)
    tail = Tail()
    try:
        torn = rows_of(torn_batches(_place, table, tail), allowed)
    except TraceError as problem:
        assert str(problem)
        return
    assert closed in (-1, torn)
    assert tail.whole_bytes + tail.dropped_bytes in (0, len(data) - 1)


def rows_of(batches, allowed: int) -> int:
    rows = 0
    for batch in batches:
        batch.validate(full=True)
        assert batch.get_total_buffer_size() <= allowed
        rows += batch.num_rows
    return rows


if __name__ == "__main__":
    explore(one)
