"""Which pages the guest uses again: those that it got back, and that had memory at first."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from replay.ranges import Runs, empty, expand
from replay.requests import from_pfns
from replay.residency import Residency
from replay.reuse import handed_back, in_balloon
from tests.unit.planned import context
from tracer.trace.schema import Queue

LAYOUT = context().layout
MEMORY = expand(LAYOUT.runs)
ALL = Residency(LAYOUT.runs, empty(), "test")


def pages(runs: Runs) -> set[int]:
    return set(expand(runs).tolist())


def moved(*stream):
    return from_pfns(list(stream))


def test_deflated_and_reported_pages_are_used_again_and_inflated_ones_not() -> None:
    requests = moved(
        (Queue.INFLATE, [0, 1, 2, 3]),
        (Queue.DEFLATE, [1, 2]),
        (Queue.INFLATE, [2]),
        (Queue.REPORTING, [range(4, 8)]),
        (Queue.INFLATE, [5]),
    )
    assert pages(in_balloon(requests, LAYOUT)) == set(LAYOUT.pages_of(np.array([0, 2, 3, 5])))
    back = set(LAYOUT.pages_of(np.array([1, 4, 6, 7])))
    assert pages(handed_back(requests, LAYOUT, ALL)) == back


def test_what_had_no_memory_at_first_is_left_out() -> None:
    requests = moved((Queue.INFLATE, [0, 1, 2]), (Queue.DEFLATE, [0, 1, 2]))
    first = LAYOUT.pages_of(np.array([1]))
    resident = Residency(Runs(first, np.array([1])), empty(), "test")
    assert pages(handed_back(requests, LAYOUT, resident)) == set(first.tolist())
    nothing = Residency(empty(), empty(), "test")
    assert handed_back(requests, LAYOUT, nothing).total_pages == 0


moves = st.tuples(
    st.sampled_from([Queue.INFLATE, Queue.DEFLATE]),
    st.lists(st.integers(0, 12), min_size=1, max_size=8),
)


@given(st.lists(moves, max_size=12))
def test_a_page_belongs_to_whoever_was_given_it_last(stream) -> None:
    owner: dict[int, Queue] = {}
    for queue, pfns in stream:
        for pfn in pfns:
            owner[pfn] = queue
    requests = moved(*stream)
    known = {pfn: int(LAYOUT.pages_of(np.array([pfn]))[0]) for pfn in owner}
    held = {known[pfn] for pfn, queue in owner.items() if queue is Queue.INFLATE} - {-1}
    back = {known[pfn] for pfn, queue in owner.items() if queue is Queue.DEFLATE} - {-1}
    assert pages(in_balloon(requests, LAYOUT)) == held
    assert pages(handed_back(requests, LAYOUT, ALL)) == back & set(MEMORY.tolist())
