"""One segment while it is written: whole batches now, a footer and a name at the end."""

import os
import time
from pathlib import Path

import pyarrow as pa

from tracer.trace.layout import part_file, sha256_of, sync
from tracer.trace.manifest import Segment
from tracer.trace.schema import TABLES

OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


class OpenSegment:
    """An Arrow IPC file under its part's name.

    Every batch is handed to the system by write(2) before `write` returns: a killed recorder loses
    none. `close` alone syncs to the disk: a power cut loses the open segments.

    Args:
        bundle: The trace's directory.
        table: Table of the rows.
        side: host or guest.
        file: Path of the closed segment below the bundle.

    Attributes:
        broken: A write failed; nothing more may be written and the part stays a part.
        began_ns: When it was opened, CLOCK_MONOTONIC.
    """

    def __init__(self, bundle: Path, table: str, side: str, file: str) -> None:
        self._bundle = bundle
        self._file = file
        self._table = table
        self._side = side
        self._part = bundle / part_file(file)
        self._rows = 0
        self.broken = False
        self.began_ns = time.monotonic_ns()
        if not self._part.parent.is_dir():
            self._part.parent.mkdir()
            sync(bundle)
        self._sink = pa.OSFile(str(self._part), "wb")
        self._writer = pa.ipc.new_file(self._sink, TABLES[table], options=OPTIONS)

    @property
    def size_bytes(self) -> int:
        """Bytes written so far."""
        return int(self._sink.tell())

    def write(self, batch: pa.RecordBatch) -> None:
        """Append one batch, or nothing: after an error the part ends with the batch before.

        Raises:
            OSError: The disk is full, or fails.
        """
        before = self.size_bytes
        try:
            self._writer.write_batch(batch)
        except OSError:
            self._drop_after(before)
            raise
        self._rows += batch.num_rows

    def close(self) -> Segment:
        """Write the footer, sync, and take the segment's own name.

        Raises:
            OSError: The disk is full, or fails; the part stays, with all its batches.
        """
        before = self.size_bytes
        try:
            self._writer.close()
            self._sink.close()
        except OSError:
            self._drop_after(before)
            raise
        sync(self._part)
        path = self._bundle / self._file
        segment = Segment(
            table=self._table,
            side=self._side,
            file=self._file,
            rows=self._rows,
            bytes=self._part.stat().st_size,
            sha256=sha256_of(self._part),
        )
        self._part.rename(path)
        sync(path.parent)
        return segment

    def _drop_after(self, size_bytes: int) -> None:
        """Cut half a batch or half a footer off, which also gives the disk that much room again."""
        self.broken = True
        os.truncate(self._part, size_bytes)
        if size_bytes == 0:
            self._part.unlink()
