"""Writes one side of a trace: a crash, a full disk or a kill costs at most the batch in hand."""

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from tracer.trace.errors import TraceError
from tracer.trace.layout import RESERVE, lock, segment_file, write_manifest
from tracer.trace.manifest import Loss, Manifest, Segment
from tracer.trace.open_segment import OpenSegment
from tracer.trace.replace_bundle import make_bundle
from tracer.trace.schema import MARKS, TABLES, Mark, Side

RESERVE_BYTES = 256 << 10


class TraceWriter:
    """Creates a bundle and appends one side's rows to it; for one thread.

    Each appended batch is handed to the system at once, so that it outlives a killed recorder.
    Files are synced to the disk when their segment closes: after `rotate_bytes`, after `rotate_ns`,
    and at the end.

    Leaving the `with` block without `close` closes the segments, but the trace stays incomplete.

    Args:
        path: The bundle to create, `NAME.balloon`.
        side: Whose events it takes.
        force: Replace an aerostat bundle at `path`; never anything else.
        rotate_bytes: Close a segment that has grown to this size.
        rotate_ns: Close a segment that is this old.
        manifest: What is known at the begin, so that a crash keeps it.

    Raises:
        TraceError: The bundle exists, or cannot be created.
    """

    def __init__(  # noqa: PLR0913  five settings, all but one with a default
        self,
        path: Path | str,
        side: Side,
        *,
        force: bool = False,
        rotate_bytes: int = 64 << 20,
        rotate_ns: int = 60 * 10**9,
        manifest: Manifest | None = None,
    ) -> None:
        self.path = Path(path)
        self._side = side.name.lower()
        self._side_code = int(side)
        self._rotate_bytes = rotate_bytes
        self._rotate_ns = rotate_ns
        self._open: dict[str, OpenSegment] = {}
        self._segments: list[Segment] = []
        self._losses: list[Loss] = []
        self._numbers = dict.fromkeys(TABLES, 0)
        self._failure: TraceError | None = None
        self._lock = -1
        self._manifest = manifest or Manifest()
        make_bundle(self.path, force=force)
        self._lock = lock(self.path)
        self._guard(self._begin)

    @property
    def manifest(self) -> Manifest:
        """The manifest as it stands; `dataclasses.replace` in it and hand it to `close`."""
        return self._manifest

    @property
    def written_bytes(self) -> int:
        """Bytes of segments on disk, open ones included."""
        closed = sum(segment.bytes for segment in self._segments)
        return closed + sum(segment.size_bytes for segment in self._open.values())

    def describe(self, manifest: Manifest) -> None:
        """Put on disk what has become known, so that a crash keeps it; `close` may still change it.

        Raises:
            TraceError: The disk is full, or fails.
        """
        self._guard(lambda: self._save(manifest, complete=False, end_reason=""))

    def append(self, table: str, batch: pa.RecordBatch) -> None:
        """Append rows.

        Args:
            table: Name of the table.
            batch: Rows in the table's schema (schema.TABLES), in order.

        Raises:
            TraceError: The disk is full, or fails; the trace up to the batch before stays readable.
            ValueError: The batch is not of this table, or has nulls where none may be.
        """
        checked = _checked(table, batch)
        if checked.num_rows:
            self._guard(lambda: self._append(table, checked))

    def mark(  # noqa: PLR0913  one argument per column of the row
        self,
        mark: Mark,
        ts_ns: int,
        *,
        value: int | None = None,
        text: str | None = None,
        since_ns: int | None = None,
        cause: str | None = None,
    ) -> None:
        """Append one row to the marks.

        Args:
            mark: What happened.
            ts_ns: When, or when it ended, by this side's clock.
            value: A count, bytes or ns, by the mark: docs/trace-format.md.
            text: More about it.
            since_ns: When it began, if it took time.
            cause: Of a LOSS: ring, quota, disk, ...

        Raises:
            TraceError: The disk is full, or fails.
        """
        row = {
            "side": self._side_code,
            "ts_ns": ts_ns,
            "since_ns": since_ns,
            "mark": int(mark),
            "value": value,
            "text": text,
            "cause": cause,
        }
        self.append("marks", pa.RecordBatch.from_pylist([row], schema=MARKS))

    def loss(
        self,
        stream: str,
        count: int,
        since_ns: int | None,
        until_ns: int,
        *,
        cause: str | None = None,
    ) -> None:
        """Say that events are missing, in the marks and in the manifest.

        Args:
            stream: What they were events of: requests, calls, ...
            count: How many; nothing is written for none.
            since_ns: Begin of the span in which they were lost, by this side's clock.
            until_ns: End of the span.
            cause: What lost them: ring, quota, disk, budget, partial or stranger.

        Raises:
            TraceError: The disk is full, or fails.
        """
        if count:
            self._losses.append(Loss(self._side, stream, count, since_ns, until_ns, cause))
            self.mark(Mark.LOSS, until_ns, value=count, text=stream, since_ns=since_ns, cause=cause)

    def close(self, manifest: Manifest) -> Manifest:
        """End the trace in order: losses, END, footers, and a manifest that says complete.

        Args:
            manifest: With this side's SideInfo. Segments, the session's identity and, where None,
                this side's end time are filled in. Losses not yet given to `loss` become rows too.

        Returns:
            The manifest as written.

        Raises:
            TraceError: The disk is full, or fails; the trace is then not complete.
            ValueError: The manifest has no SideInfo of this side, or losses of another.
        """
        if self._side not in manifest.sides:
            raise ValueError(f"the manifest has no sides[{self._side!r}]")
        if any(loss.side != self._side for loss in manifest.losses):
            raise ValueError(f"the manifest has losses of another side than {self._side}")
        for loss in manifest.losses:
            if loss not in self._losses:
                self.loss(loss.stream, loss.count, loss.since_ns, loss.until_ns, cause=loss.cause)
        info = manifest.sides[self._side]
        if info.end_ns is None:
            info = replace(info, end_ns=time.monotonic_ns())
        self.mark(Mark.END, info.end_ns or 0)
        ended = replace(manifest, sides={**manifest.sides, self._side: info})
        self._guard(lambda: self._finish(ended, True, manifest.end_reason or "stopped"))
        return self._manifest

    def abort(self, reason: str) -> None:
        """Close what is open and say why the trace is not complete; nothing after `close`.

        Raises:
            TraceError: The disk is full, or fails.
        """
        if self._lock >= 0 and self._failure is None:
            self._guard(lambda: self._finish(self._manifest, False, reason))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        what = "left without close" if kind is None else f"{kind.__name__}: {problem}"
        self.abort(what.splitlines()[0][:500])

    def _begin(self) -> None:
        self._save(self._manifest, complete=False, end_reason="")
        descriptor = os.open(self.path / RESERVE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
        finally:
            os.close(descriptor)

    def _append(self, table: str, batch: pa.RecordBatch) -> None:
        if table not in self._open:
            self._numbers[table] += 1
            file = segment_file(table, self._side, self._numbers[table])
            self._open[table] = OpenSegment(self.path, table, self._side, file)
        self._open[table].write(batch)
        self._rotate()

    def _rotate(self) -> None:
        """Close every segment, of any table, that is too large or too old."""
        oldest = time.monotonic_ns() - self._rotate_ns
        due = [
            table
            for table, segment in self._open.items()
            if segment.size_bytes >= self._rotate_bytes or segment.began_ns <= oldest
        ]
        for table in due:
            self._segments.append(self._open.pop(table).close())
        if due:
            self._save(self._manifest, complete=False, end_reason="")

    def _save(self, manifest: Manifest, *, complete: bool, end_reason: str) -> None:
        self._manifest = replace(
            manifest,
            session_id=self._manifest.session_id,
            created_realtime_ns=self._manifest.created_realtime_ns,
            segments=tuple(self._segments),
            losses=tuple(self._losses),
            complete=complete,
            end_reason=end_reason,
        )
        write_manifest(self.path, self._manifest)

    def _finish(self, manifest: Manifest, complete: bool, end_reason: str) -> None:
        (self.path / RESERVE).unlink(missing_ok=True)
        while self._open:
            _, segment = self._open.popitem()
            self._segments.append(segment.close())
        self._segments.sort(key=lambda item: (list(TABLES).index(item.table), item.file))
        self._save(manifest, complete=complete, end_reason=end_reason)
        self._unlock()

    def _guard(self, step: Callable[[], None]) -> None:
        """Run a step that writes; on failure save what can be saved, once, and say so."""
        if self._failure is not None:
            raise self._failure
        if self._lock < 0:
            raise ValueError(f"the trace {self.path} is closed")
        try:
            step()
        except OSError as problem:
            self._failure = _write_error(self.path, problem)
            self._save_rest(f"write failed: {problem.strerror or problem}")
            raise self._failure from problem

    def _save_rest(self, end_reason: str) -> None:
        """Close the other segments and say what happened, as far as the disk lets us.

        A part that cannot be closed stays, and is read as it is.
        """
        with suppress(OSError):
            (self.path / RESERVE).unlink(missing_ok=True)
        for segment in self._open.values():
            with suppress(OSError):
                if not segment.broken:
                    self._segments.append(segment.close())
        with suppress(OSError):
            self._save(self._manifest, complete=False, end_reason=end_reason)
        self._open.clear()
        self._unlock()

    def _unlock(self) -> None:
        os.close(self._lock)
        self._lock = -1


def _checked(table: str, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Put the table's own schema on a batch, or refuse it: a caller's mistake, not the data's."""
    expected = TABLES[table]
    if not batch.schema.equals(expected):
        raise ValueError(f"a batch for {table} has other columns: {batch.schema}")
    for column, values in zip(expected, batch.columns, strict=True):
        if not column.nullable and values.null_count:
            raise ValueError(f"a batch for {table} has nulls in {column.name}")
    return pa.RecordBatch.from_arrays(batch.columns, schema=expected)


def _write_error(path: Path, problem: OSError) -> TraceError:
    full = problem.errno in {errno.ENOSPC, errno.EDQUOT}
    return TraceError(
        f"cannot write the trace {path}",
        reason=problem.strerror or str(problem),
        remedy=("free space there or record elsewhere" if full else "check the disk")
        + "; what was recorded up to here can still be read",
    )
