"""A stretched order covers what it must exactly once, and is the recorded one over and over."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.plan import Context
from replay.ranges import compact
from replay.requests import NOT_OBSERVED_NS, Requests, from_pfns
from replay.stretch import Order, Stretched, recorded_order, stretch
from tracer.trace.errors import AerostatError
from tracer.trace.manifest import Region
from tracer.trace.schema import Queue

MEMORY_PAGES = 96
CONTEXT = Context((Region("ram", 0, None, MEMORY_PAGES << 12, "anon", 4096),))

contents = st.lists(st.integers(0, MEMORY_PAGES + 5), max_size=12)
stretches = st.tuples(st.integers(0, MEMORY_PAGES), st.integers(1, 20), st.booleans()).map(
    lambda drawn: list(range(drawn[0], drawn[0] + drawn[1]))[:: -1 if drawn[2] else 1]
)
streams = st.lists(
    st.tuples(st.sampled_from([Queue.INFLATE, Queue.INFLATE, Queue.DEFLATE]), contents | stretches),
    min_size=1,
    max_size=10,
)


def wire_pages(requests: Requests) -> list[int]:
    return [page for i in range(len(requests)) for page in requests.pfns(i).tolist()]


def inflated(stream: list) -> list[list[int]]:
    """Page by page: what each inflate request names first, without those that name nothing."""
    seen: set[int] = set()
    found = []
    for queue, pfns in stream:
        new = [pfn for pfn in pfns if queue == Queue.INFLATE and pfn < MEMORY_PAGES]
        new = [pfn for at, pfn in enumerate(new) if pfn not in seen and pfn not in new[:at]]
        seen |= set(new)
        if new:
            found.append(new)
    return found


def order_of(stream: list) -> Order:
    times = list(range(1000, 1000 + 10 * len(stream), 10))
    return recorded_order(from_pfns(stream, times), CONTEXT)


def steps(pages: list[int]) -> list[int]:
    """Each step as -1 or 1 to a neighbour, -2 or 2 to a page further down or up."""
    return np.clip(np.diff(pages), -2, 2).tolist()


with_inflate = streams.filter(lambda stream: bool(inflated(stream)))


@given(streams)
def test_the_order_is_each_page_where_it_is_named_first(stream: list) -> None:
    expected = inflated(stream)
    if not expected:
        with pytest.raises(AerostatError, match="no inflate"):
            order_of(stream)
        return
    order = order_of(stream)
    assert order.page.tolist() == [page for request in expected for page in request]
    assert np.bincount(order.request).tolist() == [len(request) for request in expected]
    assert len(order.time_ns) == len(expected)


@given(with_inflate, st.integers(1, 400), st.integers(0, 200))
def test_every_page_is_named_once_and_lies_in_memory(stream: list, pages: int, room: int) -> None:
    stretched = stretch(order_of(stream), pages, pages + room)
    named = wire_pages(stretched.requests)
    assert len(named) == len(set(named)) == pages == int(stretched.requests.pages.sum())
    assert 0 <= min(named) <= max(named) < pages + room
    assert set(stretched.requests.queue.tolist()) == {Queue.INFLATE}


def copies(stretched: Stretched) -> list[list[int]]:
    named = wire_pages(stretched.requests)
    size = stretched.recorded_pages
    return [named[at : at + size] for at in range(0, len(named), size)]


@given(with_inflate, st.integers(1, 400), st.integers(0, 4000))
def test_each_copy_steps_as_the_recording(stream: list, pages: int, room: int) -> None:
    order = order_of(stream)
    stretched = stretch(order, pages, pages + room)
    recorded = steps(order.page.tolist())
    if stretched.holes_kept < stretched.holes:
        assert stretched.holes_kept <= room
        recorded = np.sign(recorded).tolist()
        for copy in copies(stretched):
            assert np.sign(steps(copy)).tolist() == recorded[: len(copy) - 1]
        return
    ranges = len(compact(order.page).start)
    for copy in copies(stretched):
        assert steps(copy) == recorded[: len(copy) - 1]
        if len(copy) == stretched.recorded_pages:
            assert len(compact(copy).start) == ranges
            assert sorted(compact(copy).pages) == sorted(compact(order.page).pages)


@given(with_inflate, st.integers(1, 400))
def test_copies_never_touch_where_holes_fit(stream: list, pages: int) -> None:
    order = order_of(stream)
    stretched = stretch(order, pages, pages + stretch(order, pages, 1 << 28).holes)
    assert stretched.holes_kept == stretched.holes
    apart = sum(len(compact(copy).start) for copy in copies(stretched))
    assert len(compact(wire_pages(stretched.requests)).start) == apart


@given(with_inflate, st.integers(1, 400))
def test_without_room_nothing_is_left_out(stream: list, pages: int) -> None:
    stretched = stretch(order_of(stream), pages, pages)
    assert sorted(wire_pages(stretched.requests)) == list(range(pages))
    assert stretched.holes_kept == 0


@given(with_inflate, st.integers(1, 400), st.integers(0, 100))
def test_requests_keep_their_sizes_and_their_pace(stream: list, pages: int, room: int) -> None:
    order = order_of(stream)
    requests = stretch(order, pages, pages + room).requests
    sizes = np.bincount(order.request).tolist()
    found = requests.pages.tolist()
    expected = (sizes * (pages // len(order.page) + 1))[: len(found)]
    assert found[:-1] == expected[:-1]
    assert 0 < found[-1] <= expected[-1]
    time_ns = requests.time_ns
    assert (np.diff(time_ns) >= 0).all()
    whole = min(len(sizes), len(time_ns))
    assert time_ns[:whole].tolist() == order.time_ns[:whole].tolist()


@given(with_inflate, st.integers(1, 300), st.integers(0, 100))
def test_it_is_a_function_of_its_arguments_alone(stream: list, pages: int, room: int) -> None:
    order = order_of(stream)
    first, second = (stretch(order, pages, pages + room).requests for _ in range(2))
    assert wire_pages(first) == wire_pages(second)
    assert first.time_ns.tolist() == second.time_ns.tolist()


def test_an_order_that_falls_goes_on_downwards() -> None:
    order = order_of([(Queue.INFLATE, [9, 8, 7, 6]), (Queue.INFLATE, [3, 2])])
    named = wire_pages(stretch(order, 12, 40).requests)
    assert named[6] < named[5]
    rising = wire_pages(stretch(order_of([(Queue.INFLATE, [2, 3])]), 4, 4).requests)
    assert rising == [0, 1, 2, 3]


def test_times_that_nobody_observed_stay_so() -> None:
    order = Order(np.array([1, 0]), np.array([0, 1]), np.array([NOT_OBSERVED_NS, 5]))
    assert stretch(order, 4, 9).requests.time_ns.tolist() == [NOT_OBSERVED_NS, 5] * 2


def test_times_of_a_broken_clock_are_taken_as_not_observed() -> None:
    order = Order(np.array([1, 0]), np.array([0, 1]), np.array([0, (1 << 63) - 1]))
    assert set(stretch(order, 200, 900).requests.time_ns.tolist()) == {NOT_OBSERVED_NS}


def test_a_memory_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        stretch(order_of([(Queue.INFLATE, [1])]), 5, 4)
