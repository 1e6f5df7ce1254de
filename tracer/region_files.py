"""The files behind a guest's memory: their length, and the descriptors that lead to them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tracer.errors import ProcessError
from tracer.mappings import Mapping, mappings
from tracer.process import PROC
from tracer.trace.manifest import Region


def file_bytes(pid: int, mapping: Mapping, proc: Path = PROC) -> int | None:
    """Return the length of the file behind a mapping, or None."""
    found = _file_status(pid, mapping, proc)
    return None if found is None else found.st_size


def _file_status(pid: int, mapping: Mapping, proc: Path = PROC) -> os.stat_result | None:
    link = proc / str(pid) / "map_files" / f"{mapping.start:x}-{mapping.end:x}"
    try:
        return link.stat()
    except OSError:
        return None


def file_descriptors(
    pid: int, regions: tuple[Region, ...], proc: Path = PROC
) -> tuple[frozenset[int], ...]:
    """Find the descriptors through which a VMM reaches the files behind its guest's memory.

    Returns:
        For each region its descriptors; none for anonymous memory, or where they may not be read.
    """
    try:
        every = mappings(pid, proc)
        opened = _opened(proc / str(pid) / "fd")
    except (OSError, ProcessError):
        return (frozenset(),) * len(regions)
    found = []
    for region in regions:
        at = region.hva or 0
        behind = [
            status
            for mapping in every
            if mapping.start <= at < mapping.end and mapping.inode
            if (status := _file_status(pid, mapping, proc)) is not None
        ]
        key = (behind[0].st_dev, behind[0].st_ino) if behind else None
        found.append(frozenset(fd for fd, file in opened.items() if file == key))
    return tuple(found)


def _opened(directory: Path) -> dict[int, tuple[int, int]]:
    """Map a process's descriptors to device and inode."""
    found = {}
    for entry in directory.iterdir():
        with contextlib.suppress(OSError):
            status = entry.stat()
            found[int(entry.name)] = (status.st_dev, status.st_ino)
    return found
