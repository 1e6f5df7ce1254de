"""Pieces of a VMM's address space that may be guest memory, put together from its mappings.

A mapping is not a region of guest memory: the kernel merges anonymous neighbours into one, and a
VMM that discards by mapping over (Firecracker after a snapshot) leaves one file mapping in shreds.
Anybody's process may have 65,530 mappings and a VMM's name, so no step goes through all for each.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from tracer.trace.manifest import Region
from tracer.vms.mappings import Mapping, backing_of

PageBytes = Callable[[Mapping], int]
FileBytes = Callable[[Mapping], int | None]
LEAST_BYTES = 32 << 20
"""Smaller anonymous mappings are taken for stacks and heaps: no VM is known to boot with less."""
_MOST_EXTENTS = 512
"""Twice as many as a PC has slots for memory (ACPI_MAX_RAM_SLOTS of QEMU)."""


@dataclass(frozen=True, slots=True)
class Extent:
    """One contiguous piece: `start <= HVA < end`.

    Attributes:
        mapping: The first mapping in it that is not a hole.
        offset_bytes: Offset of `start` in the file behind it; None for anonymous memory.
        least_start: Where the anonymous mapping before it begins, which may be a hole in it.
        most_end: Where the anonymous mapping behind it ends, which may be a hole in it.
        page_bytes: Page size of the memory behind it.
    """

    start: int
    end: int
    mapping: Mapping
    offset_bytes: int | None
    least_start: int
    most_end: int
    page_bytes: int = mmap.PAGESIZE

    @property
    def length_bytes(self) -> int:
        """Size in bytes."""
        return self.end - self.start

    @property
    def origin(self) -> int:
        """HVA at which offset 0 of the file behind it lies, or would."""
        return self.start - (self.offset_bytes or 0)

    def region(self, name: str, gpa: int, start: int, length_bytes: int) -> Region:
        """Describe a part of it as guest memory.

        Args:
            name: The region's name.
            gpa: Guest-physical address of its first byte.
            start: HVA of that byte.
            length_bytes: Its size.
        """
        offset = self.offset_bytes
        # Shared anonymous memory has a file inside the kernel, but none that the VMM could punch.
        if self.mapping.path.startswith("/dev/zero"):
            offset = None
        return Region(
            name=name,
            gpa=gpa,
            hva=start,
            length_bytes=length_bytes,
            backing=backing_of(self.mapping, self.page_bytes),
            page_size_bytes=self.page_bytes,
            file_offset_bytes=None if offset is None else offset + start - self.start,
        )


def find_extents(
    mappings: Iterable[Mapping], file_bytes: FileBytes, page_bytes: PageBytes
) -> list[Extent]:
    """Find what may be guest memory: large, readable, writable, not executable.

    Args:
        mappings: The process's, rising by address.
        file_bytes: Tells the length of the file behind a mapping, or None.
        page_bytes: Tells the page size of a mapping.

    Returns:
        Extents rising by address: anonymous ones of at least `LEAST_BYTES`, and those of files,
        whatever has been mapped over inside them. Of too many, the largest.
    """
    found: list[Extent] = []
    for run in _touching([m for m in mappings if m.permissions.startswith("rw-")]):
        places: dict[tuple[tuple[str, int], int], list[int]] = {}
        for index, m in enumerate(run):
            if m.file is not None:
                places.setdefault((m.file, m.start - m.offset_bytes), []).append(index)
        covered = [
            _file_extent(run, indices[0], indices[-1], origin, file_bytes)
            for (_, origin), indices in places.items()
        ]
        found += covered
        found += [
            Extent(m.start, m.end, m, None, m.start, m.end)
            for m in _outside(covered, [m for m in run if m.file is None])
        ]
    large = [
        extent
        for extent in _with_seams(found)
        if extent.length_bytes >= LEAST_BYTES or extent.mapping.path.startswith("/memfd:")
    ]
    kept = sorted(large, key=lambda extent: extent.length_bytes, reverse=True)[:_MOST_EXTENTS]
    return [
        replace(extent, page_bytes=page_bytes(extent.mapping))
        for extent in sorted(kept, key=lambda extent: extent.start)
    ]


def joined(extents: list[Extent]) -> list[Extent]:
    """Join anonymous neighbours, which the kernel keeps apart where their flags differ."""
    found: list[Extent] = []
    for extent in extents:
        before = found[-1] if found else None
        if (
            before is not None
            and before.end == extent.start
            and before.offset_bytes is None
            and extent.offset_bytes is None
        ):
            found[-1] = replace(before, end=extent.end)
        else:
            found.append(extent)
    return found


def _touching(mappings: list[Mapping]) -> list[list[Mapping]]:
    runs: list[list[Mapping]] = [mappings[:1]] if mappings else []
    for before, mapping in pairwise(mappings):
        if before.end == mapping.start:
            runs[-1].append(mapping)
        else:
            runs.append([mapping])
    return runs


def _outside(covered: list[Extent], mappings: list[Mapping]) -> Iterator[Mapping]:
    """Give the mappings that begin in no extent; both rise by address, mappings may be many."""
    waiting = sorted(covered, key=lambda extent: extent.start, reverse=True)
    reach = 0
    for mapping in mappings:
        while waiting and waiting[-1].start <= mapping.start:
            reach = max(reach, waiting.pop().end)
        if mapping.start >= reach:
            yield mapping


def _file_extent(
    run: list[Mapping], first: int, last: int, origin: int, file_bytes: FileBytes
) -> Extent:
    """Put together what is left of one mapping of a file, and the holes in and beside it.

    Args:
        run: Mappings that touch each other.
        first: Place in it of the first that belongs to the file's mapping.
        last: Place of the last one.
        origin: HVA at which offset 0 of the file lies, or would.
        file_bytes: Tells the length of a file.
    """
    start, end = run[first].start, run[last].end
    least = run[first - 1].start if first and run[first - 1].file is None else start
    after = run[last + 1] if last + 1 < len(run) else None
    most = after.end if after is not None and after.file is None else end
    # A hole at an end can be told from a neighbour where the file itself ends there.
    length = file_bytes(run[first])
    if least <= origin < start:
        start = origin
    if length is not None and end < origin + length <= most:
        end = origin + length
    return Extent(start, end, run[first], start - origin, least, most)


def _with_seams(extents: list[Extent]) -> list[Extent]:
    """Close the gap between two mappings of one file where the holes in it end at one offset."""
    found: list[Extent] = []
    ordered = sorted(extents, key=lambda e: (e.mapping.file or ("", 0), e.offset_bytes or 0))
    for piece in ordered:
        extent, before = piece, found[-1] if found else None
        if before is not None and before.mapping.file == extent.mapping.file is not None:
            ends = {before.end - before.origin, before.most_end - before.origin}
            starts = {extent.start - extent.origin, extent.least_start - extent.origin}
            seam = ends & starts
            if len(seam) == 1:
                offset = seam.pop()
                found[-1] = replace(before, end=before.origin + offset)
                extent = replace(extent, start=extent.origin + offset, offset_bytes=offset)
        found.append(extent)
    return found
