"""Where guest-physical memory lies in the VMM: regions, and HVA <-> GPA over whole arrays."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracer.errors import ProcessError
from tracer.machine import read_text
from tracer.trace.manifest import Region
from tracer.vmm import Mapping, Vmm, below_4g_bytes, guest_ram

_FOUR_GIB = 4 << 30


def backing_of(mapping: Mapping) -> str:
    """Name the kind of memory behind a mapping, in the words of the trace format."""
    if mapping.path.startswith("/memfd:"):
        return "memfd"
    if mapping.path.startswith("/dev/zero"):
        return "shmem"
    if mapping.path.startswith("/dev/hugepages") or "hugetlb" in mapping.path:
        return "hugetlb"
    if mapping.inode and mapping.path:
        return "shmem" if "s" in mapping.permissions else "file-private"
    return "shmem" if "s" in mapping.permissions else "anon"


def find_regions(vmm: Vmm) -> tuple[Region, ...]:
    """Lay out the guest's memory as QEMU maps it: below the PCI hole, and above 4 GiB.

    Returns:
        Nothing where the memory lies in several pieces: a trace without a map still has every PFN.
    """
    try:
        ram = guest_ram(vmm)
    except ProcessError:
        return ()
    low_bytes = below_4g_bytes(vmm.machine, vmm.memory_bytes)
    page_bytes = _kernel_page_bytes(vmm.pid, ram)
    parts = [
        (0, ram.start, low_bytes),
        (_FOUR_GIB, ram.start + low_bytes, vmm.memory_bytes - low_bytes),
    ]
    return tuple(
        Region(
            name="below-4g" if gpa == 0 else "above-4g",
            gpa=gpa,
            hva=hva,
            length_bytes=length,
            backing=backing_of(ram),
            page_size_bytes=page_bytes,
        )
        for gpa, hva, length in parts
        if length
    )


def _kernel_page_bytes(pid: int, mapping: Mapping) -> int:
    """Read the page size the kernel uses for a mapping (smaps KernelPageSize)."""
    inside = False
    for line in (read_text(f"/proc/{pid}/smaps") or "").splitlines():
        if line.startswith(f"{mapping.start:x}-"):
            inside = True
        elif inside and line.startswith("KernelPageSize:"):
            return int(line.split()[1]) * 1024
    return mmap.PAGESIZE


@dataclass(frozen=True, slots=True)
class MemoryMap:
    """Translation over the regions of one VM."""

    regions: tuple[Region, ...]

    def gpa_of_hva(self, hva: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Translate addresses of the VMM to guest-physical ones.

        Returns:
            int64[n], -1 where an address is not guest memory.
        """
        found = np.full(len(hva), -1, np.int64)
        for region in self.regions:
            if region.hva is None:
                continue
            offset = hva.astype(np.int64) - region.hva
            inside = (offset >= 0) & (offset < region.length_bytes)
            found[inside] = offset[inside] + region.gpa
        return found

    def gpa_of_offset(self, offset: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Translate offsets into the file behind guest memory to guest-physical addresses.

        Regions lie in that file one after the other, in GPA order.

        Returns:
            int64[n], -1 where an offset is past the end.
        """
        found = np.full(len(offset), -1, np.int64)
        begin = 0
        for region in self.regions:
            within = offset.astype(np.int64) - begin
            inside = (within >= 0) & (within < region.length_bytes)
            found[inside] = within[inside] + region.gpa
            begin += region.length_bytes
        return found
