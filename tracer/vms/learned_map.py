"""Learns a guest's memory map from its requests, where the mappings alone do not settle it.

Each request shows one point of the map: a descriptor's guest-physical address, and where the VMM
found it. Points choose among the maps that the command line and the mappings allow. Where they
contradict all of these, the points themselves tell as much as they can: within one mapping, guest
memory is contiguous on each side of the PCI hole, and goes on at exactly 4 GiB behind it. What does
not follow stays unknown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tracer.trace.manifest import Region
from tracer.vms.extents import Extent
from tracer.vms.layouts import FOUR_GIB, GIB
from tracer.vms.memory_map import GuestMemory
from tracer.vms.translation import Regions, agreed

_ONE_TIB = 1 << 40
_FLOORS = (_ONE_TIB, FOUR_GIB, 0)
"""Where guest memory may begin: behind QEMU's hole for AMD's HyperTransport, the PCI hole, or 0."""
_SHORTEST_LOW = 2 * GIB
"""No VMM puts less below the PCI hole if it puts any memory above it (tracer/vms/layouts.py)."""
_MOST_PIECES = 64
"""A guest can make its VMM use odd mappings; more pieces than this are not learned from."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Points of one extent with the same distance from HVA to GPA, on one side of a hole."""

    extent: Extent
    delta: int
    floor: int
    least: int
    most: int

    @property
    def start(self) -> int:
        """The first HVA that certainly follows the same rule."""
        return max(self.extent.start, self.floor + self.delta)

    @property
    def begins_here(self) -> bool:
        """Whether memory begins at this side of the hole within the extent."""
        return self.floor + self.delta >= self.extent.start


class LearnedMap:
    """The map of one guest, better with every batch of requests.

    Args:
        memory: What is known without requests.

    Attributes:
        elsewhere: Points outside every extent: bounce buffers, ROM, or memory plugged since.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._pieces: dict[tuple[int, int, int], _Piece] = {}
        self._too_many = False
        self.elsewhere = 0
        self._settle()

    @property
    def regions(self) -> Regions:
        """What is certain by now, in order of GPA."""
        return self._regions

    @property
    def is_certain(self) -> bool:
        """Whether one map is left that explains every point."""
        return self._certain

    @property
    def reason(self) -> str:
        """Why the map is not certain; empty where it is."""
        return self._reason

    def add(self, gpa: npt.NDArray[np.integer], hva: npt.NDArray[np.integer]) -> bool:
        """Learn from points of the map.

        Args:
            gpa: int[n], guest-physical address of a descriptor of each request.
            hva: int[n], where the VMM found it; 0 for a point that was not seen.

        Returns:
            Whether `regions` changed.
        """
        points = np.stack((gpa.astype(np.int64), hva.astype(np.int64)))
        points = points[:, (points[1] > 0) & ~_is_legacy(points[0])]
        found = [piece for extent in self._memory.extents for piece in _pieces(extent, points)]
        inside = sum(count for _, count in found)
        self.elsewhere += points.shape[1] - inside
        news = [piece for piece, _ in found if self._take(piece)]
        if not news:
            return False
        before = self._regions
        self._settle()
        return self._regions != before

    def refresh(self, memory: GuestMemory) -> bool:
        """Start from a newer look at the mappings, as after memory was plugged; keep the points.

        Returns:
            Whether `regions` changed.
        """
        pieces, before = list(self._pieces.values()), self._regions
        self._memory, self._pieces, self.elsewhere = memory, {}, 0
        for piece in pieces:
            for extent in memory.extents:
                if extent.start <= piece.least + piece.delta < extent.end:
                    self._take(replace(piece, extent=extent))
        self._settle()
        return self._regions != before

    def _take(self, piece: _Piece) -> bool:
        """Add a piece to what is known; say whether that is news."""
        key = (piece.extent.start, piece.delta, piece.floor)
        known = self._pieces.get(key)
        if known is None and len(self._pieces) >= _MOST_PIECES:
            self._too_many = True
            return False
        if known is None:
            self._pieces[key] = piece
            return True
        wider = replace(
            known, least=min(known.least, piece.least), most=max(known.most, piece.most)
        )
        self._pieces[key] = wider
        return wider != known

    def _left(self) -> list[Regions]:
        pieces = self._pieces.values()
        return [
            regions
            for regions in self._memory.candidates
            if all(_agrees(regions, piece) for piece in pieces)
        ]

    def _settle(self) -> None:
        left = self._left()
        self._certain = len(left) == 1 and not self._too_many
        if left:
            known = agreed(left)
            extra = [p for p in self._pieces.values() if not _explains(known, p)]
            self._regions = _ordered((*known, *_learn(extra, low_is_known=True)))
            self._reason = "" if self._certain else f"{len(left)} maps explain every request"
        else:
            self._regions = _ordered(_learn(list(self._pieces.values()), low_is_known=False))
            self._reason = (
                "requests contradict every map that its mappings allow"
                if self._memory.candidates
                else self._memory.reason
            )
        if self._too_many:
            self._reason = f"requests show more than {_MOST_PIECES} pieces of memory"


def _is_legacy(gpa: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Say which addresses are a PC's video memory and ROM, which lie over memory there."""
    return (gpa >= 0xA0000) & (gpa < 0x100000)


def _pieces(extent: Extent, points: npt.NDArray[np.int64]) -> Iterable[tuple[_Piece, int]]:
    """Group the points inside an extent; also return how many each group has."""
    inside = points[:, (points[1] >= extent.start) & (points[1] < extent.end)]
    floors = np.where(inside[0] >= _ONE_TIB, _ONE_TIB, np.where(inside[0] >= FOUR_GIB, FOUR_GIB, 0))
    keys, index = np.unique(np.stack((inside[1] - inside[0], floors)), axis=1, return_inverse=True)
    for number, (delta, floor) in enumerate(keys.T[: _MOST_PIECES + 1]):
        gpa = inside[0][index.reshape(-1) == number]
        yield _Piece(extent, int(delta), int(floor), int(gpa.min()), int(gpa.max())), len(gpa)


def _gpa_of(regions: Regions, hva: int) -> int | None:
    for region in regions:
        if region.hva is not None and 0 <= hva - region.hva < region.length_bytes:
            return hva - region.hva + region.gpa
    return None


def _agrees(regions: Regions, piece: _Piece) -> bool:
    """Say whether a map has both ends of a piece where they were seen, or has nothing there."""
    for gpa in (piece.least, piece.most):
        mapped = _gpa_of(regions, gpa + piece.delta)
        taken = any(0 <= gpa - region.gpa < region.length_bytes for region in regions)
        if mapped != gpa and (mapped is not None or taken):
            return False
    return True


def _explains(regions: Regions, piece: _Piece) -> bool:
    """Say whether a map has both ends of a piece where they were seen."""
    return all(_gpa_of(regions, gpa + piece.delta) == gpa for gpa in (piece.least, piece.most))


def _learn(pieces: list[_Piece], *, low_is_known: bool) -> list[Region]:
    """Turn pieces into regions, each no longer than what certainly follows from them."""
    by_extent: dict[int, list[_Piece]] = {}
    for piece in pieces:
        by_extent.setdefault(piece.extent.start, []).append(piece)
    lows = {piece.extent.start for piece in pieces if piece.floor == 0}
    found = []
    for start, group in by_extent.items():
        floors = [piece.floor for piece in group]
        if len(set(floors)) < len(floors):
            continue  # Two rules for one side: not memory that is mapped once.
        group.sort(key=lambda piece: piece.start)
        low_elsewhere = low_is_known or bool(lows - {start})
        for piece, after in zip(group, (*group[1:], None), strict=True):
            found.append(_region(piece, _end(piece, group, after, low_elsewhere)))
    return found


def _end(piece: _Piece, group: list[_Piece], after: _Piece | None, low_elsewhere: bool) -> int:
    """Return the HVA up to which a piece's rule certainly holds."""
    seen = piece.most + piece.delta + 1
    if after is not None:
        # Memory below the hole ends where that above it begins, and the other way round.
        return after.start if after.begins_here else seen
    is_whole = (
        len(group) > 1
        or (piece.floor == 0 and piece.extent.end - piece.delta <= _SHORTEST_LOW)
        or (piece.floor > 0 and (low_elsewhere or piece.start > piece.extent.start))
    )
    return piece.extent.end if is_whole else seen


def _region(piece: _Piece, end: int) -> Region:
    name = "above-4g" if piece.floor else "below-4g"
    return piece.extent.region(name, piece.start - piece.delta, piece.start, end - piece.start)


def _ordered(regions: Iterable[Region]) -> Regions:
    """Sort by GPA and drop what overlaps: two regions for one address are no knowledge."""
    found: list[Region] = []
    for region in sorted(regions, key=lambda region: region.gpa):
        if found and region.gpa < found[-1].gpa + found[-1].length_bytes:
            continue
        found.append(region)
    return tuple(found)
