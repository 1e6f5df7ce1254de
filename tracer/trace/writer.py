"""Writes one side of a trace: a crash, a full disk or a kill costs at most the batch in hand."""

import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from tracer.trace.errors import TraceError
from tracer.trace.layout import lock
from tracer.trace.manifest import Loss, Manifest
from tracer.trace.replace_bundle import make_bundle
from tracer.trace.rows import checked, mark_row
from tracer.trace.schema import Mark, Side
from tracer.trace.side_store import SideStore
from tracer.trace.storage import Storage, is_full

_DEFAULT = Storage()


class TraceWriter:
    """Creates a bundle and appends one side's rows to it; for one thread. It is a `Sink`.

    Each appended batch is handed to the system at once, so that it outlives a killed recorder.
    Segments are brought to the disk when they are old and when they close: see `Storage`. Where the
    disk is full, or the budget spent, `stop_reason` says so, rows are counted as lost, and `close`
    still closes the trace: room is kept back for that.

    Leaving the `with` block without `close` closes the segments, but the trace stays incomplete.

    Args:
        path: The bundle to create, `NAME.balloon`.
        side: Whose events it takes.
        force: Replace an aerostat bundle at `path`; never anything else.
        manifest: What is known at the begin, so that a crash keeps it.
        storage: When segments close, their compression, and the budget.

    Raises:
        TraceError: The bundle exists, or cannot be created; nothing of it is left then.
    """

    def __init__(
        self,
        path: Path | str,
        side: Side,
        *,
        force: bool = False,
        manifest: Manifest | None = None,
        storage: Storage = _DEFAULT,
    ) -> None:
        self.path = Path(path)
        self._side = side
        self._failure: TraceError | None = None
        make_bundle(self.path, force=force)
        self._lock = lock(self.path)
        self._store = SideStore(self.path, side, manifest or Manifest(), storage)
        try:
            self._store.begin()
        except OSError as problem:
            # Nothing is in it, and a recorder of every VM would leave one for each that starts.
            shutil.rmtree(self.path, ignore_errors=True)
            self._unlock()
            raise _write_error("create", self.path, problem) from problem

    @property
    def manifest(self) -> Manifest:
        """The manifest as it stands; `dataclasses.replace` in it and hand it to `close`."""
        return self._store.manifest

    @property
    def stop_reason(self) -> str | None:
        """Why recording should end now: `disk-full` or `budget`; None while all is well."""
        return self._store.stop_reason

    @property
    def written_bytes(self) -> int:
        """Bytes written to segments since the begin, those removed since then included."""
        return self._store.written_bytes

    def describe(self, manifest: Manifest) -> None:
        """Put on disk what has become known, so that a crash keeps it; `close` may still change it.

        Raises:
            TraceError: The disk fails.
        """
        self._guard(lambda: self._store.describe(manifest))

    def expect(self, tables: Iterable[str]) -> None:
        """Open segments of these tables now: that takes several waits for the disk each.

        Args:
            tables: Names of the tables. One that stays empty has no segment in the closed trace.

        Raises:
            TraceError: The disk fails.
        """
        self._guard(lambda: self._store.expect(tables))

    def append(self, table: str, batch: pa.RecordBatch) -> None:
        """Append rows. Those that there is no room for are lost, and `loss` is told.

        Args:
            table: Name of the table.
            batch: Rows in the table's schema (schema.TABLES), in order.

        Raises:
            TraceError: The disk fails; the trace up to the batch before stays readable.
            ValueError: The batch is not of this table, or has nulls where none may be.
        """
        rows = checked(table, batch)
        if rows.num_rows:
            self._guard(lambda: self._store.append(table, rows))

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
            TraceError: The disk fails.
        """
        columns = {"value": value, "text": text, "since_ns": since_ns, "cause": cause}
        self.append("marks", mark_row(self._side, mark, ts_ns, **columns))

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

        Losses of one stream and cause that follow each other closely become one row; `tick` and
        `close` write what waits.

        Args:
            stream: What they were events of: requests, calls, ...
            count: How many; nothing is written for none.
            since_ns: Begin of the span in which they were lost, by this side's clock.
            until_ns: End of the span.
            cause: What lost them: ring, quota, disk, budget, partial or stranger.

        Raises:
            TraceError: The disk fails.
        """
        if count:
            side = self._side.name.lower()
            loss = Loss(side, stream, count, since_ns, until_ns, cause)
            self._guard(lambda: self._store.lose(loss))

    def tick(self) -> None:
        """Close and sync what is old, and write the losses that wait, also if nothing is appended.

        Raises:
            TraceError: The disk fails.
        """
        self._guard(self._store.tick)

    def close(self, manifest: Manifest) -> Manifest:
        """End the trace in order: losses, END, footers, and a manifest that says complete.

        Args:
            manifest: With this side's SideInfo. Segments, losses, the session's identity and, where
                None, this side's end time are filled in. Its end reason gives way to `stop_reason`.

        Returns:
            The manifest as written.

        Raises:
            TraceError: The disk fails, or not even the end finds room; the trace is then not
                complete.
            ValueError: The manifest has no SideInfo of this side.
        """
        side = self._side.name.lower()
        if side not in manifest.sides:
            raise ValueError(f"the manifest has no sides[{side!r}]")
        info = manifest.sides[side]
        if info.end_ns is None:
            info = replace(info, end_ns=time.monotonic_ns())
        ended = replace(manifest, sides={**manifest.sides, side: info})
        self._guard(lambda: self._close(ended, info.end_ns or 0))
        return self._store.manifest

    def abort(self, reason: str) -> None:
        """Close what is open and say why the trace is not complete; nothing after `close`.

        Raises:
            TraceError: The disk fails.
        """
        if self._lock >= 0 and self._failure is None:
            manifest = self._store.manifest
            self._guard(lambda: self._finish(manifest, complete=False, end_reason=reason))

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

    def _close(self, manifest: Manifest, end_ns: int) -> None:
        self._store.end(end_ns)
        reason = self._store.stop_reason or manifest.end_reason or "stopped"
        self._finish(manifest, complete=True, end_reason=reason)

    def _finish(self, manifest: Manifest, *, complete: bool, end_reason: str) -> None:
        self._store.finish(manifest, complete=complete, end_reason=end_reason)
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
            self._failure = _write_error("write", self.path, problem)
            self._store.save_rest(f"write failed: {problem.strerror or problem}")
            self._unlock()
            raise self._failure from problem

    def _unlock(self) -> None:
        os.close(self._lock)
        self._lock = -1


def _write_error(verb: str, path: Path, problem: OSError) -> TraceError:
    remedy = "free space there or record elsewhere" if is_full(problem) else "check the disk"
    if verb == "write":
        remedy += "; what was recorded up to here can still be read"
    return TraceError(
        f"cannot {verb} the trace {path}", reason=problem.strerror or str(problem), remedy=remedy
    )
