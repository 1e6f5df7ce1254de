"""Makes the directory of a new trace, and clears an old trace away if the user insists."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from tracer.trace.errors import (
    ForeignTraceError,
    NewerTraceError,
    OlderTraceError,
    TraceError,
)
from tracer.trace.layout import (
    MANIFEST,
    foreign_entries,
    lock,
    names_in,
    read_manifest,
    write_manifest,
)
from tracer.trace.manifest import Manifest
from tracer.trace.schema import TABLES

_UNFINISHED = "not all of it was copied"


@contextmanager
def copy_to_fill(path: Path, manifest: Manifest, *, force: bool) -> Iterator[None]:
    """Make the bundle of a copy, locked until it is filled; if that fails, nothing is left of it.

    Whoever copies has read all of the source before: from here on, what was at `path` is gone.

    Args:
        path: The directory to create.
        manifest: Of the trace that is copied. Until another is written, it is marked as not
            complete: a copier that is killed leaves what is known as a trace, and as a part of one.
        force: Replace an aerostat bundle that is there.

    Raises:
        TraceError: As `make_bundle`.
        OSError: The disk is full, or fails.
    """
    make_bundle(path, force=force)
    descriptor = lock(path)
    try:
        begun = replace(manifest, segments=(), complete=False, end_reason=_UNFINISHED)
        write_manifest(path, begun)
        yield
    except BaseException:
        with suppress(OSError):
            _delete(path)
        raise
    finally:
        os.close(descriptor)


def require_apart(source: Path, output: Path) -> None:
    """Refuse to write into a trace that is only to be read, whatever the names of the two are.

    Args:
        source: The trace to copy from.
        output: The trace to make or to add to.

    Raises:
        TraceError: `output` is the source, or lies in it.
    """
    if output.resolve().is_relative_to(source.resolve()):
        raise TraceError(
            f"{output} is the trace to copy, or in it",
            reason="it is only read",
            remedy="give another path",
        )


def make_bundle(path: Path, *, force: bool) -> None:
    """Create an empty bundle.

    Args:
        path: The directory to create; its parent must exist.
        force: Replace an aerostat bundle that is there.

    Raises:
        TraceError: Something is there, and is not to be replaced; or the system says no.
    """
    try:
        if path.is_symlink() or path.exists():
            if not force:
                raise TraceError(
                    f"{path} exists",
                    reason="a trace is never overwritten unasked",
                    remedy="use --force",
                )
            remove_bundle(path)
        path.mkdir()
    except OSError as problem:
        raise TraceError(
            f"cannot create the trace {path}",
            reason=problem.strerror or str(problem),
            remedy="give a path in a directory that exists and can be written",
        ) from problem


def remove_bundle(path: Path) -> None:
    """Remove a bundle of aerostat and nothing else: any other file in it stops this first.

    Raises:
        TraceError: It is not, or not only, a bundle, or is being written.
    """
    foreign = [] if path.is_dir() and not path.is_symlink() else [path.name]
    try:
        read_manifest(path)
        foreign = foreign or foreign_entries(path)
    except (NewerTraceError, OlderTraceError):
        foreign = foreign or foreign_entries(path)
    except ForeignTraceError:
        foreign = foreign or ["no manifest of aerostat"]
    if foreign:
        raise TraceError(
            f"{path} is not replaced",
            reason=f"it is not, or not only, an aerostat trace: {', '.join(foreign[:3])}",
            remedy="choose another path, or move it away yourself",
        )
    _remove(path)


def _remove(path: Path) -> None:
    descriptor = lock(path)
    try:
        _delete(path)
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    """Delete a trace's files, the manifest last: half deleted, it is still known as a trace."""
    for table in TABLES:
        if (path / table).is_dir():
            for name in names_in(path / table):
                (path / table / name).unlink()
            (path / table).rmdir()
    for name in sorted(names_in(path), key=lambda name: name == MANIFEST):
        (path / name).unlink()
    path.rmdir()
