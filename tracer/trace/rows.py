"""Rows on their way into a trace: the shape they must have, one mark, and the time they span."""

import pyarrow as pa
import pyarrow.compute as pc

from tracer.trace.schema import MARKS, TABLES, Mark, Side

_TIMES = {
    "requests": ("begin_ns", "send_ns", "wake_ns", "end_ns", "pop_ns", "push_ns"),
    "calls": ("first_ns", "last_ns"),
    "samples": ("ts_ns",),
    "marks": ("since_ns", "ts_ns"),
    "residency": ("ts_ns",),
}
"""Columns that between them hold the first and the last time of a row, on one clock."""


def checked(table: str, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Put the table's own schema on a batch, or refuse it: a caller's mistake, not the data's.

    Raises:
        ValueError: The batch is not of this table, or has nulls where none may be.
    """
    expected = TABLES[table]
    if not batch.schema.equals(expected):
        raise ValueError(f"a batch for {table} has other columns: {batch.schema}")
    for column, values in zip(expected, batch.columns, strict=True):
        if not column.nullable and values.null_count:
            raise ValueError(f"a batch for {table} has nulls in {column.name}")
    return pa.RecordBatch.from_arrays(batch.columns, schema=expected)


def mark_row(side: Side, mark: Mark, ts_ns: int, **columns: int | str | None) -> pa.RecordBatch:
    """Make the one row of a mark; columns that are not given are null."""
    row = dict.fromkeys(MARKS.names) | columns
    row |= {"side": int(side), "ts_ns": ts_ns, "mark": int(mark)}
    return pa.RecordBatch.from_pylist([row], schema=MARKS)


def span_of(table: str, batch: pa.RecordBatch) -> tuple[int, int] | None:
    """Find the first and the last time that any row of a batch names.

    Returns:
        Both in the nanoseconds of the batch's clock; None if no row names a time.
    """
    found = [pc.min_max(batch[name]) for name in _TIMES[table]]
    firsts = [pair["min"].as_py() for pair in found if pair["min"].is_valid]
    lasts = [pair["max"].as_py() for pair in found if pair["max"].is_valid]
    return (min(firsts), max(lasts)) if firsts else None
