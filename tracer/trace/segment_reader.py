"""Reads the record batches of one segment, closed or torn, whoever wrote it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tracer.trace.errors import TornTraceError, TraceError, salvage_remedy
from tracer.trace.ipc_bounds import Block, claim, footer_blocks, require_schema
from tracer.trace.layout import MAX_SEGMENT_BYTES, read_regular
from tracer.trace.schema import TABLES

_PREFIX_BYTES = 8
"""Continuation mark and length before each message's metadata."""
_MAGIC_BYTES = 8
"""An IPC file is this magic, a stream, and a footer; skip it and a torn file reads as a stream."""
MAX_EXPANSION = 64
FREE_BYTES = 64 << 20
"""A segment may decode to MAX_EXPANSION times its size plus FREE_BYTES. Real ones stay below 10."""
_DAMAGE = (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError)
"""All that pyarrow raises over bytes that are not what they claim."""


@dataclass(slots=True)
class Tail:
    """What was found behind the last whole batch.

    Attributes:
        whole_bytes: Bytes of the file up to the end of the last whole batch.
        dropped_bytes: Bytes behind it that are no batch.
        reason: Why reading ended; empty at a regular end.
    """

    whole_bytes: int = 0
    dropped_bytes: int = 0
    reason: str = ""


def closed_batches(
    path: Path, table: str, *, newer_minor: bool = False
) -> Iterator[pa.RecordBatch]:
    """Read a closed segment, batch by batch.

    Args:
        path: The segment.
        table: Whose columns it should have.
        newer_minor: Whether the trace may have columns that this aerostat does not know.

    Yields:
        Checked batches in the schema of the table.

    Raises:
        TraceError: Anything in the file is not as it should be.
    """
    raw = memoryview(read_regular(path, MAX_SEGMENT_BYTES))
    blocks: list[Block] = []
    stream = _Stream(raw, path, table, newer_minor)
    try:
        for block, batch in stream.batches():
            blocks.append(block)
            yield batch
        stream.check_footer(blocks)
    except _DAMAGE as problem:
        raise _damaged(path, problem) from problem


def torn_batches(
    path: Path, table: str, tail: Tail, *, newer_minor: bool = False
) -> Iterator[pa.RecordBatch]:
    """Read the whole batches of a segment that was not closed, or is damaged.

    Args:
        path: The part.
        table: Whose columns it should have.
        tail: Filled with what lies behind the last whole batch.
        newer_minor: Whether the trace may have columns that this aerostat does not know.

    Yields:
        Checked batches in the schema of the table; none if not even the schema is whole.

    Raises:
        TraceError: The file cannot be read, or holds another table.
    """
    raw = memoryview(read_regular(path, MAX_SEGMENT_BYTES))
    tail.dropped_bytes = len(raw)
    stream = _Stream(raw, path, table, newer_minor)
    try:
        for _, batch in stream.batches():
            yield batch
            tail.whole_bytes, tail.dropped_bytes = stream.position, len(raw) - stream.position
    except _DAMAGE as problem:
        tail.reason = str(problem).splitlines()[0][:200] if str(problem) else type(problem).__name__
    else:
        tail.whole_bytes, tail.dropped_bytes = len(raw), 0


def _damaged(path: Path, problem: BaseException) -> TraceError:
    return TornTraceError(
        f"{path} is damaged",
        reason=(str(problem).splitlines() or [type(problem).__name__])[0][:200],
        remedy=salvage_remedy(path.parents[1]),
    )


class _Stream:
    """The messages of one segment, from behind its magic."""

    def __init__(self, raw: memoryview, path: Path, table: str, newer_minor: bool) -> None:
        self._raw = raw
        self._path = path
        self._table = table
        self._newer_minor = newer_minor
        self._source = pa.BufferReader(pa.py_buffer(raw[_MAGIC_BYTES:]))
        self._allowed = MAX_EXPANSION * len(raw) + FREE_BYTES

    @property
    def position(self) -> int:
        """Bytes of the file up to the end of the message read last."""
        return _MAGIC_BYTES + int(self._source.tell())

    def open(self) -> Any:
        """Read the schema and check it; return the reader of the messages behind it."""
        if bytes(self._raw[:_MAGIC_BYTES]) != b"ARROW1\0\0":
            raise ValueError("not an Arrow IPC file")
        reader = pa.ipc.MessageReader.open_stream(self._source)
        try:
            message = reader.read_next_message()
        except StopIteration as end:
            raise ValueError("the file ends before its schema") from end
        require_schema(message.metadata.to_pybytes())
        self._stored = pa.ipc.read_schema(message)
        check_columns(self._stored, self._table, self._path, newer_minor=self._newer_minor)
        return reader

    def check_footer(self, blocks: list[Block]) -> None:
        """Refuse a footer by which other tools would read something else than was checked.

        Raises:
            ValueError: It lists other batches, or other columns.
        """
        if footer_blocks(self._raw) != blocks:
            raise ValueError("the footer lists other batches than the file holds")
        with pa.ipc.open_file(pa.py_buffer(self._raw)) as file:
            if not file.schema.equals(self._stored, check_metadata=True):
                raise ValueError("the footer has other columns than the file")

    def batches(self) -> Iterator[tuple[Block, pa.RecordBatch]]:
        """Read one batch after the other, with the place where it lies."""
        reader = self.open()
        while True:
            start = self.position
            try:
                message = reader.read_next_message()
            except StopIteration:
                if self.position == start:
                    raise ValueError("the file ends without an end mark") from None
                return
            body = message.body or pa.py_buffer(b"")
            claimed = claim(message.metadata.to_pybytes(), memoryview(body))
            self._allowed -= claimed.decoded_bytes
            if self._allowed < 0:
                raise ValueError(f"a batch of {claimed.rows} rows would decode to too many bytes")
            batch = pa.ipc.read_record_batch(message, self._stored)
            metadata_bytes = _PREFIX_BYTES + message.metadata.size
            body_bytes = self.position - start - metadata_bytes
            yield Block(start, metadata_bytes, body_bytes), conform(batch, self._table)


def check_columns(stored: pa.Schema, table: str, path: Path, *, newer_minor: bool) -> None:
    """Refuse columns that are not the table's, and the lack of any that no reader can do without.

    Raises:
        TraceError: Naming the file and the column.
    """
    expected = TABLES[table]
    problem = ""
    for name in stored.names:
        if stored.names.count(name) > 1:
            problem = f"has the column {name[:60]!r} twice"
        elif name not in expected.names and not newer_minor:
            problem = f"has a foreign column {name[:60]!r}"
        elif name in expected.names and stored.field(name).type != expected.field(name).type:
            problem = f"has column {name!r} as {str(stored.field(name).type)[:80]}"
    for column in expected:
        if column.name not in stored.names and not column.nullable:
            problem = f"lacks the column {column.name!r}"
    if problem:
        raise TraceError(
            f"{path} {problem}",
            reason=f"docs/trace-format.md fixes the columns of {table}",
            remedy="take the trace again, or read it with the aerostat that wrote it",
        )


def conform(batch: pa.RecordBatch, table: str) -> pa.RecordBatch:
    """Bring a batch into its table's schema: columns in order, absent ones null, all checked.

    Raises:
        ValueError: A value is null that may not be, or the batch contradicts itself.
        pyarrow.ArrowInvalid: Offsets, lengths or text are not valid.
    """
    expected = TABLES[table]
    batch.validate(full=True)
    columns = []
    for column in expected:
        if column.name in batch.schema.names:
            values = batch.column(column.name)
        else:
            values = pa.nulls(batch.num_rows, column.type)
        if not column.nullable and values.null_count:
            raise ValueError(f"column {column.name!r} has nulls")
        if pa.types.is_list(column.type):
            _check_items(values, column.name)
        columns.append(values)
    return pa.RecordBatch.from_arrays(columns, schema=expected)


def _check_items(values: pa.ListArray, name: str) -> None:
    """Refuse nulls below the list: the runs of a request are never unknown one by one."""
    items = values.values
    if items.null_count or any(items.field(i).null_count for i in range(items.type.num_fields)):
        raise ValueError(f"column {name!r} has nulls within its lists")
