"""Ends a part without its writer, or writes its rows anew in fewer batches."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from tracer.trace.errors import TraceError
from tracer.trace.layout import MAX_SEGMENT_BYTES, read_regular, sync
from tracer.trace.schema import TABLES
from tracer.trace.segment_reader import Tail, stored_form, torn_batches


def finish_part(part: Path, table: str, options: pa.ipc.IpcWriteOptions) -> None:
    """Append the footer that a part of whole batches lacks.

    Arrow's writer gives up where a write fails, and the footer is its alone. So the batches are
    written once more, to nowhere: the same rows give the same bytes, which is checked, and what
    comes after them is the footer. It takes as much memory as the part.

    Args:
        part: A part that ends with a whole batch.
        table: Its table.
        options: What it was written with.

    Raises:
        OSError: The disk is full, or fails, or the bytes are not the same; the part is as it was.
    """
    try:
        written = read_regular(part, MAX_SEGMENT_BYTES)
        tail, form = _FooterAlone(written), stored_form(part, table)
        with pa.ipc.new_file(tail, form.schema, options=options) as writer:
            for batch in torn_batches(part, table, Tail()):
                writer.write_batch(form.stored(batch))
    except (TraceError, pa.ArrowException) as problem:
        raise OSError(f"{part} cannot be closed: {problem}") from problem
    with part.open("ab") as file:
        try:
            file.write(tail.footer)
            file.flush()
        except OSError:
            file.truncate(len(written))
            raise


class _FooterAlone:
    """A file for Arrow to write to, which keeps what follows the bytes that it knows."""

    closed = False

    def __init__(self, known: bytes) -> None:
        self._known = memoryview(known)
        self._at = 0
        self.footer = bytearray()

    def write(self, data: Any) -> int:
        raw = memoryview(data).cast("B")
        within = min(max(len(self._known) - self._at, 0), len(raw))
        if raw[:within] != self._known[self._at : self._at + within]:
            raise OSError("the same rows gave other bytes")
        self.footer += raw[within:]
        self._at += len(raw)
        return len(raw)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        self.closed = True


def gather_batches(part: Path, table: str, fresh: Path, options: pa.ipc.IpcWriteOptions) -> None:
    """Write all rows of a part into another file as one batch, whole, closed and synced.

    Raises:
        OSError: The disk is full, or fails; what is at `fresh` is of no use then.
    """
    try:
        rows = pa.Table.from_batches(torn_batches(part, table, Tail()), TABLES[table])
        (batch,) = rows.combine_chunks().to_batches()
        form = stored_form(part, table)
        with (
            pa.OSFile(str(fresh), "wb") as sink,
            pa.ipc.new_file(sink, form.schema, options=options) as writer,
        ):
            writer.write_batch(form.stored(batch))
    except (TraceError, pa.ArrowException, ValueError) as problem:
        raise OSError(f"{part} cannot be written anew: {problem}") from problem
    sync(fresh)
