"""Where a guest page lies in the replayed memory: guest regions, one after the other.

A slot is left free where two regions would touch, so that no run of pages ever joins two mappings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from replay.native.selecting import RegionColumns
from replay.ranges import Int64s, Runs
from tracer.trace.errors import AerostatError
from tracer.trace.schema import PAGE_BYTES

if TYPE_CHECKING:
    from tracer.trace.manifest import Region

SLOT_PAGES = (2 << 20) // PAGE_BYTES
"""Every region's slot begins at a multiple of 2 MiB, so that huge pages form as they did."""
MAX_MEMORY_BYTES = 1 << 40
"""No replay maps so much; smaller memory is still held to what this machine has."""
MAX_REGIONS = 1024
MAX_PAGE_BYTES = 1 << 30


class Clipped(NamedTuple):
    """Runs cut to guest memory, each inside one region."""

    start: Int64s
    """First PFN of each piece."""
    pages: Int64s
    source: Int64s
    """Index of the run that the piece was cut from."""
    page: Int64s
    """First page of each piece in the replayed memory."""


class Layout:
    """Translates guest page frames to pages of the replayed memory.

    The region's first page keeps its place within 2 MiB (of its host virtual address, or of its
    guest physical address where the former was not seen): huge pages and large host pages then
    fall on the same guest pages as in the traced VMM.

    Args:
        regions: Guest memory; holes between regions are no memory.

    Raises:
        AerostatError: The regions overlap, are misaligned, too many or too large.
    """

    def __init__(self, regions: Sequence[Region]) -> None:
        if not 0 < len(regions) <= MAX_REGIONS:
            raise _refuse(f"{len(regions)} regions; 1 to {MAX_REGIONS} are accepted")
        self.regions = tuple(sorted(regions, key=lambda region: region.gpa))
        starts: list[int] = []
        ends: list[int] = []
        bases: list[int] = []
        free_page = 0
        for region in self.regions:
            first, pages, slot, phase = _checked(region)
            if ends and first < ends[-1]:
                raise _refuse(f"region {region.name!r} overlaps the one before it")
            base = -(-free_page // slot) * slot + phase
            if ends and base == free_page:
                base += slot
            starts.append(first)
            ends.append(first + pages)
            bases.append(base)
            free_page = base + pages
            if free_page * PAGE_BYTES >= MAX_MEMORY_BYTES:
                raise _refuse(f"{MAX_MEMORY_BYTES >> 40} TiB of guest memory or more")
        self.start_pfn: Int64s = np.array(starts, np.int64)
        self.end_pfn: Int64s = np.array(ends, np.int64)
        self.base_page: Int64s = np.array(bases, np.int64)
        self.memory_pages = free_page

    @property
    def memory_bytes(self) -> int:
        """Bytes to map: the end of the last region."""
        return self.memory_pages * PAGE_BYTES

    @property
    def guest_pages(self) -> int:
        """Pages of guest memory, without the gaps that alignment leaves between regions."""
        return int((self.end_pfn - self.start_pfn).sum())

    @property
    def runs(self) -> Runs:
        """Guest memory as pages of the replayed memory, one run a region."""
        return Runs(self.base_page, self.end_pfn - self.start_pfn)

    @property
    def columns(self) -> RegionColumns:
        """What the C core reads of it."""
        return RegionColumns(self.start_pfn, self.end_pfn, self.base_page)

    def pages_of(self, pfns: Int64s) -> Int64s:
        """Translate single PFNs.

        Returns:
            Pages of the replayed memory, -1 where the PFN is no guest memory.
        """
        if (only := self._region_of(pfns, pfns + 1)) is not None:
            shift: np.int64 = (self.base_page - self.start_pfn)[only]
            return pfns + shift
        region = np.searchsorted(self.start_pfn, pfns, side="right") - 1
        inside = (region >= 0) & (pfns < self.end_pfn[region])
        return np.where(inside, pfns + (self.base_page - self.start_pfn)[region], -1)

    def pfns_of(self, pages: Int64s) -> Int64s:
        """Translate pages of guest memory back to PFNs: the inverse of `pages_of`."""
        region = np.searchsorted(self.base_page, pages, side="right") - 1
        return pages + (self.start_pfn - self.base_page)[region]

    def clip(self, start: Int64s, pages: Int64s) -> Clipped:
        """Cut runs of PFNs to guest memory and at the borders of regions, in their order.

        Work is bound by the pieces that come out, not by the length of a run.

        Args:
            start: First PFN of each run, at least 0.
            pages: Pages of each run; `start + pages` fits int64.
        """
        end = start + pages
        if (only := self._region_of(start, end)) is not None and (pages > 0).all():
            page = start + (self.base_page - self.start_pfn)[only]
            return Clipped(start, pages, np.arange(len(start)), page)
        region = np.searchsorted(self.start_pfn, start, side="right") - 1
        if (region >= 0).all() and (end <= self.end_pfn[region]).all() and (pages > 0).all():
            page = start + (self.base_page - self.start_pfn)[region]
            return Clipped(start, pages, np.arange(len(start)), page)
        first = np.searchsorted(self.end_pfn, start, side="right")
        behind = np.searchsorted(self.start_pfn, end, side="left")
        count = np.where(pages > 0, np.maximum(behind - first, 0), 0)
        source = np.repeat(np.arange(len(start)), count)
        region = np.arange(len(source)) - np.repeat(np.cumsum(count) - count - first, count)
        low = np.maximum(start[source], self.start_pfn[region])
        high = np.minimum(end[source], self.end_pfn[region])
        page = low - self.start_pfn[region] + self.base_page[region]
        return Clipped(low, high - low, source, page)

    def inside(self, start: Int64s, pages: Int64s) -> Int64s:
        """Count the pages of each run that are guest memory.

        Unlike `clip` it makes no pieces, of which runs that span everything would give one for
        each region.
        """
        below = np.concatenate(([0], np.cumsum(self.end_pfn - self.start_pfn)))
        first, last = self._below(start, below), self._below(start + pages, below)
        return last - first

    def _below(self, pfn: Int64s, below: Int64s) -> Int64s:
        """Pages of guest memory with a lower PFN."""
        region = np.searchsorted(self.start_pfn, pfn, side="right") - 1
        at = np.maximum(region, 0)
        into = np.minimum(pfn, self.end_pfn[at]) - self.start_pfn[at]
        found: Int64s = np.where(region < 0, 0, below[at] + into)
        return found

    def whole(self, start: Int64s, pages: Int64s) -> Clipped:
        """Keep the runs that are wholly inside one region, in their order."""
        region = np.searchsorted(self.start_pfn, start, side="right") - 1
        kept = np.flatnonzero((region >= 0) & (start + pages <= self.end_pfn[region]) & (pages > 0))
        first, at = start[kept], region[kept]
        return Clipped(first, pages[kept], kept, first - self.start_pfn[at] + self.base_page[at])

    def _region_of(self, start: Int64s, end: Int64s) -> int | None:
        """The one region that holds all runs, which is the usual case and quick; else None."""
        if len(start) == 0:
            return None
        region = int(np.searchsorted(self.start_pfn, start.min(), side="right")) - 1
        holds = region >= 0 and end.max() <= self.end_pfn[region]
        return region if holds else None


def _checked(region: Region) -> tuple[int, int, int, int]:
    """First PFN, pages, pages of a slot's unit and the place within it; refuses nonsense."""
    unit = region.page_size_bytes or PAGE_BYTES
    if unit < PAGE_BYTES or unit > MAX_PAGE_BYTES or unit & (unit - 1):
        raise _refuse(f"region {region.name!r} has pages of {unit} bytes")
    if (
        region.gpa < 0
        or region.length_bytes <= 0
        or (region.gpa | region.length_bytes) % PAGE_BYTES
    ):
        raise _refuse(f"region {region.name!r} is not whole pages of {PAGE_BYTES} bytes")
    if region.gpa + region.length_bytes > 1 << 64:
        raise _refuse(f"region {region.name!r} ends beyond 64 bits")
    slot = max(SLOT_PAGES, unit // PAGE_BYTES)
    seen = region.hva or region.gpa
    return (
        region.gpa // PAGE_BYTES,
        region.length_bytes // PAGE_BYTES,
        slot,
        seen // PAGE_BYTES % slot,
    )


def _refuse(reason: str) -> AerostatError:
    return AerostatError(
        "the memory map cannot be replayed",
        reason=reason,
        remedy="look at `regions` in the manifest.json of the trace, and take the trace again",
    )
