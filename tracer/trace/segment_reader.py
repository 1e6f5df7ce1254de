"""Reads the record batches of one segment, closed or torn, whoever wrote it."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import pyarrow as pa

from tracer.trace.delta import Form, form_of
from tracer.trace.errors import TornTraceError, TraceError, salvage_remedy
from tracer.trace.ipc_bounds import Block, claim, footer_blocks, message_bytes, require_schema
from tracer.trace.layout import MAX_SEGMENT_BYTES, open_regular

_PREFIX_BYTES = 8
"""Continuation mark and length before each message's metadata."""
_MAGIC = b"ARROW1\0\0"
"""An IPC file is this magic, a stream, and a footer; skip it and a torn file reads as a stream."""
_END_BYTES = 10
"""The length of the footer, and the magic again, of 6 bytes there."""
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


def stored_form(path: Path, table: str) -> Form:
    """Tell how the rows of a segment lie in it: closed, torn, or damaged, then as far as it shows.

    Raises:
        TraceError: The file cannot be read.
    """
    with open_regular(path, MAX_SEGMENT_BYTES) as file:
        stream = _Stream(file, path, table, newer_minor=True)
        with suppress(TraceError, *_DAMAGE):
            stream.open()
        return stream.form


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
    blocks: list[Block] = []
    with open_regular(path, MAX_SEGMENT_BYTES) as file:
        stream = _Stream(file, path, table, newer_minor)
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
    with open_regular(path, MAX_SEGMENT_BYTES) as file:
        stream = _Stream(file, path, table, newer_minor)
        size = tail.dropped_bytes = stream.size_bytes
        try:
            for _, batch in stream.batches():
                yield batch
                tail.whole_bytes, tail.dropped_bytes = stream.position, size - stream.position
        except _DAMAGE as problem:
            words = str(problem).splitlines() or [type(problem).__name__]
            tail.reason = words[0][:200]
        else:
            tail.whole_bytes, tail.dropped_bytes = size, 0


def _damaged(path: Path, problem: BaseException) -> TraceError:
    return TornTraceError(
        f"{path} is damaged",
        reason=(str(problem).splitlines() or [type(problem).__name__])[0][:200],
        remedy=salvage_remedy(path.parents[1]),
    )


class _Stream:
    """The messages of one segment, from behind its magic, read one at a time.

    What is checked is what is decoded: each byte is read once, whoever changes the file meanwhile.

    Attributes:
        size_bytes: Of the file, as it was opened; what is written behind that is not looked at.
        position: Bytes of the file up to the end of the message read last.
        form: How its rows lie there, once it is open.
    """

    def __init__(self, file: FileIO, path: Path, table: str, newer_minor: bool) -> None:
        self.size_bytes = os.fstat(file.fileno()).st_size
        self.position = len(_MAGIC)
        self._file = file
        self._path = path
        self.form = Form(table)
        self._newer_minor = newer_minor
        self._allowed = MAX_EXPANSION * self.size_bytes + FREE_BYTES

    def check_footer(self, blocks: list[Block]) -> None:
        """Refuse a footer by which other tools would read something else than was checked.

        Raises:
            ValueError: It lists other batches, or other columns.
        """
        footer = self._footer()
        if footer_blocks(memoryview(footer)) != blocks:
            raise ValueError("the footer lists other batches than the file holds")
        with pa.ipc.open_file(pa.py_buffer(footer)) as file:
            if not file.schema.equals(self._stored, check_metadata=True):
                raise ValueError("the footer has other columns than the file")

    def batches(self) -> Iterator[tuple[Block, pa.RecordBatch]]:
        """Read one batch after the other, with the place where it lies."""
        self.open()
        while True:
            start = self.position
            try:
                message = self._next()
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
            rows = self.form.restored(conform(batch, self.form.schema))
            yield Block(start, metadata_bytes, body_bytes), rows

    def open(self) -> None:
        """Read the schema and check it.

        Raises:
            TraceError: Its columns are not the table's.
            ValueError: The file does not begin as a segment does.
        """
        if self._read(0, len(_MAGIC)) != _MAGIC:
            raise ValueError("not an Arrow IPC file")
        try:
            message = self._next()
        except StopIteration as end:
            raise ValueError("the file ends before its schema") from end
        require_schema(message.metadata.to_pybytes())
        self._stored = pa.ipc.read_schema(message)
        self.form = form_of(self.form.table, self._stored)
        self._check_columns()

    def _check_columns(self) -> None:
        """Refuse columns that are not the table's, and the lack of any that nobody can do without.

        Raises:
            TraceError: Naming the file and the column.
        """
        stored, expected = self._stored, self.form.schema
        problem = ""
        for name in stored.names:
            if stored.names.count(name) > 1:
                problem = f"has the column {name[:60]!r} twice"
            elif name not in expected.names and not self._newer_minor:
                problem = f"has a foreign column {name[:60]!r}"
            elif name in expected.names and stored.field(name).type != expected.field(name).type:
                problem = f"has column {name!r} as {str(stored.field(name).type)[:80]}"
        for column in expected:
            if column.name not in stored.names and not column.nullable:
                problem = f"lacks the column {column.name!r}"
        if problem:
            raise TraceError(
                f"{self._path} {problem}",
                reason=f"docs/trace-format.md fixes the columns of {self.form.table}",
                remedy="take the trace again, or read it with the aerostat that wrote it",
            )

    def _next(self) -> Any:
        """Read one message.

        Raises:
            StopIteration: At an end mark, which is passed, or at the end of the file.
        """
        start = self.position
        length = message_bytes(lambda at, count: self._read(start + at, count))
        source = pa.BufferReader(pa.py_buffer(self._read(start, length)))
        try:
            return pa.ipc.MessageReader.open_stream(source).read_next_message()
        finally:
            self.position = start + int(source.tell())

    def _read(self, at: int, count: int) -> bytes:
        """Bytes of the file, fewer at its end."""
        self._file.seek(at)
        return self._file.read(max(0, min(count, self.size_bytes - at)))

    def _footer(self) -> bytes:
        """An IPC file of no batches: the magic and the footer."""
        end = self._read(self.size_bytes - _END_BYTES, _END_BYTES)
        length = int.from_bytes(end[:4], "little", signed=True)
        room = self.size_bytes - len(_MAGIC) - _END_BYTES
        taken = max(0, min(length, room)) + _END_BYTES
        return _MAGIC + self._read(self.size_bytes - taken, taken)


def conform(batch: pa.RecordBatch, expected: pa.Schema) -> pa.RecordBatch:
    """Bring a batch into a schema: columns in order, absent ones null, all checked.

    Raises:
        ValueError: A value is null that may not be, or the batch contradicts itself.
        pyarrow.ArrowInvalid: Offsets, lengths or text are not valid.
    """
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
