"""The files behind a guest's memory: which descriptors of the VMM they are, and offset to GPA."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tracer.trace.manifest import Region
from tracer.vms.vmm import mappings

FileRegions = Mapping[int, tuple[Region, ...]]
"""Descriptor of the VMM to the regions that its file is behind."""


def files_of_regions(pid: int, regions: tuple[Region, ...]) -> FileRegions:
    """Find the descriptors under which a VMM holds the files behind its guest's memory.

    Args:
        pid: The VMM.
        regions: Guest memory; those without an HVA or a file are skipped.

    Raises:
        ProcessError: The process is gone or may not be read.
    """
    behind: dict[int, list[Region]] = {}
    for mapping in mappings(pid):
        for region in regions:
            if mapping.inode and mapping.start <= (region.hva or 0) < mapping.end:
                behind.setdefault(mapping.inode, []).append(region)
    found = {}
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir() if behind else ():
            with suppress(OSError):
                inode = entry.stat().st_ino
                if inode in behind:
                    found[int(entry.name)] = tuple(behind[inode])
    return found


def gpa_of_offsets(
    files: FileRegions, fd: npt.NDArray[np.uint32], offset: npt.NDArray[np.uint64]
) -> npt.NDArray[np.int64]:
    """Translate offsets into those files to guest-physical addresses.

    Args:
        files: What `files_of_regions` found.
        fd: uint32[n], the descriptor of each.
        offset: uint64[n], bytes into its file.

    Returns:
        int64[n], -1 where an offset is not guest memory.
    """
    gpa = np.full(len(fd), -1, np.int64)
    for number, regions in files.items():
        begin = 0
        for region in regions:
            # Without a known offset, regions lie in the file one after the other.
            start = begin if region.file_offset_bytes is None else region.file_offset_bytes
            within = offset.astype(np.int64) - start
            inside = (fd == number) & (within >= 0) & (within < region.length_bytes)
            gpa[inside] = within[inside] + region.gpa
            begin += region.length_bytes
    return gpa
