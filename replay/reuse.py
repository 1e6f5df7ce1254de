"""Pages that the guest uses again: what it pays for a discard once it got the memory back."""

from __future__ import annotations

import numpy as np

from replay.budget import named_pages
from replay.layout import Layout
from replay.ranges import (
    Runs,
    compact,
    intersect,
    merge_sorted,
    pfns_from_runs,
    subtract,
)
from replay.requests import Requests
from replay.residency import Residency
from tracer.trace.schema import Queue


def handed_back(requests: Requests, layout: Layout, residency: Residency) -> Runs:
    """Pages that were given to the device and are the guest's again when the trace ends.

    Deflated pages, and reported ones, which the guest may use at any time. Pages without memory at
    the start are left out: to touch them is no touching again.

    Args:
        requests: What is replayed.
        layout: The memory.
        residency: Which pages had memory behind them at first.
    """
    given = named_pages(requests, layout, Queue.DEFLATE, Queue.REPORTING)
    back = subtract(given, in_balloon(requests, layout))
    return intersect(back, merge_sorted(residency.small, residency.huge))


def in_balloon(requests: Requests, layout: Layout) -> Runs:
    """Pages that the balloon holds when the trace ends: those last inflated, not deflated."""
    pfn, pages, request = requests.runs_of(Queue.INFLATE, Queue.DEFLATE)
    page = layout.pages_of(pfns_from_runs(pfn, pages))
    to_host = requests.queue[np.repeat(request, np.abs(pages))] == Queue.INFLATE
    inside = page >= 0
    held = np.zeros(layout.memory_pages, np.bool_)
    # Where a page comes more than once, numpy keeps the last value.
    held[page[inside]] = to_host[inside]
    return compact(np.flatnonzero(held))
