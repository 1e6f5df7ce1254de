"""Names and files of a bundle, and the few ways in which they are read and replaced."""

import errno
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path, PurePath

from tracer.trace.errors import (
    ForeignTraceError,
    TornTraceError,
    TraceError,
    salvage_remedy,
)
from tracer.trace.manifest import MAX_MANIFEST_BYTES, Manifest, Segment
from tracer.trace.manifest_parts import SIDES
from tracer.trace.schema import TABLES

MANIFEST = "manifest.json"
DAMAGED_MANIFEST = "_manifest.json.damaged"
"""Where salvage keeps a manifest that it could not read."""
RESERVE = "_reserve"
"""Space kept back while recording, so that a full disk still takes footers and the manifest."""
MAX_SEGMENT_BYTES = 1 << 30
_NAME = re.compile(
    rf"_?({'|'.join(SIDES)})-(\d{{5,9}})\.arrow(\.part|\.new|\.unreadable)?", re.ASCII
)


def segment_file(table: str, side: str, number: int) -> str:
    """Path of a closed segment below the bundle; numbers begin at 1."""
    return f"{table}/{side}-{number:05d}.arrow"


def number_of(segment: str) -> int:
    """The number that a closed segment's path ends with."""
    return int(segment.rsplit("-", 1)[1].removesuffix(".arrow"))


def side_of(segment: str) -> str:
    """The side that a segment's name gives: host or guest."""
    return PurePath(segment).name.partition("-")[0]


def hidden_file(segment: str, suffix: str) -> str:
    """Path of a segment's other form; `_` hides it from Arrow's dataset discovery."""
    return str(PurePath(segment).with_name(f"_{PurePath(segment).name}{suffix}"))


def part_file(segment: str) -> str:
    """Path of the same segment while it is written."""
    return hidden_file(segment, ".part")


def names_in(directory: Path) -> list[str]:
    """Names in a directory, in order."""
    return sorted(entry.name for entry in directory.iterdir())


def files_on_disk(bundle: Path, *, parts: bool) -> list[str]:
    """List the closed segments, or the segments whose part is there, whatever the manifest says.

    Returns:
        Paths of closed segments below the bundle, host before guest, by number.
    """
    found = []
    for table in TABLES:
        with suppress(FileNotFoundError, NotADirectoryError):
            for name in names_in(bundle / table):
                match = _NAME.fullmatch(name)
                if match and (name[0] == "_", match[3]) == (parts, ".part" if parts else None):
                    found.append((table, SIDES.index(match[1]), int(match[2]), match[1]))
    return [segment_file(table, side, number) for table, _, number, side in sorted(found)]


def foreign_entries(bundle: Path) -> list[str]:
    """List what lies in a bundle's directory and is not a trace's."""
    found = []
    for entry in sorted(bundle.iterdir()):
        if entry.name in TABLES and entry.is_dir() and not entry.is_symlink():
            found += [f"{entry.name}/{n}" for n in names_in(entry) if not _NAME.fullmatch(n)]
        elif entry.name not in {MANIFEST, f"_{MANIFEST}.new", DAMAGED_MANIFEST, RESERVE}:
            found.append(entry.name)
    return found


def read_regular(path: Path, limit_bytes: int) -> bytes:
    """Read a whole file; never through a link, never from a pipe or device, never beyond a limit.

    Raises:
        TraceError: It is none of these, or larger than the limit, or the system says no.
    """
    with open_regular(path, limit_bytes) as file, _readable(path):
        return file.read(os.fstat(file.fileno()).st_size)


def open_regular(path: Path, limit_bytes: int) -> FileIO:
    """Open a file for reading, with the same care.

    Raises:
        TraceError: As `read_regular`.
    """
    with _readable(path):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = FileIO(os.open(path, flags), "rb")
        try:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            if status.st_size > limit_bytes:
                raise OSError(errno.EFBIG, f"{status.st_size} bytes, more than {limit_bytes}")
        except OSError:
            file.close()
            raise
        return file


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise TraceError(
            f"cannot read {path}",
            reason=problem.strerror or str(problem),
            remedy="give a trace that you may read; if a file is gone, copy the trace again",
        ) from problem


def read_manifest(bundle: Path) -> Manifest:
    """Read a bundle's manifest.

    Raises:
        ForeignTraceError: The path is not a bundle.
        TornTraceError: There are segments, but no whole manifest.
        TraceError: Anything else is wrong with it.
    """
    if not bundle.is_dir():
        raise ForeignTraceError(
            f"{bundle} is not a trace",
            reason="not a directory" if bundle.exists() else "no such directory",
            remedy="give the path of a NAME.balloon directory",
        )
    if not os.path.lexists(bundle / MANIFEST):
        torn = files_on_disk(bundle, parts=False) + files_on_disk(bundle, parts=True)
        raise (TornTraceError if torn else ForeignTraceError)(
            f"{bundle} has no {MANIFEST}",
            reason=f"{len(torn)} segments are there" if torn else "nor any segment",
            remedy=salvage_remedy(bundle) if torn else "give another path",
        )
    try:
        return Manifest.from_json(read_regular(bundle / MANIFEST, MAX_MANIFEST_BYTES))
    except TraceError as problem:
        problem.what = f"{bundle}: {problem.what}"
        if isinstance(problem, TornTraceError):
            problem.remedy = salvage_remedy(bundle)
        raise


def write_manifest(bundle: Path, manifest: Manifest) -> int:
    """Replace the manifest in one step: whoever reads sees the old one or the new one, whole.

    Returns:
        Its size in bytes.

    Raises:
        OSError: The disk is full, or fails; the old one stays.
    """
    fresh = bundle / f"_{MANIFEST}.new"
    text = manifest.to_json().encode()
    try:
        with fresh.open("wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(bundle / MANIFEST)
    except OSError:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    sync(bundle)
    return len(text)


def sync(path: Path) -> None:
    """Ask the system to bring a file's content, or a directory's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_segment(bundle: Path, file: str, rows: int) -> Segment:
    """Say of a closed segment what the manifest lists of it."""
    path = bundle / file
    return Segment(
        table=file.partition("/")[0],
        side=side_of(file),
        file=file,
        rows=rows,
        bytes=path.stat().st_size,
        sha256=sha256_of(path),
    )


def lock(bundle: Path) -> int:
    """Take the bundle for writing until the returned descriptor is closed.

    Raises:
        TraceError: Another process is writing it.
    """
    descriptor = os.open(bundle, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as problem:
        os.close(descriptor)
        raise TraceError(
            f"{bundle} is being written by another process",
            reason=problem.strerror or str(problem),
            remedy="wait until the recorder has ended",
        ) from problem
    except OSError:
        pass  # a file system without locks; what is written is no less safe
    return descriptor
