"""adjacent: merge a page with the one before it while they touch, within a request."""

from __future__ import annotations

import numpy as np

from replay.plan import Context
from replay.ranges import Bools, Int64s, rising
from replay.requests import Requests
from replay.strategies.base import Operations, Strategy
from replay.strategies.select import Pieces, reported, whole_host_pages
from tracer.trace.schema import Queue

TOGETHER = 1024
"""Requests that are looked at together: columns of all of them would take more than a plan."""


class Adjacent(Strategy):
    """Grow one range at either end in arrival order; let it go at the first page that is apart.

    crosvm tells its main process about deflated ranges and gives no advice, so deflate only
    acknowledges. Reported blocks are discarded one by one.
    """

    name = "adjacent"
    source = "crosvm, devices/src/virtio/balloon.rs (handle_address_chain)"

    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        """One discard per grown range and per reported block."""
        parts = [
            _grown(requests.between(first, first + TOGETHER), first, context)
            for first in range(0, max(len(requests), 1), TOGETHER)
        ]
        columns = [list(column) for column in zip(*parts, strict=True)]
        del parts  # so that each column goes when it has been put together
        found = Pieces(*(np.concatenate(columns.pop(0)) for _ in Pieces._fields))
        discard = (context.discard,)
        return [
            Operations(discard, whole_host_pages(found, requests, context)),
            Operations(discard, reported(requests, context)),
        ]


def _grown(requests: Requests, before: int, context: Context) -> Pieces:
    """What some requests give, in numbers of all; `before` them are others."""
    pfn, pages, request = requests.runs_of(Queue.INFLATE)
    start, length, request = grow(pfn, pages, request)
    clipped = context.layout.clip(start, length)
    return Pieces(clipped.page, clipped.pages, request[clipped.source] + before)


def grow(pfn: Int64s, pages: Int64s, request: Int64s) -> tuple[Int64s, Int64s, Int64s]:
    """Merge runs that continue the range before them at either end.

    Args:
        pfn: First PFN of each run in wire order.
        pages: Signed pages of each run.
        request: Request of each run; ranges of two requests never merge.

    Returns:
        Lowest PFN, pages and request of each range, in the order in which they begin.
    """
    low, length = rising(pfn, pages)
    high = low + length - 1
    touches = (pfn[1:] == high[:-1] + 1) | (pfn[1:] == low[:-1] - 1)
    touches &= request[1:] == request[:-1]
    kept = np.ones(len(pfn), bool)
    done = 0
    for index in np.flatnonzero(touches).tolist():
        if index >= done:
            done = _grow_from(index, (pfn, pages, request), (low, high), kept)
    return low[kept], (high - low + 1)[kept], request[kept]


def _grow_from(
    index: int,
    runs: tuple[Int64s, Int64s, Int64s],
    ends: tuple[Int64s, Int64s],
    kept: Bools,
) -> int:
    """Grow the range that begins with run `index`; return the first run that stands apart."""
    pfn, pages, request = runs
    slot, low, high = index, int(ends[0][index]), int(ends[1][index])
    following = index + 1
    while following < len(pfn) and request[following] == request[index]:
        first, count = int(pfn[following]), int(pages[following])
        if first not in (high + 1, low - 1):
            break
        upward = first == high + 1
        taken = abs(count) if abs(count) == 1 or upward == (count > 0) else 1
        low, high = (low, high + taken) if upward else (low - taken, high)
        if taken == abs(count):
            kept[following] = False
        else:
            # The run turns back into the range: its first page joins, the others begin anew.
            ends[0][slot], ends[1][slot] = low, high
            slot = following
            low, high = sorted(
                (first + (1 if count > 0 else -1), first + count - (count > 0) + (count < 0))
            )
        following += 1
    ends[0][slot], ends[1][slot] = low, high
    return following
