"""The segments of one side while it is recorded: open, closed, removed."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from tracer.trace.delta import Form
from tracer.trace.layout import segment_file
from tracer.trace.manifest import Segment
from tracer.trace.open_segment import OpenSegment
from tracer.trace.schema import TABLES
from tracer.trace.storage import Storage

SEGMENTS_PER_AGE = 1024
AGE_DOUBLINGS = 6
"""The age at which a segment closes doubles with every so many segments, from a minute to an hour:
the manifest lists them all, and days of capture must not fill it."""
FOOTER_BYTES = 16 << 10
BLOCK_BYTES = 24
"""Room that a footer takes: the schema, and one entry for each batch."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed segment and the first and last time that its rows name, None if they name none."""

    segment: Segment
    span: tuple[int, int] | None


class SegmentBook:
    """Writes rows to segments, and closes those that are large or old.

    Args:
        bundle: The trace's directory.
        side: host or guest.
        storage: When they are synced and closed, and how they are compressed. The age at which they
            close grows as they become many: see `SEGMENTS_PER_AGE`.

    Attributes:
        removed_bytes: Size of the segments that were removed.
    """

    def __init__(self, bundle: Path, side: str, storage: Storage) -> None:
        self.removed_bytes = 0
        self._bundle, self._side, self._storage = bundle, side, storage
        self._open: dict[str, OpenSegment] = {}
        self._ending: list[OpenSegment] = []
        self._closed: list[Closed] = []
        self._closed_bytes = 0
        self._numbers = dict.fromkeys(TABLES, 0)

    @property
    def closed(self) -> tuple[Segment, ...]:
        """The closed segments, in the order in which they closed."""
        return tuple(item.segment for item in self._closed)

    @property
    def size_bytes(self) -> int:
        """Size of all segments that are on the disk."""
        parts = (*self._open.values(), *self._ending)
        return self._closed_bytes + sum(part.size_bytes for part in parts)

    @property
    def ending_bytes(self) -> int:
        """Room that it takes to close what is open."""
        parts = (*self._open.values(), *self._ending)
        return sum(FOOTER_BYTES + BLOCK_BYTES * part.batches for part in parts)

    def open(self, tables: Iterable[str]) -> None:
        """Open a segment of each table that has none open; one that gets no row is removed again.

        Raises:
            OSError: The disk is full, or fails. Those before that table are open.
        """
        for table in tables:
            if table not in self._open:
                number = self._numbers[table] + 1
                file = segment_file(table, self._side, number)
                form = Form(table, self._storage.delta)
                self._open[table] = OpenSegment(
                    self._bundle, form, self._side, file, self._storage.compression
                )
                self._numbers[table] = number

    def append(self, table: str, batch: pa.RecordBatch) -> None:
        """Append rows to the open segment of a table, or open one.

        Raises:
            OSError: The disk is full, or fails. Nothing of the batch is kept, and what the segment
                has is closed with the others; the next rows go to a new one.
        """
        self.open((table,))
        try:
            self._open[table].write(batch)
        except OSError:
            self._ending.append(self._open.pop(table))
            raise

    def rotate(self) -> bool:
        """Close every segment, of any table, that is too large or too old; sync the others.

        Returns:
            Whether any segment was closed.

        Raises:
            OSError: The disk is full, or fails; the segment may still be closed with `close_all`.
        """
        now_ns = time.monotonic_ns()
        limit_bytes, sync_ns = self._storage.segment_bytes, self._storage.rotate_ns
        doublings = min(sum(self._numbers.values()) // SEGMENTS_PER_AGE, AGE_DOUBLINGS)
        closed = False
        for table, segment in [*self._open.items()]:
            if not segment.rows:
                continue  # It waits for its first row, however long that takes.
            age_ns = now_ns - segment.began_ns
            is_large = segment.is_dense or segment.size_bytes >= limit_bytes
            if is_large or age_ns >= sync_ns << doublings:
                self._ending.append(self._open.pop(table))
                self._close_ending()
                closed = True
            elif now_ns - segment.synced_ns >= sync_ns:
                segment.sync()
        return closed

    def close_all(self) -> None:
        """Close what is open, and put the segments in the order of tables and numbers.

        Raises:
            OSError: The disk is full, or fails; what could be closed is; it may be called again.
        """
        self._ending += self._open.values()
        self._open.clear()
        self._close_ending()
        order = [*TABLES]
        self._closed.sort(key=lambda item: (order.index(item.segment.table), item.segment.file))

    def remove_oldest(self, kept: str) -> Closed | None:
        """Delete the segment that was closed first.

        Args:
            kept: A table of which none is deleted.

        Returns:
            What is gone; None if there is nothing to delete.

        Raises:
            OSError: The disk fails.
        """
        for index, item in enumerate(self._closed):
            if item.segment.table != kept:
                (self._bundle / item.segment.file).unlink()
                del self._closed[index]
                self._closed_bytes -= item.segment.bytes
                self.removed_bytes += item.segment.bytes
                return item
        return None

    def _close_ending(self) -> None:
        """Close all that can be; then raise the first error, if there was any."""
        left: list[OpenSegment] = []
        problems: list[OSError] = []
        for part in self._ending:
            try:
                segment = part.close()
            except OSError as problem:
                left.append(part)
                problems.append(problem)
                continue
            if segment is not None:
                self._closed.append(Closed(segment, part.span))
                self._closed_bytes += segment.bytes
        self._ending = left
        if problems:
            raise problems[0]
