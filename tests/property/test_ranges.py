"""Runs against sets of pages, on anything."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from replay.native.ascending import merge_runs
from replay.ranges import (
    Runs,
    align_in,
    compact,
    expand,
    intersect,
    merge,
    merge_sorted,
    pfns_from_runs,
    rising,
    runs_from_wire,
    subtract,
)

near = st.integers(0, 40)
far = st.integers(0, (1 << 52) - 1)
last_marked = 1 << 29
"""Of this many pages a bitmap is made; where one lies beyond, all are sorted."""
line = st.tuples(
    st.one_of(near, st.integers(48, 80), st.integers(last_marked - 40, last_marked + 8)),
    st.integers(1, 24),
    st.sampled_from((1, -1)),
    st.integers(0, 24),
)
"""First page, pages, the way they go, and which of them comes twice, if there is such a one."""
pfn_lists = st.lists(st.one_of(near, far), max_size=60)
near_lists = st.lists(near, max_size=60)


def pages(runs: Runs) -> set[int]:
    return set(expand(runs).tolist())


def is_canonical(runs: Runs) -> bool:
    return bool((runs.pages > 0).all() and (runs.start[1:] > runs.end[:-1]).all())


@given(pfn_lists)
def test_compact_holds_the_same_pages_in_canonical_form(pfns):
    runs = compact(np.array(pfns, np.int64))
    assert is_canonical(runs)
    assert expand(runs).tolist() == sorted(set(pfns))


@given(st.lists(line, max_size=12), st.permutations(range(40)))
def test_compact_takes_lines_that_begin_and_end_anywhere(lines, more_than_a_sort_takes):
    pfns = list(more_than_a_sort_takes)
    for first, count, step, twice in lines:
        named = [first + step * i for i in range(count) if first + step * i >= 0]
        pfns += named[: twice + 1] + named[twice:]
    runs = compact(np.array(pfns, np.int64))
    assert is_canonical(runs)
    assert expand(runs).tolist() == sorted(set(pfns))


@given(st.one_of(pfn_lists, near_lists))
def test_wire_order_comes_back_exact(pfns):
    first, signed = runs_from_wire(np.array(pfns, np.int64))
    assert (signed != 0).all()
    assert pfns_from_runs(first, signed).tolist() == pfns


@given(near_lists)
def test_rising_names_the_same_pages(pfns):
    first, signed = runs_from_wire(np.array(pfns, np.int64))
    low, length = rising(first, signed)
    assert sorted(pfns_from_runs(low, length).tolist()) == sorted(pfns)


@given(st.lists(st.tuples(st.one_of(near, far), st.integers(0, 9)), max_size=40))
def test_merge_takes_runs_that_overlap_in_any_order(found):
    start = np.array([low for low, _ in found], np.int64)
    length = np.array([count for _, count in found], np.int64)
    runs = merge(start, length)
    assert is_canonical(runs)
    assert pages(runs) == {low + i for low, count in found for i in range(count)}


@given(near_lists, near_lists)
def test_set_operations_are_those_of_sets(left, right):
    first, second = compact(np.array(left, np.int64)), compact(np.array(right, np.int64))
    for operation, expected in (
        (subtract, set(left) - set(right)),
        (intersect, set(left) & set(right)),
        (merge_sorted, set(left) | set(right)),
    ):
        result = operation(first, second)
        assert is_canonical(result)
        assert pages(result) == expected


@given(near_lists, st.sampled_from([1, 2, 4, 16]))
def test_align_in_keeps_whole_units_only(pfns, unit):
    runs = align_in(compact(np.array(pfns, np.int64)), unit)
    whole = {p for p in pfns if all(p // unit * unit + i in pfns for i in range(unit))}
    assert pages(runs) == whole


groups = st.lists(
    st.lists(st.tuples(st.one_of(near, far), st.integers(-2, 700)), min_size=1, max_size=20),
    max_size=6,
)


@given(groups)
def test_runs_merge_within_their_group_alone(found):
    flat = [(low, count, number) for number, part in enumerate(found) for low, count in part]
    start, length, group = np.array(flat, np.int64).reshape(-1, 3).T
    merged = np.transpose(merge_runs(start, length, group)).tolist()
    expected = [
        [low, count, number]
        for number, part in enumerate(found)
        for low, count in zip(*merge_by_sorting(part), strict=True)
    ]
    assert merged == expected


def merge_by_sorting(found: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """The same runs without any marking: sorted by their start, and joined where they meet."""
    begins: list[int] = []
    ends: list[int] = []
    for low, count in sorted(found):
        if count <= 0:
            continue
        if ends and low <= ends[-1]:
            ends[-1] = max(ends[-1], low + count)
        else:
            begins.append(low)
            ends.append(low + count)
    return begins, [end - low for low, end in zip(begins, ends, strict=True)]
