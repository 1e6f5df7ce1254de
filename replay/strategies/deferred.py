"""deferred: hold inflated pages back for a while, and discard then what is still there, merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from replay.hostpage import changes
from replay.plan import Context
from replay.ranges import (
    Int64s,
    Runs,
    compact,
    expand,
    intersect,
    merge,
    merge_sorted,
    places_in,
    subtract,
)
from replay.requests import Requests
from replay.strategies.base import Deflated, Operations, Strategy
from replay.strategies.select import (
    Pieces,
    merged_by,
    merged_requests,
    once,
    pieces,
    whole_host_pages,
)
from replay.strategies.windows import BALLOON, held_until
from tracer.trace.schema import Queue


@dataclass(frozen=True)
class Holding(Strategy):
    """A strategy that answers inflate requests at once and may discard later.

    A page in the balloon is the host's until it is deflated, so nothing forbids to wait. Reported
    blocks cannot wait: the guest may use them again as soon as they are acknowledged.

    Args:
        hold_bytes: So much inflated memory ends a hold (`windows.held_until`); None: no limit.
        hold_ns: So much time after its first page ends one; None: no limit.
    """

    hold_bytes: int | None = 64 << 20
    hold_ns: int | None = 100_000_000

    deflated: ClassVar[Deflated] = "taken out"

    def __post_init__(self) -> None:
        """Refuse budgets that would end a hold before it began."""
        for name in ("hold_bytes", "hold_ns"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more, or none")

    def held_until(self, requests: Requests) -> Int64s:
        """For each request, the one that ends the hold it lies in; -1 outside of any."""
        return held_until(requests, self.hold_bytes, self.hold_ns)

    def merged_with(self, requests: Requests) -> Int64s:
        """The end of each hold."""
        return self.held_until(requests)

    def settled(self, requests: Requests) -> int:
        """The last request: a hold that is open then ends with it, for want of more requests."""
        return max(len(requests) - 1, 0)


@dataclass(frozen=True)
class Deferred(Holding):
    """Merge across requests; what is deflated meanwhile is never discarded.

    Reported blocks are merged within their request. Deflate only acknowledges.
    """

    name = "deferred"
    source = (
        "aerostat; no VMM is known to wait, but the driver of the later range series collected"
        " a whole inflate (VIRTIO_BALLOON_F_SG, v15, 2017)"
    )

    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        """One discard per merged range of a hold."""
        discard = (self.advice(context),)
        reports = merged_requests(requests, context, Queue.REPORTING)
        return [
            Operations(discard, self.ranges(requests, context)),
            Operations(discard, reports),
        ]

    def ranges(self, requests: Requests, context: Context) -> Pieces:
        """What each hold still has when it ends, merged."""
        held = still_held(requests, context, self.hold_bytes, self.hold_ns)
        return whole_host_pages(held, requests, context)


@once
def ever_held(
    requests: Requests, context: Context, hold_bytes: int | None, hold_ns: int | None
) -> Pieces:
    """All that each hold is given, merged, whatever is deflated meanwhile."""
    until = held_until(requests, hold_bytes, hold_ns)
    return merged_by(requests, context, Queue.INFLATE, until)


@once
def still_held(
    requests: Requests, context: Context, hold_bytes: int | None, hold_ns: int | None
) -> Pieces:
    """What each hold has left when it ends, merged: without what is deflated before that."""
    until = held_until(requests, hold_bytes, hold_ns)
    first = ever_held(requests, context, hold_bytes, hold_ns)
    taken = meanwhile_deflated(requests, context, until)
    if len(taken.start) == 0:
        return first
    ever = by_hold(first, context)
    doubtful = intersect(ever, taken)
    given, back = (moves_within(doubtful, requests, context, until, q) for q in BALLOON)
    changed = changes(flat(given), flat(back))
    stays = expand(doubtful)[changed.page[changed.given & changed.last]]
    return from_holds(merge_sorted(subtract(ever, doubtful), compact(stays)), context)


def _bits(context: Context) -> int:
    # Room for a page more than there are, so that holds never touch.
    return context.layout.memory_pages.bit_length()


def from_holds(found: Runs, context: Context) -> Pieces:
    """Take pieces back from their stretches: the inverse of `by_hold`."""
    bits = _bits(context)
    return Pieces(found.start & ((1 << bits) - 1), found.pages, found.start >> bits)


def by_hold(found: Pieces, context: Context) -> Runs:
    """Lay the pieces of each hold on a stretch of memory of their own."""
    return Runs(found.page + (found.request << _bits(context)), found.pages)


def meanwhile_deflated(requests: Requests, context: Context, until: Int64s) -> Runs:
    """Pages that are deflated during a hold, laid out as `by_hold` does."""
    found = pieces(requests, context, Queue.DEFLATE)
    hold = until[found.request]
    kept = hold >= 0
    runs = by_hold(Pieces(found.page[kept], found.pages[kept], hold[kept]), context)
    return merge(runs.start, runs.pages)


def moves_within(
    chosen: Runs, requests: Requests, context: Context, until: Int64s, queue: Queue
) -> Pieces:
    """What one queue moves during holds, of some pages alone.

    Args:
        chosen: Canonical runs, laid out as `by_hold` does.
        requests: The requests.
        context: The memory.
        until: As `held_until` gives it.
        queue: Inflate or deflate.

    Returns:
        Pieces in arrival order; `page` is the place among the chosen pages.
    """
    found = pieces(requests, context, queue)
    # Outside of any hold, -1: on a stretch of its own, where nothing is chosen.
    start = found.page + (until[found.request] << _bits(context))
    place, pages, source = places_in(start, found.pages, chosen)
    return Pieces(place, pages, found.request[source])


def flat(moved: Pieces) -> tuple[Int64s, Int64s]:
    """Each page of the pieces, and its request."""
    return expand(Runs(moved.page, moved.pages)), np.repeat(moved.request, moved.pages)
