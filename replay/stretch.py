"""Stretch a recorded inflate to another size: the order of a small guest, in a guest of the seed's.

The rule, a pure function of the trace:

1. The pages of the trace's inflate requests in wire order, each where it is named first.
2. So many copies of that order as are needed, one after the other; each on a stretch of memory of
   its own, downwards where the recorded order falls more often than it rises, so that the last page
   of a copy and the first of the next are no neighbours. The last copy ends where the size is
   reached.
3. Holes between pages are shortened alike until the memory holds everything, but a hole stays at
   least a page. Where there is no room for even that, holes are closed, evenly spread over all.

So pages that were neighbours are neighbours, what rose rises, what fell falls, and where all holes
fit no two pages become neighbours that were none: the runs on the wire and the ranges after a sort
are those that were recorded, as often as there are copies. Requests keep their sizes. Lengths of
jumps are not kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from replay.ranges import Int64s, pfns_from_runs
from replay.requests import NOT_OBSERVED_NS, Requests
from tracer.trace.errors import AerostatError
from tracer.trace.runs import encode_runs
from tracer.trace.schema import Queue

if TYPE_CHECKING:
    from replay.plan import Context

ALIGNED_PAGES = 512
"""Copies begin at multiples of 2 MiB, before holes are shortened."""
LATEST_NS = 1 << 61
"""73 years since boot: a trace with such a time is taken to have observed none, so no sum wraps."""


@dataclass(frozen=True, eq=False)
class Order:
    """An inflate as it was sent.

    Args:
        page: int64, pages in wire order, each once.
        request: int64, ascending: the request of each page, counted from 0 without gaps.
        time_ns: int64, one a request, or `NOT_OBSERVED_NS`.
    """

    page: Int64s
    request: Int64s
    time_ns: Int64s


@dataclass(frozen=True, eq=False)
class Stretched:
    """An order that was stretched.

    Args:
        requests: Inflate requests of `pages` pages in all, each named once, PFNs below
            `memory_pages`.
        recorded_pages: Pages of the recorded order.
        holes: Holes between the pages after step 2; `holes_kept` of them are still there.
    """

    requests: Requests
    pages: int
    memory_pages: int
    recorded_pages: int
    holes: int
    holes_kept: int

    @property
    def copies(self) -> float:
        """How often the recorded order is in it."""
        return self.pages / self.recorded_pages


def recorded_order(requests: Requests, context: Context) -> Order:
    """Take what a trace's guest inflated, in its order.

    Raises:
        AerostatError: It inflated nothing.
    """
    pfn, pages, request = requests.runs_of(Queue.INFLATE)
    page, request = _pages(pfn, pages, request, context)
    first = np.sort(np.unique(page, return_index=True)[1])
    if len(first) == 0:
        raise AerostatError(
            "the trace has no inflate that could be stretched",
            reason="no inflate request names a page of guest memory",
            remedy="take the trace of a guest that was inflated, such as traces/plain.balloon",
        )
    page, request = page[first], request[first]
    kept, number = np.unique(request, return_inverse=True)
    return Order(page, number.astype(np.int64), requests.time_ns[kept])


def _pages(pfn: Int64s, pages: Int64s, request: Int64s, context: Context) -> tuple[Int64s, Int64s]:
    page = context.layout.pages_of(pfns_from_runs(pfn, pages))
    request = np.repeat(request, np.abs(pages))
    inside = page >= 0
    return page[inside], request[inside]


def stretch(order: Order, pages: int, memory_pages: int) -> Stretched:
    """Stretch an order by the rule above.

    Args:
        order: What was recorded; at least one page.
        pages: So many pages come out, at least 1.
        memory_pages: Of the memory that they lie in, at least `pages`.

    Raises:
        ValueError: The pages do not fit the memory.
    """
    if not 1 <= pages <= memory_pages:
        raise ValueError(f"{pages} pages do not fit a memory of {memory_pages}")
    place = _tiled(order.page, pages)
    ascending = np.argsort(place, kind="stable")
    hole = np.diff(place[ascending]) - 1
    shortened = _shortened(hole, memory_pages - pages)
    pfn = np.empty(pages, np.int64)
    pfn[ascending] = np.arange(pages) + np.concatenate(([0], np.cumsum(shortened)))
    holes, kept = int((hole > 0).sum()), int((shortened > 0).sum())
    requests = _requests(order, pfn)
    return Stretched(requests, pages, memory_pages, len(order.page), holes, kept)


def _tiled(page: Int64s, pages: int) -> Int64s:
    """Copies of an order, one after the other, on a line that is as long as it must be."""
    low, extent = int(page.min()), int(np.ptp(page)) + 1
    # One page more than the extent at least: copies never touch.
    apart = -(-(extent + 1) // ALIGNED_PAGES) * ALIGNED_PAGES
    copies = -(-pages // len(page))
    step = np.diff(page)
    falls = (step == -1).sum() > (step == 1).sum()
    at = np.arange(copies)[::-1] if falls else np.arange(copies)
    line: Int64s = (at[:, np.newaxis] * apart + (page - low)).reshape(-1)[:pages]
    return line


def _shortened(hole: Int64s, room: int) -> Int64s:
    """Shorten holes so that together they take at most `room` pages."""
    holes, total = int((hole > 0).sum()), int(hole.sum())
    if total <= room:
        return hole
    if holes <= room:
        # Each keeps a page, and its share of what room is left beyond those. No hole and no room
        # is more than 2**28 pages (1 TiB), so the product is far below 2**63.
        share = (np.maximum(hole, 1) - 1) * (room - holes) // max(total - holes, 1)
        return np.where(hole > 0, 1 + share, 0)
    number = np.cumsum(hole > 0)
    kept = (number * room) // holes > ((number - 1) * room) // holes
    return np.where(kept & (hole > 0), 1, 0)


def _requests(order: Order, pfn: Int64s) -> Requests:
    """Requests of the recorded sizes, over and over, that name these PFNs."""
    size = np.bincount(order.request)
    copies = -(-len(pfn) // len(order.page))
    reach = np.minimum(np.concatenate(([0], np.cumsum(np.tile(size, copies)))), len(pfn))
    count = int(np.searchsorted(reach, len(pfn)))
    run_offsets, run_pfn, run_pages = encode_runs(pfn, reach[: count + 1])
    return Requests(
        np.full(count, Queue.INFLATE, np.uint8),
        _times(order.time_ns, copies)[:count],
        run_offsets,
        run_pfn.astype(np.uint64),
        run_pages.astype(np.int32),
    )


def _times(time_ns: Int64s, copies: int) -> Int64s:
    """The recorded times over and over; a copy begins one usual gap after the one before."""
    seen = time_ns != NOT_OBSERVED_NS
    observed = time_ns[seen]
    if len(observed) == 0 or observed.max() >= LATEST_NS:
        return np.full(len(time_ns) * copies, NOT_OBSERVED_NS, np.int64)
    usual = max(int(np.median(np.diff(observed))), 0) if len(observed) > 1 else 0
    lasts = min(int(np.ptp(observed)) + usual, LATEST_NS // copies)
    later = np.arange(copies)[:, np.newaxis] * lasts
    return np.where(seen, time_ns + later, NOT_OBSERVED_NS).reshape(-1)
