"""Copies a whole trace into the other form: absolute numbers for every tool, or differences."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from tracer.trace.delta import Form
from tracer.trace.errors import TraceError, salvage_remedy
from tracer.trace.layout import (
    MAX_SEGMENT_BYTES,
    describe_segment,
    lock,
    read_regular,
    sha256_of,
    sync,
    write_manifest,
)
from tracer.trace.manifest import Segment
from tracer.trace.reader import Trace, open_trace
from tracer.trace.replace_bundle import make_bundle
from tracer.trace.schema import FORMAT_VERSION

_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


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

    Rows, manifest and marks stay what they are. Until the last segment is on the disk the copy is
    marked as not complete. A segment that is written anew is compressed with lz4.

    Args:
        path: The trace, complete; it is only read.
        output: The directory to make.
        delta: Whether as differences (tracer/trace/delta.py); else as absolute numbers.
        force: Replace a trace that is at `output`.

    Raises:
        TraceError: The trace is not whole or of a newer aerostat, or is being written; something
            else is at `output`; the disk is full or fails.
    """
    trace = open_trace(path)
    _require_whole(trace, output)
    try:
        source = lock(path)
        try:
            make_bundle(output, force=force)
            target = lock(output)
            try:
                return _copy(trace, output, delta)
            finally:
                os.close(target)
        finally:
            os.close(source)
    except OSError as problem:
        raise TraceError(
            f"cannot copy {path} to {output}",
            reason=problem.strerror or str(problem),
            remedy="free space there, or give another output",
        ) from problem


def _require_whole(trace: Trace, output: Path) -> None:
    if output.exists() and output.samefile(trace.path):
        raise TraceError(
            f"{output} is the trace to copy",
            reason="it is only read",
            remedy="give another output",
        )
    if not trace.manifest.complete:
        raise TraceError(
            f"{trace.path} was not closed",
            reason="only the segments of a closed trace are known to be whole",
            remedy=salvage_remedy(trace.path),
        )
    if trace.manifest.is_newer_minor:
        raise TraceError(
            f"{trace.path} has format {trace.manifest.format_version}, newer than this aerostat's",
            reason="columns that it does not know would be lost",
            remedy="copy it with the aerostat that recorded it",
        )


def _require_recorded(bundle: Path, segment: Segment) -> None:
    """Give no file a hash of its own that is not the one that was recorded."""
    if sha256_of(bundle / segment.file) != segment.sha256:
        raise TraceError(
            f"{bundle / segment.file} is not the file that was recorded",
            reason="its SHA-256 is not the one in the manifest",
            remedy=salvage_remedy(bundle),
        )


def _copy(trace: Trace, output: Path, delta: bool) -> Restated:
    manifest = replace(trace.manifest, format_version=FORMAT_VERSION)
    write_manifest(output, replace(manifest, segments=(), complete=False))
    other = set(trace.segments_of_form(delta=not delta))
    made = []
    for segment in manifest.segments:
        _require_recorded(trace.path, segment)
        (output / segment.file).parent.mkdir(exist_ok=True)
        if segment.file in other:
            rows = _write(trace, output, segment, Form(segment.table, delta))
        else:
            rows = _take(trace, output, segment)
        made.append(describe_segment(output, segment.file, rows))
    for table in {segment.table for segment in made}:
        sync(output / table)
    write_manifest(output, replace(manifest, segments=tuple(made)))
    return Restated(
        len(made),
        len(other),
        sum(segment.bytes for segment in manifest.segments),
        sum(segment.bytes for segment in made),
    )


def _write(trace: Trace, output: Path, segment: Segment, form: Form) -> int:
    rows = 0
    with (
        pa.OSFile(str(output / segment.file), "wb") as sink,
        pa.ipc.new_file(sink, form.schema, options=_OPTIONS) as writer,
    ):
        for batch in trace.segment_batches(segment.file):
            writer.write_batch(form.stored(batch))
            rows += batch.num_rows
    sync(output / segment.file)
    return rows


def _take(trace: Trace, output: Path, segment: Segment) -> int:
    rows: int = sum(batch.num_rows for batch in trace.segment_batches(segment.file))
    content = read_regular(trace.path / segment.file, MAX_SEGMENT_BYTES)
    (output / segment.file).write_bytes(content)
    sync(output / segment.file)
    return rows
