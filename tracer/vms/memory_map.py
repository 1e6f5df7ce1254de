"""Where guest-physical memory lies in a VMM, told from its command line and its mappings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tracer.errors import ProcessError
from tracer.vms.command_line import size_bytes
from tracer.vms.extents import Extent, find_extents
from tracer.vms.layouts import (
    FOUR_GIB,
    HOLE_STARTS,
    Layout,
    below_4g_bytes,
    qemu_layouts,
    two_part_layouts,
)
from tracer.vms.mappings import file_bytes_of, mappings, page_bytes_of
from tracer.vms.process import PROC
from tracer.vms.qemu_options import machine_fields, ram_backends
from tracer.vms.translation import MemoryMap, Regions, agreed
from tracer.vms.vmm import Vmm

__all__ = ["GuestMemory", "MemoryMap", "Regions", "find_memory", "find_regions"]

_BOOT_RECORDS = ((0x7202, b"HdrS"), (0x6000, b"\x78\xc5\x6e\x33"))


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """What a VMM's command line and mappings say of its guest's memory.

    Attributes:
        candidates: Every map they allow, the likeliest first; empty where none fits.
        extents: Pieces of the VMM that may be guest memory, rising by address.
        likely: Of these the ones that the maps use, or all where there is no map: what a discard
            must touch to be the balloon's.
        reason: Why there is no map, or why it is not certain; empty for one certain map.
    """

    candidates: tuple[Regions, ...]
    extents: tuple[Extent, ...]
    likely: tuple[Extent, ...]
    reason: str

    @property
    def regions(self) -> Regions:
        """What is certain: the parts that every candidate has at the same address."""
        return agreed(self.candidates)


def find_memory(vmm: Vmm, proc: Path = PROC) -> GuestMemory:
    """Lay out a guest's memory from outside.

    Raises:
        ProcessError: The process is gone, or its memory map may not be read.
    """
    extents = find_extents(
        mappings(vmm.pid, proc),
        partial(file_bytes_of, vmm.pid, proc=proc),
        partial(page_bytes_of, vmm.pid, proc=proc),
    )
    layouts = _layouts(vmm, extents)
    if len(layouts) > 1:
        layouts = [layout for layout in layouts if _boots(vmm.pid, layout, proc)] or layouts
    candidates = tuple(_regions(layout) for layout in layouts)
    if not candidates:
        reason = (
            f"none of {len(extents)} large mappings fits its size"
            if extents
            else "it has no large mapping"
        )
    elif len(candidates) > 1:
        reason = f"{len(candidates)} maps fit; requests will tell"
    else:
        reason = ""
    used = {placed.extent for layout in layouts for placed in layout}
    likely = tuple(extent for extent in extents if _overlaps(extent, used)) or tuple(extents)
    return GuestMemory(candidates, tuple(extents), likely, reason)


def _overlaps(extent: Extent, others: set[Extent]) -> bool:
    # What the layouts use may be several of these, joined.
    return any(other.start <= extent.start and extent.end <= other.end for other in others)


def find_regions(vmm: Vmm) -> Regions:
    """Return what is certain of a guest's memory map.

    Returns:
        Nothing where none fits or nothing may be read: a trace without a map still has every PFN.
    """
    try:
        return find_memory(vmm).regions
    except ProcessError:
        return ()


def _layouts(vmm: Vmm, extents: list[Extent]) -> list[Layout]:
    if vmm.kind != "qemu":
        return two_part_layouts(extents, HOLE_STARTS[vmm.kind], vmm.memory_bytes)
    backends = [
        (backend, backend.length_bytes or vmm.memory_bytes or 0)
        for backend in ram_backends(vmm.arguments)
    ]
    total = sum(length for _, length in backends)
    if not all(length for _, length in backends):
        return []
    most = size_bytes(machine_fields(vmm.arguments).get("max-ram-below-4g"))
    return qemu_layouts(extents, backends, below_4g_bytes(vmm.machine, total, most))


def _boots(pid: int, layout: Layout, proc: Path) -> bool:
    """Look for what a VMM that boots Linux by itself leaves at the foot of guest memory.

    At GPA 0x7000 lie the boot parameters with their header's magic, or at 0x6000 PVH's start info:
    Firecracker, cloud-hypervisor, crosvm and libkrun (layout.rs of each). Linux keeps out of both.
    """
    lowest = min(layout, key=lambda placed: placed.gpa)
    try:
        fd = os.open(proc / str(pid) / "mem", os.O_RDONLY)
    except OSError:
        return False
    try:
        return any(
            os.pread(fd, len(magic), lowest.start + at) == magic for at, magic in _BOOT_RECORDS
        )
    except OSError:
        return False
    finally:
        os.close(fd)


def _regions(layout: Layout) -> Regions:
    found = []
    for placed in sorted(layout, key=lambda placed: placed.gpa):
        side = "above-4g" if placed.gpa >= FOUR_GIB else "below-4g"
        name = f"{placed.owner}-{side}" if placed.owner else side
        found.append(placed.extent.region(name, placed.gpa, placed.start, placed.length_bytes))
    return tuple(found)
