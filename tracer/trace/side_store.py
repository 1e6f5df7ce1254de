"""One side's rows on the disk, kept within the room there is; what does not fit is counted."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from tracer.trace.layout import write_manifest
from tracer.trace.loss_book import LossBook
from tracer.trace.manifest import DISK_FULL, Loss, Manifest
from tracer.trace.rows import mark_row, span_of
from tracer.trace.schema import Mark, Side
from tracer.trace.segment_book import SegmentBook
from tracer.trace.storage import RESERVE_STEP_BYTES, Reserve, Storage, is_full

BUDGET = "budget"


class SideStore:
    """Segments, losses, manifest and the room kept back for their end.

    Every method raises OSError if the disk fails. A full disk is no failure while the room kept
    back lasts: rows are lost and counted, `stop_reason` says so, and `finish` closes the trace.

    Args:
        bundle: The trace's directory, which is there and locked.
        side: Whose rows they are.
        manifest: As it is to begin with.
        storage: When segments close, their compression, and the budget.

    Attributes:
        manifest: As it stands on the disk.
        stop_reason: DISK_FULL or BUDGET once recording should end.
    """

    def __init__(self, bundle: Path, side: Side, manifest: Manifest, storage: Storage) -> None:
        self.manifest = manifest
        self.stop_reason: str | None = None
        self._bundle, self._side, self._storage = bundle, side, storage
        self._losses = LossBook()
        self._segments = SegmentBook(bundle, side.name.lower(), storage)
        self._reserve = Reserve(bundle)
        self._manifest_bytes = 0

    @property
    def written_bytes(self) -> int:
        """Bytes written to segments since the begin, those removed since then included."""
        return self._segments.size_bytes + self._segments.removed_bytes

    @property
    def _used_bytes(self) -> int:
        return self._segments.size_bytes + self._reserve.size_bytes + self._manifest_bytes

    def begin(self) -> None:
        """Write the first manifest, and keep room back."""
        self._save(self.manifest)
        self._hold()

    def describe(self, manifest: Manifest) -> None:
        """Write a manifest that says more."""
        self._unless_full(lambda: self._save(manifest))

    def expect(self, tables: Iterable[str]) -> None:
        """Open the segments of tables before their rows come."""
        if self.stop_reason is None:
            self._unless_full(lambda: self._segments.open(tables))
            self._unless_full(self._hold)

    def append(self, table: str, batch: pa.RecordBatch) -> None:
        """Write rows, or count them as lost if there is no room."""
        is_mark = table == "marks"
        if self.stop_reason is not None and not is_mark and not self._has_room():
            self._lose(table, batch)
            return
        try:
            self._segments.append(table, batch)
        except OSError as problem:
            if not is_full(problem) or (is_mark and self.stop_reason == DISK_FULL):
                self._lose(table, batch)
                raise
            self._stop(DISK_FULL)
            if is_mark:
                self._segments.append(table, batch)  # into the room that was kept back
            else:
                self._lose(table, batch)
        self._unless_full(self._rotate)

    def lose(self, loss: Loss) -> None:
        """Take note of a loss, and write a row of it once it is due."""
        self._losses.add(loss)
        self._write_losses()

    def tick(self) -> None:
        """Do what time asks for."""
        self._write_losses()
        self._unless_full(self._rotate)

    def end(self, end_ns: int) -> None:
        """Write the losses that wait, and END."""
        self._write_losses(everything=True)
        self.append("marks", mark_row(self._side, Mark.END, end_ns))

    def finish(self, manifest: Manifest, *, complete: bool, end_reason: str) -> None:
        """Close the segments, and say in the manifest how it ended."""
        self._reserve.release()
        self._segments.close_all()
        self._save(manifest, complete=complete, end_reason=end_reason)

    def save_rest(self, end_reason: str) -> None:
        """After a failure: save as much as the disk lets us; a part that cannot be closed stays."""
        for step in (
            self._reserve.release,
            lambda: self._write_losses(everything=True),
            self._segments.close_all,
            lambda: self._save(self.manifest, end_reason=end_reason),
        ):
            with suppress(OSError):
                step()

    def _has_room(self) -> bool:
        return self.stop_reason == BUDGET and not self._storage.is_over(self._used_bytes)

    def _lose(self, table: str, batch: pa.RecordBatch) -> None:
        """Count rows that are not written; the last marks tell of them."""
        cause = "budget" if self.stop_reason == BUDGET else "disk"
        self._note(table, batch.num_rows, span_of(table, batch), cause)

    def _note(self, table: str, rows: int, span: tuple[int, int] | None, cause: str) -> None:
        since_ns, until_ns = span or (None, time.monotonic_ns())
        side = self._side.name.lower()
        self._losses.add(Loss(side, table, rows, since_ns, until_ns, cause))

    def _stop(self, reason: str) -> None:
        """End the writing of rows; of a full disk, use the room that was kept back."""
        self.stop_reason = reason
        if reason == DISK_FULL:
            self._reserve.release()

    def _unless_full(self, step: Callable[[], None]) -> None:
        """Run a step that loses nothing if the disk is full: it is then left to `finish`."""
        try:
            step()
        except OSError as problem:
            if not is_full(problem):
                raise
            self._stop(DISK_FULL)

    def _write_losses(self, *, everything: bool = False) -> None:
        """Write the rows that are due; a trace that has stopped keeps them for its end."""
        if self.stop_reason is None or everything:
            for loss in self._losses.take(time.monotonic_ns(), everything=everything):
                row = mark_row(
                    self._side,
                    Mark.LOSS,
                    loss.until_ns,
                    value=loss.count,
                    text=loss.stream,
                    since_ns=loss.since_ns,
                    cause=loss.cause,
                )
                self.append("marks", row)

    def _rotate(self) -> None:
        """Close what is large or old, keep within the budget, and keep room for the end."""
        if self.stop_reason is None:
            closed = self._segments.rotate()
            removed = self._storage.is_spent(self._used_bytes) and self._spare()
            if closed or removed:
                self._save(self.manifest)
            self._hold()

    def _hold(self) -> None:
        """Keep room for what the end writes: footers, marks, and a manifest beside the old one."""
        wanted = self._segments.ending_bytes + self._manifest_bytes + RESERVE_STEP_BYTES // 2
        self._reserve.hold(wanted)

    def _spare(self) -> bool:
        """Delete the oldest segments, or stop, where the budget is spent.

        A file goes first, then its loss is told, then the manifest forgets it: whoever is killed in
        between leaves a manifest that lists what is not there, and no silent gap.
        """
        removed = False
        while self._storage.budget_policy == "oldest" and self._storage.is_spent(self._used_bytes):
            gone = self._segments.remove_oldest(kept="marks")
            if gone is None:
                break
            self._note(gone.segment.table, gone.segment.rows, gone.span, "budget")
            removed = True
        if self._storage.is_spent(self._used_bytes):
            self._stop(BUDGET)
        if removed:
            self._write_losses(everything=True)
        return removed

    def _save(self, manifest: Manifest, *, complete: bool = False, end_reason: str = "") -> None:
        self.manifest = replace(
            manifest,
            session_id=self.manifest.session_id,
            created_realtime_ns=self.manifest.created_realtime_ns,
            segments=self._segments.closed,
            losses=self._losses.entries,
            complete=complete,
            end_reason=end_reason,
        )
        self._manifest_bytes = write_manifest(self._bundle, self.manifest)
