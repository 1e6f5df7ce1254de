"""Copies a trace into the other form: absolute numbers for every tool, or differences."""

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tracer.trace.delta import Form
from tracer.trace.errors import TraceError, salvage_remedy
from tracer.trace.layout import (
    MAX_SEGMENT_BYTES,
    describe_segment,
    files_on_disk,
    lock,
    number_of,
    read_regular,
    segment_file,
    sync,
    write_manifest,
)
from tracer.trace.manifest import Manifest, Segment
from tracer.trace.open_segment import OpenSegment
from tracer.trace.reader import Trace, open_trace
from tracer.trace.replace_bundle import copy_to_fill, require_apart
from tracer.trace.schema import FORMAT_VERSION, TABLES
from tracer.trace.segment_reader import closed_batches
from tracer.trace.storage import Storage


@dataclass(frozen=True)
class Restated:
    """What became of a trace's segments.

    Attributes:
        segments: All of them.
        written_anew: Those that had the other form; the rest are copies, byte by byte.
        before_bytes: Of all segments of the trace that was read.
        after_bytes: Of all segments of the one that was made.
    """

    segments: int
    written_anew: int
    before_bytes: int
    after_bytes: int


def restate(path: Path, output: Path, *, delta: bool, force: bool = False) -> Restated:
    """Copy a trace with the rows of its requests and calls in one form.

    Rows stay what they are, and so does the manifest, but for the files it lists and, where there
    are differences now, the format's version. A segment that is written anew is compressed with
    lz4, and may become several. Until the last is on the disk the copy is marked as not complete,
    and if one fails, nothing is left of it.

    Args:
        path: The trace, closed or salvaged; it is only read.
        output: The directory to make.
        delta: Whether as differences (tracer/trace/delta.py); else as absolute numbers.
        force: Replace a trace that is at `output`, once all files of this one were found whole.

    Raises:
        TraceError: The trace is torn, of a newer aerostat, being written, or not what was recorded;
            something else is at `output`; the disk is full or fails.
    """
    try:
        trace = open_trace(path)
        _require_copyable(trace, output)
        with contextlib.ExitStack() as locks:
            locks.callback(os.close, lock(path))
            for segment in trace.manifest.segments:
                _recorded_bytes(trace, segment)
            other = frozenset(trace.segments_of_form(delta=not delta))
            locks.enter_context(copy_to_fill(output, trace.manifest, force=force))
            return _Copy(trace, output, delta, other).run()
    except OSError as problem:
        raise TraceError(
            f"cannot copy {path} to {output}",
            reason=problem.strerror or str(problem),
            remedy="see that it may be read, free space there, or give another output",
        ) from problem


def _require_copyable(trace: Trace, output: Path) -> None:
    manifest = trace.manifest
    require_apart(trace.path, output)
    if manifest.is_newer_minor:
        raise TraceError(
            f"{trace.path} has format {manifest.format_version}, newer than this aerostat's",
            reason="columns that it does not know would be lost",
            remedy="copy it with the aerostat that recorded it",
        )
    listed = {segment.file for segment in manifest.segments}
    closed = files_on_disk(trace.path, parts=False)
    torn = listed != {*closed} or files_on_disk(trace.path, parts=True)
    if torn and not manifest.complete:
        raise TraceError(
            f"{trace.path} was not closed",
            reason="only segments that a manifest lists are known to be whole",
            remedy=salvage_remedy(trace.path),
        )


def _recorded_bytes(trace: Trace, segment: Segment) -> bytes:
    """Read a segment, and refuse one that is not what the manifest lists.

    Raises:
        TraceError: It cannot be read, or is another file.
    """
    path = trace.path / segment.file
    content = read_regular(path, MAX_SEGMENT_BYTES)
    if hashlib.sha256(content).hexdigest() != segment.sha256:
        raise TraceError(
            f"{path} is not the file that was recorded",
            reason="its SHA-256 is not the one in the manifest",
            remedy=salvage_remedy(trace.path),
        )
    return content


class _Copy:
    """One trace's copy, under both locks, into a bundle that is there."""

    def __init__(self, trace: Trace, output: Path, delta: bool, other: frozenset[str]) -> None:
        self._trace, self._output = trace, output
        self._delta, self._other = delta, other
        self._last: Counter[tuple[str, str]] = Counter()

    def run(self) -> Restated:
        manifest = self._trace.manifest
        ordered = sorted(manifest.segments, key=_place)
        made = [part for segment in ordered for part in self._copied(segment)]
        write_manifest(self._output, self._described(manifest, made))
        return Restated(
            len(manifest.segments),
            len(self._other),
            sum(segment.bytes for segment in manifest.segments),
            sum(segment.bytes for segment in made),
        )

    def _described(self, manifest: Manifest, made: list[Segment]) -> Manifest:
        version = FORMAT_VERSION if self._delta and self._other else manifest.format_version
        return replace(manifest, segments=tuple(made), format_version=version)

    def _copied(self, segment: Segment) -> list[Segment]:
        is_other = segment.file in self._other
        made = [*self._written(segment)] if is_other else [self._taken(segment)]
        rows = sum(part.rows for part in made)
        if rows != segment.rows:
            raise TraceError(
                f"{self._trace.path / segment.file} holds {rows} rows, not {segment.rows}",
                reason="the manifest lists another number",
                remedy=salvage_remedy(self._trace.path),
            )
        return made

    def _written(self, segment: Segment) -> Iterator[Segment]:
        """Write rows anew, and begin another file where a reader would refuse a larger one."""
        storage, form = Storage(), Form(segment.table, self._delta)
        part: OpenSegment | None = None
        for batch in self._trace.segment_batches(segment.file):
            if part is None:
                file = self._next_file(segment)
                part = OpenSegment(self._output, form, segment.side, file, storage.compression)
            part.write(batch)
            if part.is_dense or part.size_bytes >= storage.segment_bytes:
                yield from self._closed(part)
                part = None
        if part is not None:
            yield from self._closed(part)

    def _closed(self, part: OpenSegment) -> Iterator[Segment]:
        """Close a part and read it back: what is copied shall not be lost with the source."""
        segment = part.close()
        if segment is None:
            return
        try:
            for _ in closed_batches(self._output / segment.file, segment.table):
                pass
        except TraceError as problem:
            raise TraceError(
                f"rows of {segment.table} cannot be stored in this form",
                reason=problem.reason,
                remedy="keep the trace as it is",
            ) from problem
        yield segment

    def _taken(self, segment: Segment) -> Segment:
        file = self._next_file(segment)
        path = self._output / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(_recorded_bytes(self._trace, segment))
        sync(path)
        sync(path.parent)
        rows = sum(batch.num_rows for batch in self._trace.segment_batches(segment.file))
        return describe_segment(self._output, file, rows)

    def _next_file(self, segment: Segment) -> str:
        """Keep a segment's number, unless one before it has become several."""
        key = (segment.table, segment.side)
        self._last[key] = max(self._last[key] + 1, number_of(segment.file))
        return segment_file(*key, self._last[key])


def _place(segment: Segment) -> tuple[int, bool, int]:
    """Order of a manifest: by table, host before guest, by number."""
    return [*TABLES].index(segment.table), segment.side == "guest", number_of(segment.file)
