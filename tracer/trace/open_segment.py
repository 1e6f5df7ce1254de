"""One segment while it is written: whole batches now, a footer and a name at the end."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pyarrow as pa

from tracer.trace.delta import Form
from tracer.trace.layout import describe_segment, hidden_file, part_file, sync
from tracer.trace.manifest import Segment
from tracer.trace.rewrite import finish_part, gather_batches
from tracer.trace.rows import span_of
from tracer.trace.segment_reader import FREE_BYTES, MAX_EXPANSION

Compression = Literal["lz4", "zstd"]
GATHERED_BATCHES = 16
GATHERED_ROWS = 64
GATHERED_BYTES = 16 << 20
"""A segment of so many batches, of fewer rows each on average, and no larger, is made one batch
when it closes: a batch of one sample takes 1.8 KB, a sample among many 60 bytes."""


class OpenSegment:
    """An Arrow IPC file under its part's name.

    Every batch is handed to the system by write(2) before `write` returns: a killed recorder loses
    none. Only `sync` and `close` bring them to the disk: a power cut loses the rest.

    Args:
        bundle: The trace's directory.
        form: Table of the rows, and how they lie in the file.
        side: host or guest.
        file: Path of the closed segment below the bundle.
        compression: How Arrow compresses the buffers.

    Attributes:
        table: Table of the rows.
        rows: Rows written.
        batches: Batches written.
        began_ns: When its first row came, CLOCK_MONOTONIC; before that, when it was opened.
        synced_ns: When all that it held was last on the disk.
        span: First and last time that any of its rows names; None if none does.
    """

    def __init__(
        self, bundle: Path, form: Form, side: str, file: str, compression: Compression
    ) -> None:
        self.table = form.table
        self.rows = self.batches = 0
        self.began_ns = self.synced_ns = time.monotonic_ns()
        self.span: tuple[int, int] | None = None
        self._bundle, self._side, self._file = bundle, side, file
        self._part = bundle / part_file(file)
        # One CPU is what a recorder may take from its VMs.
        self._options = pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
        self._form = form
        self._whole_bytes = self._decoded_bytes = 0
        self._broken = False
        if not self._part.parent.is_dir():
            self._part.parent.mkdir()
            sync(bundle)
        self._sink = pa.OSFile(str(self._part), "wb")
        try:
            self._writer = pa.ipc.new_file(self._sink, form.schema, options=self._options)
        except OSError:
            self._part.unlink()
            raise
        sync(self._part.parent)
        self._whole_bytes = int(self._sink.tell())

    @property
    def size_bytes(self) -> int:
        """Bytes up to the end of the last whole batch."""
        return self._whole_bytes

    @property
    def is_dense(self) -> bool:
        """Whether a reader would soon refuse it, since it decodes to so much more than it takes.

        A guest can see to that: it has the same pages discarded again and again.
        """
        return self._decoded_bytes - MAX_EXPANSION * self._whole_bytes >= FREE_BYTES // 2

    def write(self, batch: pa.RecordBatch) -> None:
        """Append one batch, or nothing: after an error the part ends with the batch before.

        Raises:
            OSError: The disk is full, or fails; the segment takes no more, but can be closed.
        """
        stored = self._form.stored(batch)
        try:
            self._writer.write_batch(stored)
        except OSError:
            self._cut()
            raise
        self._whole_bytes = int(self._sink.tell())
        self._decoded_bytes += stored.nbytes
        if not self.rows:
            self.began_ns = self.synced_ns = time.monotonic_ns()
        self.rows += batch.num_rows
        self.batches += 1
        span = span_of(self.table, batch)
        if span is not None:
            first, last = self.span or span
            self.span = min(first, span[0]), max(last, span[1])

    def sync(self) -> None:
        """Bring what was written to the disk.

        Raises:
            OSError: The disk is full, or fails.
        """
        os.fdatasync(self._sink.fileno())
        self.synced_ns = time.monotonic_ns()

    def close(self) -> Segment | None:
        """Write the footer, sync, and take the segment's own name.

        Returns:
            The segment; None if not one batch is in it, and then it is gone.

        Raises:
            OSError: The disk is full, or fails; the part stays, with all its batches. It may be
                called again.
        """
        if self.rows == 0:
            self._part.unlink(missing_ok=True)
            self._sink.close()
            with suppress(OSError):
                self._part.parent.rmdir()  # unless other segments of the table are there
            return None
        if not self._gather():
            self._end()
            sync(self._part)
            self._part.rename(self._bundle / self._file)
        sync(self._part.parent)
        return describe_segment(self._bundle, self._file, self.rows)

    def _end(self) -> None:
        """Write the footer; Arrow's writer cannot once a write of its failed."""
        if self._broken:
            finish_part(self._part, self.table, self._options)
            self._sink.close()
            return
        try:
            self._writer.close()
            self._sink.close()
        except OSError:
            self._cut()
            raise

    def _gather(self) -> bool:
        """Make one batch of many small ones, under the segment's own name; False if not done."""
        if (
            self._broken
            or self.batches < GATHERED_BATCHES
            or self.rows > GATHERED_ROWS * self.batches
            or self._whole_bytes > GATHERED_BYTES
        ):
            return False
        fresh = self._bundle / hidden_file(self._file, ".new")
        try:
            gather_batches(self._part, self.table, fresh, self._options)
        except OSError:
            fresh.unlink(missing_ok=True)
            return False  # no room for a second copy, or no memory: the part itself is whole
        fresh.rename(self._bundle / self._file)
        self._part.unlink()
        self._sink.close()
        return True

    def _cut(self) -> None:
        """Cut half a batch or half a footer off, which also gives the disk that much room again."""
        self._broken = True
        os.truncate(self._part, self._whole_bytes)
