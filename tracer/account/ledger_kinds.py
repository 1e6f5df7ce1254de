"""Which of a VMM's calls give memory back: that depends on what the memory is mapped from."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tracer.trace.manifest import Region
from tracer.trace.schema import Call

Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]

_PUNCH_HOLE = 2
"""FALLOC_FL_PUNCH_HOLE, include/uapi/linux/falloc.h, since 2.6.38."""
_MAP_FIXED = 0x10
_MAP_ANONYMOUS = 0x20
_WILLNEED = 3
_ADVICE = {"dontneed": 4, "free": 8, "remove": 9, "dontneed-locked": 24}
"""MADV_DONTNEED, FREE (4.5), REMOVE, DONTNEED_LOCKED (5.18): asm-generic/mman-common.h."""
_PRIVATE = frozenset({"dontneed", "dontneed-locked", "map-over"})
_SHARED = frozenset({"punch", "remove"})
_GIVES_BACK: Mapping[str, frozenset[str]] = {
    "anon": _PRIVATE | {"free"},
    # A hole in the file leaves the private copies of its pages (mm/truncate.c), and MADV_FREE
    # refuses them (mm/madvise.c).
    "file-private": _PRIVATE,
    # DONTNEED and a mapping over it leave the pages in the file.
    "memfd": _SHARED,
    "shmem": _SHARED,
    # Of either form: DONTNEED gives back what is private (since 5.18, before that it fails).
    "hugetlb": _SHARED | _PRIVATE,
}
"""By backing. The second call that a VMM makes of one page, such as QEMU's DONTNEED behind the hole
that it has punched into a memfd, is not counted where it gives nothing back."""
_NOWHERE = ""
"""Of a call that is not known to lie in guest memory, and of a backing that is not known."""


class Places:
    """The guest's memory by address.

    Args:
        regions: As a manifest lists them; what it says is hostile.
    """

    def __init__(self, regions: Sequence[Region]) -> None:
        ordered = sorted(regions, key=lambda region: region.gpa)
        self._begin = np.array([region.gpa for region in ordered], np.uint64)
        self._length = np.array([region.length_bytes for region in ordered], np.uint64)
        named = [r.backing if r.backing in _GIVES_BACK else _NOWHERE for r in ordered]
        self.backings = sorted({*named, _NOWHERE})
        self._backing = np.array([self.backings.index(name) for name in named], np.int64)

    def gives_back(self, backing: str) -> frozenset[str]:
        """Say which kinds of call give memory of one of `backings` back."""
        if backing != _NOWHERE:
            return _GIVES_BACK[backing]
        known = [_GIVES_BACK[name] for name in self.backings if name != _NOWHERE]
        return frozenset().union(*(known or _GIVES_BACK.values()))

    def find(self, gpa: pa.Array) -> Int64s:
        """Number the backing of each address, as in `backings`."""
        nowhere = self.backings.index(_NOWHERE)
        if not len(self._begin):
            return np.full(len(gpa), nowhere, np.int64)
        address = gpa.fill_null(0).to_numpy()
        place = np.searchsorted(self._begin, address, side="right") - 1
        at = np.maximum(place, 0)
        inside = gpa.is_valid().to_numpy(zero_copy_only=False) & (place >= 0)
        inside &= address - self._begin[at] < self._length[at]
        return np.where(inside, self._backing[at], nowhere)


class Kinds:
    """The calls of one batch, sorted by what they are and where.

    Args:
        batch: Of the calls table.
        places: The guest's memory.
    """

    def __init__(self, batch: pa.RecordBatch, places: Places) -> None:
        self._places = places
        self._at = places.find(batch.column("gpa"))
        length = batch.column("length_bytes").to_numpy().astype(np.float64)
        self._covered = length * batch.column("count").to_numpy()
        call, advice = (batch.column(name).to_numpy() for name in ("call", "advice"))
        advises = (call == Call.MADVISE) | (call == Call.PROCESS_MADVISE)
        self._needed = advises & (advice == _WILLNEED)
        self._kinds = {name: advises & (advice == value) for name, value in _ADVICE.items()}
        self._kinds["punch"] = (call == Call.FALLOCATE) & (advice & _PUNCH_HOLE != 0)
        over = _MAP_FIXED | _MAP_ANONYMOUS
        self._kinds["map-over"] = (call == Call.MMAP) & (advice & over == over)

    def sums(self, chosen: Bools, *, needed: bool) -> Iterator[tuple[tuple[str, str], float]]:
        """Add up what some calls gave back.

        Args:
            chosen: Which calls.
            needed: Those that advise memory as needed instead.

        Yields:
            Backing and kind, and the bytes.
        """
        if needed:
            yield (_NOWHERE, "willneed"), float(self._covered[chosen & self._needed].sum())
            return
        for number, backing in enumerate(self._places.backings):
            here = chosen & (self._at == number)
            if here.any():
                for kind in sorted(self._places.gives_back(backing)):
                    yield (backing, kind), float(self._covered[here & self._kinds[kind]].sum())
