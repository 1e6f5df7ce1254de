"""Pages of requests as pieces of the replayed memory: what most strategies begin with.

What several strategies need of the same requests is worked out once and kept in `Requests.memo`;
such arrays are read-only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np

from replay.hostpage import wholly_given
from replay.native.ascending import merge_runs
from replay.native.selecting import merge_requests, select_pages, select_runs
from replay.plan import Context
from replay.ranges import Int64s, Runs, expand, rising
from replay.requests import Requests
from tracer.trace.schema import Queue


class Pieces(NamedTuple):
    """Runs of pages of the replayed memory, each inside one region, and who named them."""

    page: Int64s
    pages: Int64s
    request: Int64s


def single_pages(page: Int64s, request: Int64s, unit_pages: int = 1) -> Pieces:
    """Pieces of one unit each; their lengths are one number, which takes no memory."""
    return Pieces(page, np.broadcast_to(np.int64(unit_pages), len(page)), request)


P = ParamSpec("P")
Columns = TypeVar("Columns", bound=tuple[Int64s, ...])
Selection = Callable[Concatenate[Requests, Context, P], Columns]


def once(select: Selection[P, Columns]) -> Selection[P, Columns]:
    """Work a selection out once for the same requests, memory and arguments."""

    @wraps(select)
    def remembered(
        requests: Requests, context: Context, /, *args: P.args, **kwargs: P.kwargs
    ) -> Columns:
        key = (select.__name__, id(context), args, tuple(kwargs.items()))
        if key not in requests.memo:
            found = select(requests, context, *args, **kwargs)
            for column in found:
                column.flags.writeable = False
            # The context is kept as well, so that its id is nobody else's meanwhile.
            requests.memo[key] = (context, found)
        return requests.memo[key][1]  # type: ignore[no-any-return]  # as stored above

    return remembered


@once
def pieces(requests: Requests, context: Context, *queues: Queue) -> Pieces:
    """Pages of some queues as pieces in arrival order; what is no guest memory is left out."""
    return Pieces(*select_runs(requests.columns, queues, context.layout.columns))


@once
def wire_pages(requests: Requests, context: Context, queue: Queue) -> tuple[Int64s, Int64s]:
    """Every page of a queue in wire order: page of the replayed memory, request."""
    return select_pages(requests.columns, (queue,), context.layout.columns)


@once
def reported(requests: Requests, context: Context) -> Pieces:
    """Reported blocks that a device may discard, one piece an entry, in arrival order.

    An entry that is not wholly inside one region, or not whole host pages, is left alone, as in
    virtio_balloon_handle_report of QEMU 5.1 and later.
    """
    pfn, pages, request = requests.runs_of(Queue.REPORTING)
    start, length = rising(pfn, pages)
    whole = context.layout.whole(start, length)
    kept = (whole.page | whole.pages) % context.host_page_pages == 0
    return Pieces(whole.page[kept], whole.pages[kept], request[whole.source[kept]])


def merged_within(found: Pieces, group: Int64s, context: Context) -> Pieces:
    """Sort and merge the pieces of each group.

    Args:
        found: Any pieces.
        group: int64, one per piece; the result's `request` holds groups, ascending.
        context: The memory.
    """
    del context  # pieces lie within regions, so nothing joins across
    if (group[1:] < group[:-1]).any():
        order = np.argsort(group, kind="stable")
        found, group = Pieces(*(column[order] for column in found)), group[order]
    return Pieces(*merge_runs(found.page, found.pages, group))


def merged_by(requests: Requests, context: Context, queue: Queue, group: Int64s) -> Pieces:
    """Pages of a queue, sorted and merged within each group of requests.

    Args:
        requests: The requests.
        context: The memory.
        queue: The queue.
        group: int64, one per request; the result's `request` holds groups, ascending.
    """
    named = (requests.queue == queue) & (requests.run_offsets[1:] > requests.run_offsets[:-1])
    if (np.diff(group[named]) < 0).any():
        found = pieces(requests, context, queue)
        return merged_within(found, group[found.request], context)
    return Pieces(*merge_requests(requests.columns, (queue,), context.layout.columns, group))


@once
def merged_requests(requests: Requests, context: Context, queue: Queue) -> Pieces:
    """Pages of a queue, sorted and merged within each request; reports as `reported` has them."""
    if queue != Queue.REPORTING:
        return merged_by(requests, context, queue, np.arange(len(requests)))
    found = reported(requests, context)
    return merged_within(found, found.request, context)


def whole_host_pages(found: Pieces, requests: Requests, context: Context) -> Pieces:
    """Of inflated pages, what may be discarded: host pages that are wholly in the balloon.

    Where the host page is a balloon page that is all of them. Where it is larger, the device keeps
    one bit for each balloon page it was given, and a host page goes with the request that makes it
    whole. A deflated page clears its bit.

    Args:
        found: Inflated pages, with the requests with which the strategy wants to discard them.
        requests: The requests.
        context: The memory.

    Returns:
        Host pages, merged within each request.
    """
    unit = context.host_page_pages
    if unit == 1:
        return found
    given = (expand(Runs(found.page, found.pages)), np.repeat(found.request, found.pages))
    taken = wire_pages(requests, context, Queue.DEFLATE)
    page, request = wholly_given(given, taken, unit)
    whole = Pieces(page, np.full(len(page), unit), request)
    return merged_within(whole, request, context)


def touched_host_pages(found: Pieces, context: Context) -> Pieces:
    """Widen each piece to the host pages that it touches; those at a region's torn end are lost."""
    unit = context.host_page_pages
    if unit == 1:
        return found
    start = found.page // unit * unit
    end = -(-(found.page + found.pages) // unit) * unit
    layout = context.layout
    region = np.searchsorted(layout.base_page, found.page, side="right") - 1
    first = -(-layout.base_page[region] // unit) * unit
    last = (layout.base_page + layout.end_pfn - layout.start_pfn)[region] // unit * unit
    start, end = np.maximum(start, first), np.minimum(end, last)
    kept = end > start
    return Pieces(start[kept], (end - start)[kept], found.request[kept])
