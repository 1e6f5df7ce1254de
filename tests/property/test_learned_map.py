"""A map learned from requests: true wherever it says anything, whatever guest memory looks like."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from tracer.vms.extents import Extent
from tracer.vms.layouts import FOUR_GIB, GIB, qemu_layouts, two_part_layouts
from tracer.vms.learned_map import LearnedMap
from tracer.vms.mappings import Mapping
from tracer.vms.memory_map import GuestMemory
from tracer.vms.qemu_options import Backend
from tracer.vms.translation import MemoryMap

PAGE = 4096
MIB = 1 << 20
TOP = 0x7F0000000000


@dataclass(frozen=True)
class Part:
    """Where a part of guest memory truly lies."""

    gpa: int
    hva: int
    length: int


def extent(start: int, length: int) -> Extent:
    end = start + length
    return Extent(start, end, Mapping(start, end, "rw-p", 0, 0, ""), None, start, end)


@st.composite
def stacked_guests(draw):
    """A QEMU of one to three backends, mapped in any order, and the hole it may or may not have."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    lengths = [size * 256 * MIB for size in sizes]
    order = draw(st.permutations(range(len(lengths))))
    starts, at = {}, TOP
    for index in order:
        at -= lengths[index] + PAGE * draw(st.integers(1, 4096))
        starts[index] = at
    low = min(sum(lengths), draw(st.sampled_from([2 * GIB, 11 * GIB // 4, 3 * GIB, 7 * GIB // 2])))
    parts, offset = [], 0
    for index, length in enumerate(lengths):
        below = max(0, min(length, low - offset))
        if below:
            parts.append(Part(offset, starts[index], below))
        if below < length:
            gpa = FOUR_GIB + max(0, offset - low)
            parts.append(Part(gpa, starts[index] + below, length - below))
        offset += length
    extents = [extent(starts[i], n) for i, n in enumerate(lengths)]
    if draw(st.booleans()):  # something else, as large as a backend
        extents.append(extent(at - 2 * lengths[0], lengths[0]))
    extents.sort(key=lambda e: e.start)
    backends = [(Backend("ram", f"node{i}", n), n) for i, n in enumerate(lengths)]
    guessed_low = draw(st.sampled_from([low, min(sum(lengths), 3 * GIB)]))
    layouts = qemu_layouts(extents, backends, guessed_low)
    return parts, memory_of(layouts, extents), guessed_low == low


@st.composite
def two_part_guests(draw):
    """A VMM that maps both sides of the hole by themselves; the kernel may merge the two."""
    low_full = draw(st.sampled_from([3 * GIB, 13 * GIB // 4, 5 * GIB // 2]))
    total = draw(st.integers(1, 64)) * 128 * MIB
    low = min(total, low_full)
    high = total - low
    gap = draw(st.sampled_from([0, PAGE, 2 * MIB]))
    low_start = TOP - low
    high_start = low_start - gap - high
    if draw(st.booleans()):  # the other order
        high_start, low_start = TOP - high, TOP - high - gap - low
    parts = [Part(0, low_start, low)] + ([Part(FOUR_GIB, high_start, high)] if high else [])
    if high and not gap:
        extents = [extent(min(low_start, high_start), total)]
    else:
        extents = sorted((extent(p.hva, p.length) for p in parts), key=lambda e: e.start)
    known_total = draw(st.sampled_from([total, None]))
    holes = (3 * GIB, 13 * GIB // 4)
    layouts = two_part_layouts(extents, holes, known_total)
    return parts, memory_of(layouts, extents), low_full in holes and known_total is not None


def memory_of(layouts, extents) -> GuestMemory:
    candidates = tuple(
        tuple(
            placed.extent.region("", placed.gpa, placed.start, placed.length_bytes)
            for placed in sorted(layout, key=lambda placed: placed.gpa)
        )
        for layout in layouts
    )
    return GuestMemory(candidates, tuple(extents), tuple(extents), "")


guests = st.one_of(stacked_guests(), two_part_guests())


def points(parts, picks):
    """Pairs of GPA and HVA at shares of the parts, page aligned, outside the legacy hole."""
    gpa, hva = [], []
    for index, share in picks:
        part = parts[index % len(parts)]
        offset = int(share * (part.length - PAGE)) // PAGE * PAGE
        gpa.append(part.gpa + offset)
        hva.append(part.hva + offset)
    return np.array(gpa, np.int64), np.array(hva, np.int64)


def false_claims(learned: LearnedMap, parts) -> list[str]:
    """Where the map says something else than the truth: at every edge of both."""
    wrong = []
    edges = [e for p in parts for e in (p.hva, p.hva + p.length)]
    for region in learned.regions:
        ends = [region.hva, region.hva + region.length_bytes]
        inside = [e for e in edges if ends[0] < e < ends[1]]
        for hva in [ends[0], ends[1] - 1, *inside, *(e - 1 for e in inside)]:
            true = [hva - p.hva + p.gpa for p in parts if 0 <= hva - p.hva < p.length]
            if true != [hva - region.hva + region.gpa]:
                wrong.append(f"{hva:#x}: {hva - region.hva + region.gpa:#x}, truly {true}")
    return wrong


picks = st.lists(st.tuples(st.integers(0, 7), st.floats(0, 1)), max_size=12)


@given(guests, picks)
def test_whatever_is_said_after_requests_from_all_memory_is_true(guest, picked):
    """Requests from both ends of every part settle it, whether the guess was right or not."""
    parts, memory, truth_is_possible = guest
    learned = LearnedMap(memory)
    every = [(index, share) for index in range(len(parts)) for share in (0.0, 1.0)]
    learned.add(*points(parts, every + picked))
    assert false_claims(learned, parts) == []
    gpa, hva = points(parts, every)
    assert np.array_equal(MemoryMap(learned.regions).gpa_of_hva(hva.astype(np.uint64)), gpa)
    assert learned.is_certain or not truth_is_possible


@given(guests, picks, picks)
def test_without_any_guess_the_requests_alone_never_say_too_much(guest, first, second):
    parts, memory, _ = guest
    learned = LearnedMap(replace(memory, candidates=(), reason="none fits"))
    for some in (first, second):
        learned.add(*points(parts, some))
        assert false_claims(learned, parts) == []
    assert not learned.is_certain
    gpa, hva = points(parts, first + second)
    assert np.array_equal(MemoryMap(learned.regions).gpa_of_hva(hva.astype(np.uint64)), gpa)


@given(guests, picks, st.integers(0, 12))
def test_a_map_that_was_possible_is_never_contradicted_by_any_part_of_the_requests(
    guest, picked, cut
):
    parts, memory, truth_is_possible = guest
    assume(truth_is_possible)
    learned = LearnedMap(memory)
    assert false_claims(learned, parts) == []
    for some in (picked[:cut], picked[cut:]):
        learned.add(*points(parts, some))
        assert false_claims(learned, parts) == []
        assert "contradict" not in learned.reason


@given(guests, picks, picks)
def test_batches_and_their_order_make_no_difference(guest, first, second):
    parts, memory, _ = guest
    at_once, one_by_one = LearnedMap(memory), LearnedMap(memory)
    at_once.add(*points(parts, first + second))
    for pick in reversed(first + second):
        one_by_one.add(*points(parts, [pick]))
    assert at_once.regions == one_by_one.regions
    assert at_once.is_certain == one_by_one.is_certain


@given(guests, picks, st.lists(st.tuples(st.integers(0, 1 << 45), st.integers(0, 1 << 47))))
def test_points_outside_guest_memory_change_nothing(guest, picked, odd):
    """A guest may put a request into ROM or a device: its VMM then uses a buffer of its own."""
    parts, memory, _ = guest
    outside = [(g, h) for g, h in odd if not any(e.start <= h < e.end for e in memory.extents)]
    plain, disturbed = LearnedMap(memory), LearnedMap(memory)
    plain.add(*points(parts, picked))
    disturbed.add(*points(parts, picked))
    if outside:
        assert not disturbed.add(*np.array(outside, np.int64).T)
    assert disturbed.regions == plain.regions
    seen = sum(h > 0 and not 0xA0000 <= g < 0x100000 for g, h in outside)
    assert disturbed.elsewhere == seen


@given(guests, st.lists(st.tuples(st.integers(0, 1 << 45), st.floats(0, 1)), max_size=300))
def test_hostile_points_inside_guest_memory_stay_bounded(guest, odd):
    parts, memory, _ = guest
    learned = LearnedMap(memory)
    if odd:
        gpa = np.array([g for g, _ in odd], np.int64)
        hva = points(parts, [(g, share) for g, share in odd])[1]
        learned.add(gpa, hva)
    regions = learned.regions
    assert len(regions) <= 64 + 8
    for before, after in pairwise(regions):
        assert before.gpa + before.length_bytes <= after.gpa
