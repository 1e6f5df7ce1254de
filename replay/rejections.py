"""What the device model leaves out of a trace's requests, or finds too much in them, by reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from replay.hostpage import completed
from replay.native.selecting import outside_pages
from replay.plan import context_of
from replay.ranges import Bools, Int64s, rising
from replay.requests import memory_map, requests_by_batch
from replay.strategies.select import wire_pages
from replay.wire import MAX_ENTRIES, MAX_PFNS, Reject
from tracer.trace.errors import AerostatError
from tracer.trace.schema import Queue

if TYPE_CHECKING:
    from replay.plan import Context
    from replay.requests import Requests
    from tracer.trace.reader import Trace

BALLOON = (Queue.INFLATE, Queue.DEFLATE)


@dataclass(frozen=True)
class Rejection:
    """How often something was left out or counted; the reason names the unit."""

    reason: str
    count: int


def rejections(requests: Requests, context: Context) -> tuple[Rejection, ...]:
    """Count what `BalloonDevice` counts when it takes these requests, without one call for each.

    Args:
        requests: The trace's requests; inflates and deflates were sent as PFN arrays.
        context: The memory.

    Returns:
        Reasons in the order of `Reject`, those that never occurred left out.
    """
    found: Counter[Reject] = Counter()
    _count(requests, context, found)
    return _listed(found, requests.truncated_pages)


def rejections_of(trace: Trace) -> tuple[tuple[Rejection, ...] | None, str]:
    """Count the same for a trace of which nothing else is to be replayed, batch by batch.

    Returns:
        What was counted; or None, and why nothing could be.
    """
    found: Counter[Reject] = Counter()
    truncated_pages = 0
    try:
        context = context_of(memory_map(trace))  # first: without a map no request need be read
        for requests in requests_by_batch(trace):
            _count(requests, context, found)
            truncated_pages += requests.truncated_pages
    except AerostatError as error:
        return None, error.reason or error.what
    return _listed(found, truncated_pages), ""


def _listed(found: Counter[Reject], truncated_pages: int) -> tuple[Rejection, ...]:
    if truncated_pages:  # what looks empty may be a request that was not kept
        del found[Reject.EMPTY]
    return tuple(Rejection(reason.value, found[reason]) for reason in Reject if found[reason])


def _count(requests: Requests, context: Context, found: Counter[Reject]) -> None:
    """Each request counts by itself, so that parts of a trace add up to the whole."""
    _count_sizes(requests, found)
    found[Reject.OUTSIDE] += outside_pages(requests.columns, BALLOON, context.layout.columns)
    _count_parts(requests, context, found)


def _of(requests: Requests, *queues: Queue) -> Bools:
    chosen: Bools = np.isin(requests.queue, queues)
    return chosen


def _count_sizes(requests: Requests, found: Counter[Reject]) -> None:
    """Requests that hold nothing, and those that hold more than a driver sends."""
    balloon, report = _of(requests, *BALLOON), _of(requests, Queue.REPORTING)
    entries = np.diff(requests.run_offsets)
    found[Reject.EMPTY] += int((entries[balloon | report] == 0).sum())
    over_pfns = np.maximum(requests.pages[balloon] - MAX_PFNS, 0)
    over_entries = np.maximum(entries[report] - MAX_ENTRIES, 0)
    found[Reject.OVERSIZED] += int(over_pfns.sum() + over_entries.sum())


def _count_parts(requests: Requests, context: Context, found: Counter[Reject]) -> None:
    """Reported blocks beyond one region, and pages of host pages that were not given whole."""
    unit = context.host_page_pages
    pfn, pages, _ = requests.runs_of(Queue.REPORTING)
    start, length = rising(pfn, pages)
    whole = context.layout.whole(start, length)
    found[Reject.PARTIAL] += len(start) - len(whole.page)
    ragged = (whole.page | whole.pages) % unit != 0
    found[Reject.HOST_PAGE] += int(whole.pages[ragged].sum())
    if unit > 1:
        found[Reject.HOST_PAGE] += _left_in_balloon(requests, context)


def _left_in_balloon(requests: Requests, context: Context) -> int:
    """Inflated pages that stay, because their request did not fill their host page."""
    unit = context.host_page_pages
    page, request = wire_pages(requests, context, Queue.INFLATE)
    fills = completed(page, request, unit)
    span = 1 + int(page.max(initial=0))
    named = len(np.unique(request * span + page))
    given = len(_distinct(page[fills] // unit, request[fills], span)) * unit
    return named - given


def _distinct(unit: Int64s, request: Int64s, span: int) -> Int64s:
    found: Int64s = np.unique(request * span + unit)
    return found
