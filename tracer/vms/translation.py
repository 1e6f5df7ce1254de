"""HVA to GPA over whole arrays, and what several maps of one guest agree on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tracer.trace.manifest import Region

Regions = tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class MemoryMap:
    """Translation over the regions of one VM.

    Attributes:
        regions: Guest memory.
    """

    regions: Regions

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


def agreed(candidates: Sequence[Regions]) -> Regions:
    """Return the parts that every map has at the same address, in order of GPA.

    Args:
        candidates: Maps of one guest; each region has an HVA.
    """
    if len(candidates) <= 1:
        return candidates[0] if candidates else ()
    edges = sorted(
        {
            edge
            for regions in candidates
            for region in regions
            if region.hva is not None
            for edge in (region.hva, region.hva + region.length_bytes)
        }
    )
    found: list[Region] = []
    for start, end in pairwise(edges):
        holders = [_holder(regions, start) for regions in candidates]
        first = holders[0]
        if first is None or first.hva is None:
            continue
        gpa = start - first.hva + first.gpa
        if any(h is None or h.hva is None or start - h.hva + h.gpa != gpa for h in holders):
            continue
        offset = first.file_offset_bytes
        part = replace(
            first,
            gpa=gpa,
            hva=start,
            length_bytes=end - start,
            file_offset_bytes=None if offset is None else offset + start - first.hva,
        )
        before = found[-1] if found else None
        if before is not None and _continues(before, part):
            found[-1] = replace(before, length_bytes=before.length_bytes + part.length_bytes)
        else:
            found.append(part)
    return tuple(sorted(found, key=lambda region: region.gpa))


def _holder(regions: Regions, hva: int) -> Region | None:
    for region in regions:
        if region.hva is not None and 0 <= hva - region.hva < region.length_bytes:
            return region
    return None


def _continues(before: Region, part: Region) -> bool:
    length = before.length_bytes
    return (
        before.name == part.name
        and before.hva is not None
        and (before.gpa + length, before.hva + length) == (part.gpa, part.hva)
    )
