"""Requests laid on guest memory in C, against the layout's own translation of each PFN."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from replay.layout import Layout
from replay.native.ascending import merge_runs
from replay.native.selecting import (
    check_runs,
    merge_requests,
    outside_pages,
    request_pages,
    select_pages,
    select_runs,
    wire_pfns,
)
from replay.native.tallying import count_steps
from replay.ranges import pfns_from_runs, rising
from replay.requests import Requests, from_pfns
from tracer.trace.manifest import Region
from tracer.trace.schema import Queue

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


@given(contents, st.sets(st.sampled_from(Queue)))
def test_pieces_are_those_of_the_layout(found, queues):
    requests = requests_of(found)
    pfn, pages, request = requests.runs_of(*queues)
    clipped = LAYOUT.clip(*rising(pfn, pages))
    page, length, by = select_runs(requests.columns, queues, LAYOUT.columns)
    assert page.tolist() == clipped.page.tolist()
    assert length.tolist() == clipped.pages.tolist()
    assert by.tolist() == request[clipped.source].tolist()


@given(contents, st.sampled_from(Queue))
def test_pages_are_those_of_the_layout_in_wire_order(found, queue):
    requests = requests_of(found)
    pfn, pages, request = requests.runs_of(queue)
    expected = LAYOUT.pages_of(pfns_from_runs(pfn, pages))
    page, by = select_pages(requests.columns, (queue,), LAYOUT.columns)
    assert page.tolist() == expected[expected >= 0].tolist()
    assert by.tolist() == np.repeat(request, np.abs(pages))[expected >= 0].tolist()


@given(contents)
def test_requests_name_the_pages_of_their_runs(found):
    requests = requests_of(found)
    expected = [sum(pages for _, pages, _ in content) for _, content in found]
    assert request_pages(requests.columns).tolist() == expected


@given(contents, st.sampled_from(Queue), st.integers(1, 4))
def test_merging_requests_is_merging_their_pieces(found, queue, together):
    requests = requests_of(found)
    group = np.arange(len(requests)) // together
    page, pages, request = select_runs(requests.columns, (queue,), LAYOUT.columns)
    expected = merge_runs(page, pages, group[request])
    merged = merge_requests(requests.columns, (queue,), LAYOUT.columns, group)
    assert np.transpose(merged).tolist() == np.transpose(expected).tolist()


def test_a_group_of_many_runs_is_merged_part_by_part():
    pages = np.random.default_rng(5).permutation(30_000)
    layout = Layout([Region("ram", 0, None, 30_000 * PAGE, "anon", PAGE)])
    requests = from_pfns((Queue.INFLATE, part.tolist()) for part in pages[:20_000].reshape(-1, 100))
    for together in (1, 70, 200):
        group = np.arange(200) // together
        found = select_runs(requests.columns, (Queue.INFLATE,), layout.columns)
        expected = merge_runs(found[0], found[1], group[found[2]])
        merged = merge_requests(requests.columns, (Queue.INFLATE,), layout.columns, group)
        assert np.transpose(merged).tolist() == np.transpose(expected).tolist()


@given(contents, st.sets(st.sampled_from(Queue)))
def test_pages_outside_and_steps_are_those_of_the_pfns(found, queues):
    requests = requests_of(found)
    named = [requests.pfns(i) for i in range(len(requests)) if requests.queue[i] in queues]
    outside = sum(int((LAYOUT.pages_of(pfns) < 0).sum()) for pfns in named)
    assert outside_pages(requests.columns, queues, LAYOUT.columns) == outside
    steps = np.concatenate([np.zeros(0, np.int64), *(np.diff(pfns) for pfns in named)])
    counted = (len(steps), int((steps == 1).sum()), int((steps == -1).sum()))
    assert count_steps(requests.columns, queues) == counted


def test_a_pfn_that_32_bits_cannot_hold_is_sent_as_the_highest():
    requests = from_pfns([(Queue.INFLATE, [7, (1 << 32) - 2, 1 << 32, (1 << 32) + 7])])
    highest = (1 << 32) - 1
    assert wire_pfns(requests.columns, (Queue.INFLATE,)).tolist() == [
        7,
        highest - 1,
        highest,
        highest,
    ]


def test_each_impossible_run_is_counted_as_what_it_is():
    pfn = np.array([5, 1 << 52, (1 << 52) - 1, 3, 2, (1 << 64) - 1, 0], np.uint64)
    pages = np.array([0, 1, 1, -4, -4, -(1 << 31), -1], np.int32)
    assert check_runs(pfn, pages) == (1, 2, 1)
