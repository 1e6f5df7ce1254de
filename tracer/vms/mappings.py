"""What a process has mapped, from /proc/PID/maps, and what is behind each mapping."""

from __future__ import annotations

import ctypes
import mmap
import re
from dataclasses import dataclass
from pathlib import Path

from tracer.errors import ProcessError
from tracer.vms.process import GONE, PROC, no_process

_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) (\S+) (\d+)\s*(.*)")
_HUGETLBFS_MAGIC = 0x958458F6
"""include/uapi/linux/magic.h, since 2.6."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps: `start <= HVA < end`."""

    start: int
    end: int
    permissions: str
    offset_bytes: int
    inode: int
    path: str
    device: str = "00:00"

    @property
    def length_bytes(self) -> int:
        """Size in bytes."""
        return self.end - self.start

    @property
    def file(self) -> tuple[str, int] | None:
        """Device and inode of the file behind it, or None for anonymous memory."""
        return (self.device, self.inode) if self.inode else None


def mappings(pid: int, proc: Path = PROC) -> list[Mapping]:
    """Read a process's memory map, rising by address.

    Raises:
        ProcessEndedError: The process is gone.
        ProcessError: It may not be read.
    """
    try:
        text = (proc / str(pid) / "maps").read_text(errors="replace")
    except OSError as error:
        if error.errno in GONE:
            raise no_process(pid, str(error)) from error
        raise ProcessError(
            f"cannot read the memory map of process {pid}", reason=str(error), remedy="run as root"
        ) from error
    found = []
    for line in text.split("\n"):
        match = _LINE.match(line)
        if match:
            start, end, permissions, offset, device, inode, path = match.groups()
            found.append(
                Mapping(
                    int(start, 16),
                    int(end, 16),
                    permissions,
                    int(offset, 16),
                    int(inode),
                    path,
                    device,
                )
            )
    return found


def backing_of(mapping: Mapping, page_bytes: int = mmap.PAGESIZE) -> str:
    """Name the kind of memory behind a mapping, in the words of the trace format."""
    if page_bytes > mmap.PAGESIZE:
        return "hugetlb"
    if mapping.path.startswith("/memfd:"):
        return "memfd" if "s" in mapping.permissions else "file-private"
    if mapping.inode:
        return "shmem" if "s" in mapping.permissions else "file-private"
    return "shmem" if "s" in mapping.permissions else "anon"


def page_bytes_of(pid: int, mapping: Mapping, proc: Path = PROC) -> int:
    """Tell the page size the kernel uses for a mapping: larger than a base page for hugetlb alone.

    Asks the file system behind it through /proc/PID/map_files. KernelPageSize of smaps says the
    same, but makes the kernel walk every page of the VM first.
    """
    if not mapping.inode:
        return mmap.PAGESIZE
    # struct statfs: f_type and f_bsize are its first two longs (x86-64 and other 64-bit).
    buffer = (ctypes.c_long * 32)()
    if ctypes.CDLL(None).statfs(bytes(_link(pid, mapping, proc)), buffer) != 0:
        return mmap.PAGESIZE
    return buffer[1] if buffer[0] == _HUGETLBFS_MAGIC else mmap.PAGESIZE


def file_bytes_of(pid: int, mapping: Mapping, proc: Path = PROC) -> int | None:
    """Return the length of the file behind a mapping, or None."""
    if not mapping.inode:
        return None
    try:
        return _link(pid, mapping, proc).stat().st_size
    except OSError:
        return None


def _link(pid: int, mapping: Mapping, proc: Path) -> Path:
    """Name what leads to the file behind a mapping, whatever became of its name (root only)."""
    return proc / str(pid) / "map_files" / f"{mapping.start:x}-{mapping.end:x}"
