"""A set of request numbers that takes memory for each gap in it, not for each number."""

import numpy as np
import numpy.typing as npt

UInt64s = npt.NDArray[np.uint64]

_MOST_PARTS = 256


class Numbers:
    """Numbers as stretches without a gap, 16 bytes each. A recorder counts its requests upwards."""

    def __init__(self) -> None:
        self._first: list[UInt64s] = []
        self._last: list[UInt64s] = []
        self._sorted: tuple[UInt64s, UInt64s] | None = None

    def add(self, numbers: UInt64s) -> None:
        """Put numbers in, in any order."""
        if not len(numbers):
            return
        self._sorted = None
        ordered = np.unique(numbers)
        gaps = np.flatnonzero(np.diff(ordered) != 1)
        first = ordered[np.concatenate([[0], gaps + 1])]
        last = ordered[np.concatenate([gaps, [len(ordered) - 1]])]
        if self._last and int(first[0]) == int(self._last[-1][-1]) + 1:
            self._last[-1][-1] = last[0]
            first, last = first[1:], last[1:]
        if len(first):
            self._first.append(first)
            self._last.append(last)
        if len(self._first) > _MOST_PARTS:
            self._first, self._last = [np.concatenate(self._first)], [np.concatenate(self._last)]

    def hold(self, numbers: UInt64s) -> npt.NDArray[np.bool_]:
        """Say of each of these whether it is in the set."""
        if not self._first:
            return np.zeros(len(numbers), np.bool_)
        if self._sorted is None:
            first = np.concatenate(self._first)
            order = np.argsort(first, kind="stable")
            # Stretches may overlap in a trace of whatever origin: what reaches furthest counts.
            reach = np.maximum.accumulate(np.concatenate(self._last)[order])
            self._sorted = first[order], reach
        first, reach = self._sorted
        place = np.searchsorted(first, numbers, side="right")
        return np.asarray((place > 0) & (numbers <= reach[np.maximum(place, 1) - 1]), np.bool_)
