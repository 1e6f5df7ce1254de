"""Runs: the cases with names, and the speed that whole traces need."""

import time

import numpy as np
import pytest

from replay.ranges import (
    Runs,
    align_in,
    compact,
    empty,
    expand,
    intersect,
    merge,
    pfns_from_runs,
    runs_from_wire,
    subtract,
)

PAGES = 2_000_000


def listed(runs: Runs) -> list[tuple[int, int]]:
    return list(zip(runs.start.tolist(), runs.pages.tolist(), strict=True))


def test_nothing_stays_nothing():
    assert listed(compact([])) == []
    assert len(expand(empty())) == 0
    assert listed(subtract(empty(), empty())) == []
    assert listed(intersect(compact([1]), empty())) == []


def test_compact_at_both_ends_of_the_address_space():
    last = (1 << 52) - 1
    assert listed(compact(np.array([last, 0, last - 1], np.uint64))) == [(0, 1), (last - 1, 2)]


def test_wire_runs_follow_the_convention_of_the_trace_format():
    pfn, pages = runs_from_wire([7, 6, 5, 20, 30, 31])
    assert pfn.tolist() == [7, 20, 30]
    assert pages.tolist() == [-3, 1, 2]


def test_align_in_drops_what_holds_no_whole_unit():
    assert listed(align_in(Runs(np.array([510, 2047]), np.array([1030, 2])), 512)) == [(512, 1024)]


SHUFFLED = np.random.default_rng(1).permutation(PAGES)
STREAMS = {
    "falling": np.arange(PAGES)[::-1],
    "shuffled": SHUFFLED,
    "sparse": SHUFFLED * 32,
    "every second": np.arange(PAGES) * 2,
}


@pytest.mark.parametrize("name", STREAMS)
def test_two_million_pages_take_a_fraction_of_a_second(name):
    """About 0.3 s of CPU for all steps; ten times that means that a Python loop crept in."""
    stream = STREAMS[name]
    begin = time.process_time()
    runs = compact(stream)
    wire = runs_from_wire(stream)
    back = pfns_from_runs(*wire)
    other = Runs(runs.start + 1, runs.pages)
    left = subtract(runs, merge(other.start, other.pages))
    seconds = time.process_time() - begin
    assert runs.total_pages == PAGES
    assert (back == stream).all()
    assert left.total_pages >= 1
    assert seconds < 3


@pytest.mark.parametrize("far", [1 << 29, (1 << 62) + 5])
def test_pages_beyond_what_a_bitmap_has_are_merged_all_the_same(far: int) -> None:
    """Found only after thousands of others were marked; of these nothing is left for the next."""
    near = np.random.default_rng(3).permutation(6000)
    found = compact(np.append(near, [far, far + 1, 7]))
    assert found.start.tolist() == [0, far]
    assert found.pages.tolist() == [6000, 2]
    again = compact(np.arange(5000)[::-1] * 2)
    assert again.pages.tolist() == [1] * 5000
