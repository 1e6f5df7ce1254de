"""Pairs two sequences by content and order, in n log n, whatever either of them has lost.

Contents that occur once settle most of a real trace. Where the same content comes again (a balloon
that goes up and down over the same pages), the times choose between the equal candidates; they
never pair two rows of different content.
"""

from bisect import bisect_left

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

_ROUNDS = 8
"""How often the gaps between pairs are searched again; each round costs n log n at most."""

_NEVER = np.iinfo(np.int64).max

_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_WEYL = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: UInt64s) -> UInt64s:
    """Scramble 64-bit values; the finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def content_hashes(offsets: Int64s, pfn: UInt64s, pages: npt.NDArray[np.int32]) -> UInt64s:
    """Hash each row's runs in wire order.

    Args:
        offsets: n+1 positions into `pfn` and `pages`, the rows laid end to end, first is 0.
        pfn: First PFN of each run.
        pages: 4 KiB pages of each run, negative for a falling run.

    Returns:
        n hashes; rows of equal content have equal hashes. A guest can forge the reverse, so a pair
        found by hash is compared in full before it is used (`same_content`).
    """
    counts = np.diff(offsets)
    place = np.arange(len(pfn), dtype=np.uint64) - np.repeat(offsets[:-1], counts).astype(np.uint64)
    word = _mix(pfn + _WEYL * (place + np.uint64(1)))
    word = _mix(word ^ pages.astype(np.int64).view(np.uint64))
    # Sums wrap modulo 2**64, and so do their differences: rows of no runs need no special case.
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(word, dtype=np.uint64)])
    return _mix(total[offsets[1:]] - total[offsets[:-1]] + counts.astype(np.uint64))


def align(
    left: UInt64s, right: UInt64s, left_ns: Int64s | None = None, right_ns: Int64s | None = None
) -> tuple[Int64s, Int64s]:
    """Pair equal items of two sequences so that the pairs rise in both.

    Args:
        left: n hashes in the order of one side.
        right: m hashes in the order of the other side.
        left_ns: When each left item happened, in ns of that side's clock; None if not known.
        right_ns: The same for the right; the clocks need not agree.

    Returns:
        Indices into left and right, equally long, both strictly rising, of items with equal hashes.
        All items common to both are paired where contents occur once per side. Where contents
        repeat, pairs may be fewer than the longest common subsequence: time stays within n log n.
    """
    if len(left) == len(right) and np.array_equal(left, right):
        same = np.arange(len(left), dtype=np.int64)
        return same, same.copy()
    candidates = _ranked_candidates(left, right)
    clock = None
    if left_ns is not None and right_ns is not None and len(candidates[0]):
        clock = _Times(left, right, left_ns, right_ns)
        shift = _common_shift(right_ns[candidates[1]] - left_ns[candidates[0]])
        candidates = clock.keep(_nearest_candidates(left, right, left_ns + shift, right_ns), shift)
    pairs = _longest_rising(*candidates)
    for _ in range(_ROUNDS):
        more = _fill_gaps(left, right, pairs, clock)
        if len(more[0]) == len(pairs[0]):
            break
        pairs = more
    return pairs


class _Times:
    """When things happened, to tell a repeat from the thing itself."""

    def __init__(self, left: UInt64s, right: UInt64s, left_ns: Int64s, right_ns: Int64s) -> None:
        self._left_ns, self._right_ns = left_ns, right_ns
        self._left_repeat_ns = _repeat_ns(left, left_ns)
        self._right_repeat_ns = _repeat_ns(right, right_ns)

    def keep(
        self, candidates: tuple[Int64s, Int64s], shift: np.int64 | Int64s
    ) -> tuple[Int64s, Int64s]:
        """Drop proposals that may be a repeat: too far off for the time to the nearest equal item.

        A lost row's partner would otherwise pair with a repeat. Transit and drift put a true pair
        off by far less than the time between repeats; the eighth leaves room for repeats that were
        lost as well.

        Args:
            candidates: Indices into left and right.
            shift: Right time less left time that is expected of them.
        """
        a, b = candidates
        off_by = np.abs(self._right_ns[b] - self._left_ns[a] - shift)
        kept = off_by < np.minimum(self._left_repeat_ns[a], self._right_repeat_ns[b]) // 8
        return a[kept], b[kept]

    def shift_near(self, pairs: tuple[Int64s, Int64s], a: Int64s) -> Int64s:
        """Right time less left time at items of the left, from the pairs on both sides of them."""
        shifts = self._right_ns[pairs[1]] - self._left_ns[pairs[0]]
        # Relative to one of them: a double does not hold every nanosecond of a large shift.
        near = np.interp(a, pairs[0], (shifts - shifts[0]).astype(np.float64))
        return np.asarray(np.rint(near).astype(np.int64) + shifts[0], np.int64)


def _repeat_ns(values: UInt64s, times: Int64s) -> Int64s:
    """Time from each item to the nearest equal one on its own side; huge if there is none."""
    order = np.lexsort((times, values))
    steps = np.where(values[order][1:] == values[order][:-1], np.diff(times[order]), _NEVER)
    nearest = np.full(len(values), _NEVER, np.int64)
    nearest[order[1:]] = steps
    nearest[order[:-1]] = np.minimum(nearest[order[:-1]], steps)
    return nearest


def _ranks(values: Int64s) -> tuple[Int64s, Int64s]:
    """Number equal values: each item's rank among its equals from the start, and from the end."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    sizes = np.diff(np.append(first, len(ordered)))
    ascending = np.arange(len(ordered)) - np.repeat(first, sizes)
    forward = np.empty(len(values), np.int64)
    backward = np.empty(len(values), np.int64)
    forward[order] = ascending
    backward[order] = np.repeat(sizes, sizes) - 1 - ascending
    return forward, backward


def _labels(left: UInt64s, right: UInt64s) -> tuple[Int64s, Int64s]:
    """Number the distinct contents of both sides from 0."""
    _, labels = np.unique(np.concatenate([left, right]), return_inverse=True)
    labels = labels.astype(np.int64).reshape(-1)
    return labels[: len(left)], labels[len(left) :]


def _ranked_candidates(left: UInt64s, right: UInt64s) -> tuple[Int64s, Int64s]:
    """Propose the k-th of one content with the k-th of it, counted from both ends."""
    if not len(left) or not len(right):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    a, b = _labels(left, right)
    width = np.int64(max(len(a), len(b)))
    found_a, found_b = [], []
    for rank_a, rank_b in zip(_ranks(a), _ranks(b), strict=True):
        _, in_a, in_b = np.intersect1d(
            a * width + rank_a, b * width + rank_b, assume_unique=True, return_indices=True
        )
        found_a.append(in_a)
        found_b.append(in_b)
    return np.concatenate(found_a), np.concatenate(found_b)


def _common_shift(shifts: Int64s) -> np.int64:
    """Find the clock difference most proposals agree on: the middle of the densest tenth of them.

    Right proposals share one difference up to transit and drift; wrong ones scatter over the
    repeats.
    """
    ordered = np.sort(shifts)
    span = max(1, len(ordered) // 10)
    widths = ordered[span - 1 :] - ordered[: len(ordered) - span + 1]
    best = int(np.argmin(widths))
    return np.int64(ordered[best + span // 2])


def _nearest_candidates(
    left: UInt64s, right: UInt64s, left_ns: Int64s, right_ns: Int64s
) -> tuple[Int64s, Int64s]:
    """Propose items of equal content that are each other's nearest in time."""
    a, b = _labels(left, right)
    a_to_b = _nearest(a, left_ns, b, right_ns)
    b_to_a = _nearest(b, right_ns, a, left_ns)
    index = np.arange(len(a), dtype=np.int64)
    mutual = (a_to_b >= 0) & (b_to_a[a_to_b] == index)
    return index[mutual], a_to_b[mutual]


def _nearest(labels: Int64s, times: Int64s, others: Int64s, other_times: Int64s) -> Int64s:
    """Find each item's equal on the other side that is nearest in time; -1 for none."""
    order = np.lexsort((other_times, others))
    # One rank over both sides' times keeps (content, time) in one sortable integer without
    # overflow.
    _, ranks = np.unique(np.concatenate([times, other_times]), return_inverse=True)
    ranks = ranks.astype(np.int64).reshape(-1)
    width = np.int64(len(ranks) + 1)
    keys = others[order] * width + ranks[len(times) :][order]
    right_of = np.searchsorted(keys, labels * width + ranks[: len(times)])
    after, before = np.minimum(right_of, len(order) - 1), np.maximum(right_of - 1, 0)
    gap_after = np.where(
        others[order[after]] == labels, np.abs(other_times[order[after]] - times), _NEVER
    )
    gap_before = np.where(
        others[order[before]] == labels, np.abs(other_times[order[before]] - times), _NEVER
    )
    chosen = np.where(gap_before <= gap_after, order[before], order[after])
    return np.where(np.minimum(gap_after, gap_before) == _NEVER, -1, chosen).astype(np.int64)


def _longest_rising(a: Int64s, b: Int64s) -> tuple[Int64s, Int64s]:
    """Keep the most proposals that rise in both, by patience sorting: n log n."""
    order = np.lexsort((-b, a))
    a, b = a[order], b[order]
    tails: list[int] = []
    places: list[int] = []
    previous = np.full(len(b), -1, np.int64)
    for place, value in enumerate(b.tolist()):
        at = bisect_left(tails, value)
        if at:
            previous[place] = places[at - 1]
        if at == len(tails):
            tails.append(value)
            places.append(place)
        else:
            tails[at] = value
            places[at] = place
    chain = np.empty(len(tails), np.int64)
    place = places[-1] if places else -1
    for at in range(len(tails) - 1, -1, -1):
        chain[at] = place
        place = int(previous[place])
    return a[chain], b[chain]


def _fill_gaps(
    left: UInt64s, right: UInt64s, pairs: tuple[Int64s, Int64s], clock: _Times | None
) -> tuple[Int64s, Int64s]:
    """Pair, within each gap between pairs, what has the same content there."""
    free_a = np.setdiff1d(np.arange(len(left)), pairs[0], assume_unique=True)
    free_b = np.setdiff1d(np.arange(len(right)), pairs[1], assume_unique=True)
    if not len(free_a) or not len(free_b):
        return pairs
    # Content and gap number together: equal only within one gap.
    a, b = _labels(left[free_a], right[free_b])
    width = np.int64(len(pairs[0]) + 1)
    keys_a = (a * width + np.searchsorted(pairs[0], free_a)).astype(np.uint64)
    keys_b = (b * width + np.searchsorted(pairs[1], free_b)).astype(np.uint64)
    in_a, in_b = _ranked_candidates(keys_a, keys_b)
    found = free_a[in_a], free_b[in_b]
    if clock is not None and len(pairs[0]):
        found = clock.keep(found, clock.shift_near(pairs, found[0]))
    found = _longest_rising(*found)
    both_a = np.concatenate([pairs[0], found[0]])
    both_b = np.concatenate([pairs[1], found[1]])
    order = np.argsort(both_a)
    return both_a[order], both_b[order]
