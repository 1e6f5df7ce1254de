"""Which guest pages have a host page behind them, and which are huge: what a discard costs.

An untouched page costs 340 ns to discard, a touched one 1319 ns and a 2 MiB one 12 ns a page
(docs/measuring.md), so a trace says which it was.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tracer.errors import ProcessError
from tracer.trace.manifest import Region
from tracer.trace.schema import PFN_SHIFT, RESIDENCY

# ioctl PAGEMAP_SCAN of /proc/PID/pagemap: include/uapi/linux/fs.h, since 6.7.
_PAGEMAP_SCAN = 0xC0606610
_PAGE_IS_PRESENT = 1 << 3
_PAGE_IS_PFNZERO = 1 << 5
_PAGE_IS_HUGE = 1 << 6
_SCAN_REGIONS = 8192
_PAGEMAP_PRESENT = np.uint64(1 << 63)
_READ_PAGES = 1 << 18
"""Pages whose entries are read at once: 2 MiB of a VM of any size."""

Int64s = npt.NDArray[np.int64]


def residency_batch(pid: int, regions: tuple[Region, ...], ts_ns: int) -> pa.RecordBatch:
    """Snapshot the residency of a VM's memory, run-length coded in PFN order.

    Args:
        pid: The VMM.
        regions: Guest memory; those without an HVA are skipped.
        ts_ns: Time to write into every row, CLOCK_MONOTONIC.

    Returns:
        Rows of the residency table: resident and absent runs cover each region. `huge` is null
        where this kernel cannot tell (no PAGEMAP_SCAN).

    Raises:
        ProcessError: The process is gone or its pagemap may not be read.
    """
    path = f"/proc/{pid}/pagemap"
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ProcessError(
            f"cannot read which pages of process {pid} are resident",
            reason=str(error),
            remedy="run as root (CAP_SYS_PTRACE)",
        ) from error
    try:
        parts = [_region_rows(fd, region) for region in regions if region.hva is not None]
    finally:
        os.close(fd)
    pfn, pages, resident, huge = (
        np.concatenate([part[column] for part in parts]) if parts else np.empty(0, np.int64)
        for column in range(4)
    )
    return pa.RecordBatch.from_arrays(
        [
            pa.array(np.full(len(pfn), ts_ns, np.int64)),
            pa.array(pfn.astype(np.uint64)),
            pa.array(pages.astype(np.uint64)),
            pa.array(resident == 1),
            pa.array(huge == 1, mask=huge < 0),
        ],
        schema=RESIDENCY,
    )


def _region_rows(fd: int, region: Region) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """Return pfn, pages, resident (0, 1) and huge (0, 1, -1 unknown) of a region's runs."""
    start = region.hva or 0
    try:
        present = _scan(fd, start, start + region.length_bytes)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL):
            raise ProcessError(
                "cannot read which pages of the guest are resident", reason=str(error)
            ) from error
        present = _from_pagemap(fd, start, region.length_bytes)
    present = _joined(present)
    edges = np.unique(
        np.concatenate((present[:, 0], present[:, 1], [start, start + region.length_bytes]))
    )
    begins, lengths = edges[:-1], np.diff(edges)
    row = np.searchsorted(present[:, 0], begins, side="right") - 1
    inside = (
        (row >= 0) & (begins < present[row, 1]) if len(present) else np.zeros(len(begins), bool)
    )
    huge = np.where(inside, present[row, 2] if len(present) else 0, 0)
    if len(present) and (present[:, 2] < 0).any():
        huge[:] = -1
    first = region.gpa >> PFN_SHIFT
    return (
        ((begins - start) >> PFN_SHIFT) + first,
        lengths >> PFN_SHIFT,
        inside.astype(np.int64),
        huge,
    )


def _joined(runs: Int64s) -> Int64s:
    """Join (start, end, huge) of runs that go on where the one before ended and are as huge."""
    if not len(runs):
        return runs
    is_new = (runs[1:, 0] != runs[:-1, 1]) | (runs[1:, 2] != runs[:-1, 2])
    begins, ends = np.append(True, is_new), np.append(is_new, True)
    return np.column_stack((runs[begins, 0], runs[ends, 1], runs[begins, 2]))


def _scan(fd: int, start: int, end: int) -> Int64s:
    """Return (start, end, is huge) of the present runs in [start, end), by PAGEMAP_SCAN."""
    parts = [np.empty((0, 3), np.int64)]
    vector = mmap.mmap(-1, _SCAN_REGIONS * 24, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = np.frombuffer(vector, np.uint8).ctypes.data
    at = start
    while at < end:
        argument = bytearray(
            struct.pack(
                "12Q",
                96,
                0,
                at,
                end,
                0,
                address,
                _SCAN_REGIONS,
                0,
                _PAGE_IS_PFNZERO,
                _PAGE_IS_PRESENT | _PAGE_IS_PFNZERO,
                0,
                _PAGE_IS_HUGE,
            )
        )
        count = fcntl.ioctl(fd, _PAGEMAP_SCAN, argument)
        rows = np.frombuffer(vector, np.uint64, 3 * count).reshape(-1, 3).astype(np.int64)
        rows[:, 2] = rows[:, 2] & _PAGE_IS_HUGE != 0
        parts.append(rows)
        walked = struct.unpack_from("Q", argument, 32)[0]
        at = end if walked <= at else walked
    return np.concatenate(parts)


def _from_pagemap(fd: int, start: int, length_bytes: int) -> Int64s:
    """Return present runs from the pagemap's entries: (start, end, -1), before Linux 6.7."""
    parts = [np.empty((0, 3), np.int64)]
    first, end = start // mmap.PAGESIZE, (start + length_bytes) // mmap.PAGESIZE
    for at in range(first, end, _READ_PAGES):
        count = min(_READ_PAGES, end - at)
        data = os.pread(fd, count * 8, at * 8)
        if len(data) < count * 8:
            raise ProcessError(
                "cannot read which pages of the guest are resident", reason="its process has ended"
            )
        present = (np.frombuffer(data, np.uint64) & _PAGEMAP_PRESENT) != 0
        edges = np.flatnonzero(np.diff(np.concatenate(([False], present, [False])).astype(np.int8)))
        runs = (edges.reshape(-1, 2).astype(np.int64) + at) * mmap.PAGESIZE
        parts.append(np.column_stack((runs, np.full(len(runs), -1, np.int64))))
    return np.concatenate(parts)
