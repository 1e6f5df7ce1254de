"""Requests laid on guest memory in C, against the layout's own translation of each PFN."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.layout import Layout
from replay.native.selecting import check_runs, request_pages, select_pages, select_runs
from replay.ranges import pfns_from_runs, rising
from replay.requests import Requests
from tracer.trace.manifest import Region
from tracer.trace.schema import Queue

unhurried = settings(deadline=None)
PAGE = 4096
LAYOUT = Layout(
    [
        Region("low", 10 * PAGE, None, 30 * PAGE, "anon", PAGE),
        Region("next", 40 * PAGE, None, 8 * PAGE, "anon", PAGE),
        Region("high", 100 * PAGE, None, 500 * PAGE, "anon", PAGE),
    ]
)
runs = st.tuples(st.integers(0, 700), st.integers(1, 90), st.booleans())
contents = st.lists(st.tuples(st.sampled_from(Queue), st.lists(runs, max_size=8)), max_size=8)


def requests_of(found) -> Requests:
    """Runs that fall begin high enough not to pass below PFN 0."""
    signed = [
        (low + pages - 1, -pages) if falls and pages > 1 else (low, pages)
        for _, content in found
        for low, pages, falls in content
    ]
    return Requests(
        np.array([queue for queue, _ in found], np.uint8),
        np.zeros(len(found), np.int64),
        np.cumsum([0, *(len(content) for _, content in found)]),
        np.array([first for first, _ in signed], np.uint64),
        np.array([pages for _, pages in signed], np.int32),
    )


@unhurried
@given(contents, st.sets(st.sampled_from(Queue)))
def test_pieces_are_those_of_the_layout(found, queues):
    requests = requests_of(found)
    pfn, pages, request = requests.runs_of(*queues)
    clipped = LAYOUT.clip(*rising(pfn, pages))
    page, length, by = select_runs(requests.columns, queues, LAYOUT.columns)
    assert page.tolist() == clipped.page.tolist()
    assert length.tolist() == clipped.pages.tolist()
    assert by.tolist() == request[clipped.source].tolist()


@unhurried
@given(contents, st.sampled_from(Queue))
def test_pages_are_those_of_the_layout_in_wire_order(found, queue):
    requests = requests_of(found)
    pfn, pages, request = requests.runs_of(queue)
    expected = LAYOUT.pages_of(pfns_from_runs(pfn, pages))
    page, by = select_pages(requests.columns, (queue,), LAYOUT.columns)
    assert page.tolist() == expected[expected >= 0].tolist()
    assert by.tolist() == np.repeat(request, np.abs(pages))[expected >= 0].tolist()


@unhurried
@given(contents)
def test_requests_name_the_pages_of_their_runs(found):
    requests = requests_of(found)
    expected = [sum(pages for _, pages, _ in content) for _, content in found]
    assert request_pages(requests.columns).tolist() == expected


def test_each_impossible_run_is_counted_as_what_it_is():
    pfn = np.array([5, 1 << 52, (1 << 52) - 1, 3, 2, (1 << 64) - 1, 0], np.uint64)
    pages = np.array([0, 1, 1, -4, -4, -(1 << 31), -1], np.int32)
    assert check_runs(pfn, pages) == (1, 2, 1)
