"""What salvage starts from: a copy of the torn trace, and the manifest or what is left of it."""

import os
from pathlib import Path

from tracer.trace.errors import NewerTraceError, TornTraceError, TraceError
from tracer.trace.layout import (
    MANIFEST,
    MAX_SEGMENT_BYTES,
    files_on_disk,
    lock,
    part_file,
    read_manifest,
    read_regular,
)
from tracer.trace.manifest import Manifest
from tracer.trace.replace_bundle import make_bundle


def copy_bundle(bundle: Path, output: Path, *, force: bool) -> Path:
    """Copy a trace's own files, and no others, while nobody writes it.

    Args:
        bundle: The trace, which is only read.
        output: The directory to make.
        force: Replace a trace that is there.

    Returns:
        `output`.

    Raises:
        TraceError: Something else is at `output`, the trace is being written, or a file cannot be
            read.
    """
    read_or_rebuild(bundle)
    if output.exists() and output.samefile(bundle):
        raise TraceError(
            f"{output} is the trace to salvage",
            reason="it is only read",
            remedy="give another output",
        )
    descriptor = lock(bundle)
    try:
        make_bundle(output, force=force)
        closed = files_on_disk(bundle, parts=False)
        for file in [*closed, *map(part_file, files_on_disk(bundle, parts=True)), MANIFEST]:
            if os.path.lexists(bundle / file):
                (output / file).parent.mkdir(exist_ok=True)
                (output / file).write_bytes(read_regular(bundle / file, MAX_SEGMENT_BYTES))
    finally:
        os.close(descriptor)
    return output


def read_or_rebuild(bundle: Path) -> tuple[Manifest, str]:
    """Read the manifest; for a damaged or missing one, make one that claims nothing.

    Returns:
        The manifest, and what was wrong with it; empty where nothing was.

    Raises:
        ForeignTraceError: The path is not a trace.
        NewerTraceError: A newer aerostat wrote it; its columns are not known here.
    """
    try:
        manifest = read_manifest(bundle)
    except TornTraceError as problem:
        return Manifest(created_realtime_ns=None), problem.what
    if manifest.is_newer_minor:
        raise NewerTraceError(
            f"{bundle} has format {manifest.format_version}, newer than this aerostat writes",
            reason="salvage would lose the columns that it does not know",
            remedy="salvage it with the aerostat that recorded it",
        )
    return manifest, ""
