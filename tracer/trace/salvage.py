"""Turns what a crashed recorder left into a trace of closed segments, and says what was lost."""

import os
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from tracer.trace.errors import TraceError
from tracer.trace.findings import Finding, error, warning
from tracer.trace.layout import (
    DAMAGED_MANIFEST,
    MANIFEST,
    RESERVE,
    describe_segment,
    files_on_disk,
    hidden_file,
    lock,
    part_file,
    sync,
    write_manifest,
)
from tracer.trace.manifest import Segment
from tracer.trace.reader import open_trace
from tracer.trace.salvage_source import copied, read_or_rebuild
from tracer.trace.schema import TABLES
from tracer.trace.segment_reader import Tail, closed_batches, stored_form, torn_batches

END_REASON = "salvaged"
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


@dataclass(frozen=True)
class SalvageReport:
    """What salvage kept and what it could not.

    Attributes:
        path: The salvaged trace.
        rows: Rows kept, by table.
        dropped_bytes: Bytes of segments that belong to no whole batch.
        findings: What was wrong, segment by segment.
    """

    path: Path
    rows: dict[str, int]
    dropped_bytes: int
    findings: tuple[Finding, ...]


def salvage(
    path: Path | str, output: Path | str | None = None, *, force: bool = False
) -> SalvageReport:
    """Close what a trace left open, and rebuild its manifest.

    A trace that is whole stays as it is. Any other never becomes complete: it ends as "salvaged".
    Segments are written anew beside the old ones and renamed, so that salvage may itself be killed
    and called again.

    Args:
        path: The trace, in which the segments are closed in place.
        output: Leave `path` as it is and make the salvaged trace here; if that fails, nothing is
            left of it.
        force: Replace a trace that is at `output`, once all files of this one were read.

    Returns:
        What was kept and lost.

    Raises:
        ForeignTraceError: The path is not a trace.
        NewerTraceError: A newer aerostat wrote it; its columns are not known here.
        TraceError: A recorder is still writing it, or the disk is full or fails.
    """
    bundle = Path(path)
    try:
        if output is not None:
            with copied(bundle, Path(output), force=force):
                return _Salvage(Path(output), bundle).run()
        read_or_rebuild(bundle)
        descriptor = lock(bundle)
        try:
            return _Salvage(bundle, bundle).run()
        finally:
            os.close(descriptor)
    except OSError as problem:
        raise TraceError(
            f"cannot salvage {bundle}" + ("" if output is None else f" to {output}"),
            reason=problem.strerror or str(problem),
            remedy="free space there, or give another output",
        ) from problem


class _Salvage:
    """One trace's salvage, under its lock.

    Args:
        bundle: The trace, in which it is done.
        source: What is damaged, for the words: the same, or the trace that it is a copy of.
    """

    def __init__(self, bundle: Path, source: Path) -> None:
        self._bundle, self._source = bundle, source
        self._manifest, problem = read_or_rebuild(bundle)
        self._manifest_problem = self._of_source(problem)
        self._listed = {segment.file: segment for segment in self._manifest.segments}
        self._dropped_bytes = 0
        self._findings: list[Finding] = []
        self._kept: list[Segment] = []

    def run(self) -> SalvageReport:
        closed = files_on_disk(self._bundle, parts=False)
        if self._manifest.complete:
            # An unlisted segment beside a complete trace is what a merge left that was cut short.
            closed = [file for file in closed if file in self._listed]
        parts = files_on_disk(self._bundle, parts=True)
        for file in sorted({*closed, *parts}, key=[*closed, *parts].index):
            segment = self._keep(file) if file in closed else None
            segment = segment or self._rewrite(file)
            if segment is not None:
                self._kept.append(segment)
        for file in self._listed.keys() - {*closed, *parts}:
            self._findings.append(error("segment-missing", f"{file} is listed, but not on disk"))
        if self._manifest_problem:
            self._findings.append(error("manifest-damaged", self._manifest_problem))
        if self._findings or not self._manifest.complete:
            self._write_manifest()
        rows = Counter[str]()
        for segment in self._kept:
            rows[segment.table] += segment.rows
        return SalvageReport(
            self._bundle,
            {table: rows[table] for table in TABLES},
            self._dropped_bytes,
            tuple(self._findings),
        )

    def _keep(self, file: str) -> Segment | None:
        """Take a closed segment as it is, if all of it can be read."""
        table = file.partition("/")[0]
        path = self._bundle / file
        try:
            rows = sum(batch.num_rows for batch in closed_batches(path, table))
        except TraceError as problem:
            text = self._of_source(f"{problem.what} ({problem.reason})")
            self._findings.append(error("segment-damaged", text))
            return None
        (self._bundle / part_file(file)).unlink(missing_ok=True)
        segment = describe_segment(self._bundle, file, rows)
        listed = self._listed.get(file, segment)
        if listed.sha256 != segment.sha256:
            self._findings.append(
                error("segment-hash", f"{file} is not the file that was recorded")
            )
        return segment

    def _rewrite(self, file: str) -> Segment | None:
        """Write the whole batches of a part, or of a damaged segment, into a closed segment."""
        table, path = file.partition("/")[0], self._bundle / file
        part = self._bundle / part_file(file)
        source = part if part.exists() else path
        fresh = self._bundle / hidden_file(file, ".new")
        tail = Tail()
        rows = 0
        try:
            form = stored_form(source, table)
            with (
                pa.OSFile(str(fresh), "wb") as sink,
                pa.ipc.new_file(sink, form.schema, options=_OPTIONS) as writer,
            ):
                for batch in torn_batches(source, table, tail):
                    writer.write_batch(form.stored(batch))
                    rows += batch.num_rows
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        except TraceError as problem:
            fresh.unlink(missing_ok=True)
            self._set_aside(source, file, problem)
            return None
        self._dropped_bytes += tail.dropped_bytes
        self._note(source, rows, tail)
        if rows:
            sync(fresh)
            fresh.rename(path)
        else:
            fresh.unlink()
            path.unlink(missing_ok=True)
        sync(path.parent)
        part.unlink(missing_ok=True)
        return describe_segment(self._bundle, file, rows) if rows else None

    def _note(self, source: Path, rows: int, tail: Tail) -> None:
        text = f"{source.parent.name}/{source.name}: kept {rows} rows"
        if tail.dropped_bytes:
            text += f", dropped {tail.dropped_bytes} bytes ({tail.reason})"
        self._findings.append(warning("part-closed", text))

    def _set_aside(self, source: Path, file: str, problem: TraceError) -> None:
        """Hide a file that holds no rows of this table, instead of deleting what we do not know."""
        with suppress(OSError):
            self._dropped_bytes += source.stat().st_size
        source.rename(self._bundle / hidden_file(file, ".unreadable"))
        text = self._of_source(f"{problem.what} ({problem.reason})")
        self._findings.append(error("segment-unreadable", text))

    def _of_source(self, text: str) -> str:
        """Say of the user's trace what was found in our copy of it, which holds the same bytes."""
        # Whole, and as a path: a copy may be called `a`, which is in most words.
        copy = re.escape(str(self._bundle))
        named = rf"^{copy}(?=[/:\s]|$)|(?<!\S){copy}(?=[/:])"
        return re.sub(named, lambda _: str(self._source), text)

    def _end_reason(self) -> str:
        """Say that it was salvaged, and keep what the recorder still could say itself."""
        before = self._manifest.end_reason
        if before.startswith(END_REASON):
            return before
        return END_REASON if self._manifest.complete or not before else f"{END_REASON}: {before}"

    def _write_manifest(self) -> None:
        """Write the manifest twice: the losses can be read only once the segments are listed.

        What it knew of losses stays: the marks that told of them may be what was damaged.
        """
        if self._manifest_problem and os.path.lexists(self._bundle / MANIFEST):
            (self._bundle / MANIFEST).rename(self._bundle / DAMAGED_MANIFEST)
        found = replace(
            self._manifest,
            segments=tuple(self._kept),
            complete=False,
            end_reason=self._end_reason(),
        )
        write_manifest(self._bundle, found)
        losses = open_trace(self._bundle).losses
        write_manifest(self._bundle, replace(found, losses=losses))
        (self._bundle / RESERVE).unlink(missing_ok=True)
