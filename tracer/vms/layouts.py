"""How each VMM lays guest memory out, x86-64: which piece of its memory is at which GPA.

All begin at GPA 0, leave a hole for devices below 4 GiB, and go on at 4 GiB. Where the hole begins:

    QEMU q35          2 GiB if memory reaches 2.75 GiB, else 2.75 GiB (hw/i386/pc_q35.c, 2.0)
    QEMU pc           3 GiB if memory reaches 3.5 GiB, else 3.5 GiB (hw/i386/pc_piix.c, 1.7)
    QEMU microvm      3 GiB (hw/i386/microvm.c, 4.2)
    Firecracker       3 GiB since 1.13, 3.25 GiB before (src/vmm/src/arch/x86_64/layout.rs)
    cloud-hypervisor  3 GiB (arch/src/x86_64/layout.rs)
    crosvm            3.25 GiB (x86_64/src/lib.rs)
    libkrun           3.25 GiB (src/arch/src/x86_64/layout.rs)

QEMU since 7.1 moves what is above 4 GiB to 1 TiB where it would reach AMD's HyperTransport range
and the vCPU is AMD's (hw/i386/pc.c pc_memory_init).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, permutations, product

from tracer.vms.extents import Extent, joined
from tracer.vms.qemu_options import Backend

GIB = 1 << 30
FOUR_GIB = 4 * GIB
_ONE_TIB = 1 << 40
_AMD_HT_START = 0xFD00000000
_GUEST_MEMFD = re.compile(r"/memfd:(guest_mem|ch_ram|crosvm_guest)")
"""What Firecracker (1.7), cloud-hypervisor (0.5) and crosvm name their guests' memory."""
_MOST = 24
"""Layouts that are kept; more are no knowledge."""
HOLE_STARTS = {
    "firecracker": (3 * GIB, 13 * GIB // 4),
    "cloud-hypervisor": (3 * GIB,),
    "crosvm": (13 * GIB // 4,),
    "libkrun": (13 * GIB // 4,),
}


@dataclass(frozen=True, slots=True)
class Placed:
    """A part of an extent at its guest-physical address.

    Attributes:
        gpa: Guest-physical address of its first byte.
        start: HVA of that byte.
        length_bytes: Its size.
        extent: What it is part of.
        owner: Name of the backend, where there are several.
    """

    gpa: int
    start: int
    length_bytes: int
    extent: Extent
    owner: str = ""


Layout = tuple[Placed, ...]


def below_4g_bytes(machine: str, memory_bytes: int, most_bytes: int | None = None) -> int:
    """How much of a QEMU's memory lies below the PCI hole.

    Args:
        machine: Machine type.
        memory_bytes: All memory.
        most_bytes: The machine's max-ram-below-4g, where it is given.
    """
    if "q35" in machine:
        low = 0x80000000 if memory_bytes >= 0xB0000000 else 0xB0000000
    elif "microvm" in machine or memory_bytes >= 0xE0000000:
        low = 0xC0000000
    else:
        low = 0xE0000000
    return min(memory_bytes, low, most_bytes or low)


def qemu_layouts(
    extents: list[Extent], backends: list[tuple[Backend, int]], low_bytes: int
) -> list[Layout]:
    """List the layouts that a QEMU's command line allows, the likeliest first.

    Args:
        extents: What may be guest memory.
        backends: The pieces of main memory in order of address, and their sizes.
        low_bytes: Memory below the PCI hole.
    """
    choices = _choices(extents, backends) or _choices(joined(extents), backends)
    total = sum(length for _, length in backends)
    starts = [FOUR_GIB]
    if total - low_bytes + FOUR_GIB > _AMD_HT_START:
        starts.append(_ONE_TIB)
    return _distinct(
        _stacked(list(zip(chosen, backends, strict=True)), low_bytes, high)
        for high in starts
        for chosen in choices
    )


def _choices(
    extents: list[Extent], backends: list[tuple[Backend, int]]
) -> list[tuple[Extent, ...]]:
    """Assign an extent to each backend, in every way that fits.

    The kernel maps top down, so of backends that nothing tells apart the first has the highest
    address; QEMU makes them in the order of the command line, which is the nodes' as a rule.
    """
    fitting = [
        [extent for extent in reversed(extents) if _fits(extent, backend, length)]
        for backend, length in backends
    ]
    # Bounded: a command line of many equal backends has more ways than can be tried.
    return [
        chosen
        for chosen in islice(product(*fitting), 1 << 14)
        if len({extent.start for extent in chosen}) == len(chosen)
    ][:_MOST]


def _fits(extent: Extent, backend: Backend, length_bytes: int) -> bool:
    path = extent.mapping.path.removesuffix(" (deleted)")
    if extent.length_bytes != length_bytes:
        return False
    if backend.kind == "memfd":
        return path.startswith("/memfd:")
    if backend.kind == "file" and backend.path is not None:
        # A directory gets a file named after the backend (softmmu/physmem.c file_ram_open).
        made = f"qemu_back_mem.{backend.object_id}"
        objects = f"qemu_back_mem._objects_{backend.object_id}"
        name = path.rpartition("/")[2]
        return path == backend.path or name.rpartition(".")[0] in (made, objects)
    return backend.kind not in ("ram", "file") or extent.offset_bytes is None or not backend.path


def _stacked(pieces: list[tuple[Extent, tuple[Backend, int]]], low_bytes: int, high: int) -> Layout:
    """Lay pieces one after the other, leaving out the hole."""
    placed: list[Placed] = []
    offset = 0
    for extent, (backend, length) in pieces:
        owner = backend.object_id if len(pieces) > 1 else ""
        below = max(0, min(length, low_bytes - offset))
        if below:
            placed.append(Placed(offset, extent.start, below, extent, owner))
        if length > below:
            gpa = high + max(0, offset - low_bytes)
            placed.append(Placed(gpa, extent.start + below, length - below, extent, owner))
        offset += length
    return tuple(placed)


def two_part_layouts(
    extents: list[Extent], hole_starts: tuple[int, ...], total_bytes: int | None
) -> list[Layout]:
    """List the layouts of a VMM that maps what is below and above the hole by itself.

    Args:
        extents: What may be guest memory.
        hole_starts: Where its hole may begin, the likeliest first.
        total_bytes: All memory, where it is known.
    """
    named = [extent for extent in extents if _GUEST_MEMFD.match(extent.mapping.path)]
    extents = named or extents
    by_file: dict[tuple[str, int], list[Extent]] = {}
    for extent in sorted(extents, key=lambda extent: -extent.length_bytes):
        if extent.mapping.file is not None:
            by_file.setdefault(extent.mapping.file, []).append(extent)
    alone = [e for e in extents if e.mapping.file is None or len(by_file[e.mapping.file]) == 1]
    found: list[Layout] = []
    for low in hole_starts:
        found += _two_mappings(extents, low, total_bytes)
        for parts in by_file.values():
            found += _one_file(parts, low, total_bytes)
        found += _one_mapping(alone, low, total_bytes)
    return _distinct(found)


def _one_file(parts: list[Extent], low: int, total_bytes: int | None) -> Iterator[Layout]:
    """One file holds all memory in the order of addresses; each mapping's offset says which."""
    length = max((part.offset_bytes or 0) + part.length_bytes for part in parts)
    if total_bytes not in (None, length) or sum(p.length_bytes for p in parts) != length:
        return
    if length > low and len(parts) > 1 and all(part.offset_bytes != low for part in parts):
        return
    placed: list[Placed] = []
    for part in sorted(parts, key=lambda part: part.offset_bytes or 0):
        offset = part.offset_bytes or 0
        below = max(0, min(part.length_bytes, low - offset))
        if below:
            placed.append(Placed(offset, part.start, below, part))
        if part.length_bytes > below:
            gpa = FOUR_GIB + offset + below - low
            placed.append(Placed(gpa, part.start + below, part.length_bytes - below, part))
    yield tuple(placed)


def _one_mapping(extents: list[Extent], low: int, total_bytes: int | None) -> Iterator[Layout]:
    """All memory in one mapping: it is small, or the kernel merged two that touch.

    Mapped top down, the second lies below the first.
    """
    for extent in _largest_first(extents):
        length = extent.length_bytes
        if extent.offset_bytes not in (None, 0) or total_bytes not in (None, length):
            continue
        if length <= low:
            yield (Placed(0, extent.start, length, extent),)
        elif extent.offset_bytes is None:
            high = length - low
            yield (
                Placed(0, extent.start + high, low, extent),
                Placed(FOUR_GIB, extent.start, high, extent),
            )
            yield (
                Placed(0, extent.start, low, extent),
                Placed(FOUR_GIB, extent.start + low, high, extent),
            )
        if total_bytes is None:
            return


def _two_mappings(extents: list[Extent], low: int, total_bytes: int | None) -> Iterator[Layout]:
    """One mapping for each side of the hole; the lower is as long as the space below it."""
    for first, second in permutations(_largest_first(extents), 2):
        if first.length_bytes != low or first.mapping.file == second.mapping.file is not None:
            continue
        if total_bytes in (None, low + second.length_bytes):
            yield (
                Placed(0, first.start, low, first),
                Placed(FOUR_GIB, second.start, second.length_bytes, second),
            )
            if total_bytes is None:
                return


def _largest_first(extents: list[Extent]) -> list[Extent]:
    return sorted(extents, key=lambda extent: (-extent.length_bytes, -extent.start))[:8]


def _distinct(layouts: Iterable[Layout]) -> list[Layout]:
    return list(dict.fromkeys(islice(layouts, _MOST)))
