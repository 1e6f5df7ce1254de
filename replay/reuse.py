"""Pages that the guest uses again: what it pays for a discard once it got the memory back."""

from __future__ import annotations

import numpy as np

from replay.budget import named_pages
from replay.layout import Layout
from replay.native.ownership import Known, PlanColumns, follow
from replay.ranges import Runs, intersect, merge_sorted, subtract
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
    nothing = np.zeros(0, np.int64)
    no_plan = PlanColumns(
        nothing.astype(np.uint8), nothing.astype(np.uint64), nothing.astype(np.uint64), nothing
    )
    memory = (layout.columns, layout.memory_pages)
    owned = follow(requests.columns, no_plan, {}, (nothing, nothing, nothing), memory).state
    none = np.zeros(1, np.uint8)  # of this type, or a page would take eight bytes
    edges = np.flatnonzero(np.diff(owned & np.uint8(Known.OWNED), prepend=none, append=none))
    return Runs(edges[::2], edges[1::2] - edges[::2])
