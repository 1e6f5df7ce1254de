"""Strategies that take requests together, against the same rules told one request at a time."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.plan import Context, Plan
from replay.requests import NOT_OBSERVED_NS, Requests, from_pfns
from replay.strategies import load_strategy
from replay.strategies.parallel import shared_out
from replay.strategies.select import Pieces
from replay.strategies.vectored import joint_calls
from replay.strategies.windows import batch_last, held_until
from tests.property.test_strategies import (
    context,
    page_of,
    pauses,
    requests_of,
    stretches,
)
from tracer.trace.schema import Queue

moves = st.lists(
    st.tuples(st.sampled_from([Queue.INFLATE, Queue.INFLATE, Queue.DEFLATE]), stretches),
    max_size=14,
)
"""Mostly inflates of neighbours, so that units become whole, break up and become whole again."""
Ranges = list[tuple[int, int, int]]
"""(request, page, pages)."""


def runs(pages: set[int]) -> list[tuple[int, int]]:
    """Merged ranges of pages; the layout leaves a gap between regions."""
    low = sorted(page for page in pages if page - 1 not in pages)
    return [(page, next(n for n in range(1, 999) if page + n not in pages)) for page in low]


def listed(plan: Plan) -> Ranges:
    columns = (plan.request, plan.offset_bytes >> np.uint64(12), plan.length_bytes >> np.uint64(12))
    return [tuple(row) for row in zip(*(c.tolist() for c in columns), strict=True)]


def named(requests: Requests, index: int, where: Context) -> list[int]:
    found = (page_of(pfn, where) for pfn in requests.pfns(index).tolist())
    return [page for page in found if page is not None]


def holds_told(requests: Requests, pages: int | None, hold_ns: int | None) -> list[int]:
    """Walk through the requests with a timer and a counter."""
    ends = [-1] * len(requests)
    opened, given, deadline, now = None, 0, 0, NOT_OBSERVED_NS

    def close(end: int) -> None:
        ends[opened : end + 1] = [end] * (end + 1 - opened)

    for index in range(len(requests)):
        now = max(now, int(requests.time_ns[index]))
        if opened is not None and hold_ns is not None and now >= deadline:
            close(index - 1)
            opened = None
        inflated = int(requests.pages[index]) if requests.queue[index] == Queue.INFLATE else 0
        if opened is None and inflated:
            opened, given, deadline = index, 0, now + (hold_ns or 0)
        given += inflated
        if opened is not None and pages is not None and given >= pages:
            close(index)
            opened = None
    if opened is not None:
        close(len(requests) - 1)
    return ends


@given(
    moves,
    pauses,
    st.lists(st.booleans(), min_size=14, max_size=14),
    st.sampled_from([None, 1, 3, 10]),
    st.sampled_from([None, 1, 1000, 1001, 10**9]),
)
def test_a_hold_ends_by_its_bytes_its_time_or_the_trace(stream, gaps, seen, pages, hold_ns):
    requests = requests_of(stream, gaps)
    requests.time_ns[~np.array(seen[: len(requests)], bool)] = NOT_OBSERVED_NS
    hold_bytes = None if pages is None else pages << 12
    assert held_until(requests, hold_bytes, hold_ns).tolist() == holds_told(
        requests, pages, hold_ns
    )


@given(moves, pauses, st.integers(1, 20), st.sampled_from([500, 1000, 10**9]))
def test_a_batch_ends_when_the_next_request_does_not_fit(stream, gaps, pfns, pause_ns):
    requests = requests_of(stream, gaps)
    expected = [-1] * len(requests)
    batch: list[int] = []
    for index in range(len(requests)):
        paused = index > 0 and requests.time_ns[index] - requests.time_ns[index - 1] >= pause_ns
        fits = sum(int(requests.pages[i]) for i in (*batch, index)) <= pfns
        if requests.queue[index] == Queue.DEFLATE:
            batch = []
            continue
        batch = [*batch, index] if fits and not paused else [index]
        for member in batch:
            expected[member] = index
    assert batch_last(requests, pfns, pause_ns).tolist() == expected


def deferred_told(requests: Requests, where: Context, ends: list[int]) -> Ranges:
    held: set[int] = set()
    found: Ranges = []
    for index, end in enumerate(ends):
        pages = set(named(requests, index, where))
        held = held - pages if requests.queue[index] == Queue.DEFLATE else held | pages
        if end == index:
            found += [(index, *run) for run in runs(held)]
        if end in (index, -1):
            held = set()
    return found


@pytest.mark.parametrize("pages", [None, 1, 6, 20])
@given(moves, pauses)
def test_deferred_discards_what_a_hold_still_has(pages, stream, gaps):
    requests, where = requests_of(stream, gaps), context()
    text = "none" if pages is None else pages << 12
    plan = load_strategy(f"deferred:hold_bytes={text},hold_ns=400000000").plan(requests, where)
    ends = holds_told(requests, pages, 400_000_000)
    assert listed(plan) == deferred_told(requests, where, ends)


def huge_told(requests: Requests, where: Context, ends: list[int], unit: int) -> Ranges:
    held: set[int] = set()
    gone: set[int] = set()
    found: Ranges = []
    for index, end in enumerate(ends):
        pages = set(named(requests, index, where))
        if requests.queue[index] == Queue.DEFLATE:
            held, gone = held - pages, gone - pages
        else:
            fresh = {page // unit for page in pages - held}
            held |= pages
            whole = [set(range(n * unit, n * unit + unit)) for n in fresh]
            went = set().union(*(each for each in whole if each <= held))
            found += [(index, *run) for run in runs(went)]
            gone |= went
        if end == index:
            found += [(index, *run) for run in runs(held - gone)]
        if end in (index, -1):
            held, gone = set(), set()
    return found


@pytest.mark.parametrize("unit", [1, 2, 4, 8])
@pytest.mark.parametrize("pages", [None, 20])
@given(moves, pauses)
def test_huge_discards_units_when_they_are_whole_and_the_rest_when_a_hold_ends(
    pages, unit, stream, gaps
):
    requests, where = requests_of(stream, gaps), context()
    text = "none" if pages is None else pages << 12
    strategy = load_strategy(f"huge:unit_bytes={unit << 12},hold_bytes={text},hold_ns=none")
    ends = holds_told(requests, pages, None)
    assert listed(strategy.plan(requests, where)) == huge_told(requests, where, ends, unit)


def test_a_unit_that_broke_up_leaves_its_remains_to_the_end():
    """Whole at first; two pages go back, one returns: only that one is left to discard."""
    stream = [([0, 1, 2, 3], True), ([1, 2], False), ([2], True)]
    requests = from_pfns([(Queue.INFLATE if given else Queue.DEFLATE, p) for p, given in stream])
    plan = load_strategy("huge:unit_bytes=16384").plan(requests, context())
    assert listed(plan) == [(0, 0, 4), (2, 2, 1)]


def test_a_page_given_twice_does_not_put_its_unit_off():
    requests = from_pfns([(Queue.INFLATE, pfns) for pfns in ([0, 1, 2, 3], [3], [9])])
    plan = load_strategy("huge:unit_bytes=16384").plan(requests, context())
    assert listed(plan) == [(0, 0, 4), (2, int(context().layout.pages_of(np.array([9]))[0]), 1)]


lengths = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2)), max_size=30)


def laid_out(drawn: list[tuple[int, int]]) -> Pieces:
    """Pieces with gaps between them, of requests that ascend."""
    drawn = sorted(drawn, key=lambda item: item[1])
    pages = np.array([length for length, _ in drawn], np.int64)
    page = np.cumsum(pages + 1) - pages
    return Pieces(page, pages, np.array([request for _, request in drawn], np.int64))


@given(lengths, st.integers(1, 5), st.integers(1, 20))
def test_a_call_takes_what_its_limits_allow(drawn, ranges, pages):
    found = laid_out(drawn)
    expected, inside, total = [], 0, 0
    for index, (size, request) in enumerate(zip(found.pages, found.request, strict=True)):
        same = index > 0 and request == found.request[index - 1]
        joins = same and inside < ranges and total + size <= pages
        inside, total = (inside + 1, total + size) if joins else (1, size)
        expected.append(joins)
    assert joint_calls(found, ranges, pages).tolist() == expected


@given(lengths, st.integers(1, 5), st.sampled_from([1, 2, 4]))
def test_shares_hold_the_same_pages_and_meet_at_borders(drawn, threads, border):
    found = laid_out(drawn)
    shared, thread = shared_out(found, threads, border)

    def flat(pieces: Pieces) -> list[tuple[int, int]]:
        rows = zip(*(column.tolist() for column in pieces), strict=True)
        return [(request, page + i) for page, pages, request in rows for i in range(pages)]

    assert flat(shared) == flat(found)
    assert set(found.page.tolist()) <= set(shared.page.tolist())
    cut = np.setdiff1d(shared.page, found.page)
    assert (cut % border == 0).all()
    for request in np.unique(found.request).tolist():
        mine = shared.request == request
        order = thread[mine].tolist()
        assert order == sorted(order)
        assert max(order) < threads
        total = int(shared.pages[mine].sum())
        if total < threads * border:
            assert set(order) == {0}
            continue
        ends = np.cumsum(shared.pages[mine])
        longest = max(border, int(found.pages[found.request == request].max()))
        for one in range(threads - 1):
            reach = int(ends[thread[mine] <= one].max(initial=0))
            assert 0 <= -(-total * (one + 1) // threads) - reach < longest
    assert all(a <= b for a, b in pairwise(shared.request.tolist()))
