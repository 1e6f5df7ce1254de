"""What salvage starts from: a copy of the torn trace, and the manifest or what is left of it."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tracer.trace.errors import NewerTraceError, TornTraceError
from tracer.trace.layout import (
    MANIFEST,
    MAX_SEGMENT_BYTES,
    files_on_disk,
    lock,
    part_file,
    read_manifest,
    read_regular,
)
from tracer.trace.manifest import MAX_MANIFEST_BYTES, Manifest
from tracer.trace.replace_bundle import copy_to_fill, require_apart


@contextmanager
def copied(bundle: Path, output: Path, *, force: bool) -> Iterator[None]:
    """Copy a trace's own files, and no others, while nobody writes it.

    Every file is read before anything at `output` is touched. Both are locked until the caller has
    done with the copy; if the caller fails, nothing is left of it.

    Args:
        bundle: The trace, which is only read.
        output: The directory to make.
        force: Replace a trace that is there.

    Raises:
        TraceError: Something else is at `output`, the trace is being written, or a file cannot be
            read.
    """
    manifest, _ = read_or_rebuild(bundle)
    require_apart(bundle, output)
    with ExitStack() as locks:
        locks.callback(os.close, lock(bundle))
        closed = files_on_disk(bundle, parts=False)
        files = [*closed, *map(part_file, files_on_disk(bundle, parts=True))]
        for file in files:
            read_regular(bundle / file, MAX_SEGMENT_BYTES)
        locks.enter_context(copy_to_fill(output, manifest, force=force))
        for file in files:
            (output / file).parent.mkdir(exist_ok=True)
            (output / file).write_bytes(read_regular(bundle / file, MAX_SEGMENT_BYTES))
        _copy_manifest(bundle, output)
        yield


def _copy_manifest(bundle: Path, output: Path) -> None:
    """Put the trace's own manifest, or none where it has none, in place of the copy's first one."""
    if not os.path.lexists(bundle / MANIFEST):
        (output / MANIFEST).unlink()
        return
    fresh = output / f"_{MANIFEST}.new"
    fresh.write_bytes(read_regular(bundle / MANIFEST, MAX_MANIFEST_BYTES))
    fresh.rename(output / MANIFEST)


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
