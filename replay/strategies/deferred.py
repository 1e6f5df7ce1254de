"""deferred: hold inflated pages back for a while, and discard then what is still there, merged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replay.hostpage import changes
from replay.plan import Context
from replay.ranges import Bools, Int64s, Runs, expand
from replay.requests import Requests
from replay.strategies.base import Operations, Strategy
from replay.strategies.select import (
    Pieces,
    merged_requests,
    merged_within,
    once,
    pieces,
    whole_host_pages,
    wire_pages,
)
from replay.strategies.windows import held_until
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

    def __post_init__(self) -> None:
        """Refuse budgets that would end a hold before it began."""
        for name in ("hold_bytes", "hold_ns"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more, or none")

    def held_until(self, requests: Requests) -> Int64s:
        """For each request, the one that ends the hold it lies in; -1 outside of any."""
        return held_until(requests, self.hold_bytes, self.hold_ns)

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
        until = self.held_until(requests)
        if broken_holds(requests, context, until).any():
            held = still_held(requests, context, until)
            merged = merged_within(held, held.request, context)
        else:
            merged = hold_ranges(requests, context, self.hold_bytes, self.hold_ns)
        return whole_host_pages(merged, requests, context)


@once
def hold_ranges(
    requests: Requests, context: Context, hold_bytes: int | None, hold_ns: int | None
) -> Pieces:
    """All that each hold is given, merged, whatever is deflated meanwhile."""
    found = pieces(requests, context, Queue.INFLATE)
    until = held_until(requests, hold_bytes, hold_ns)
    return merged_within(found, until[found.request], context)


def still_held(requests: Requests, context: Context, until: Int64s) -> Pieces:
    """Inflated pages that are not deflated before their hold ends.

    Args:
        requests: The requests.
        context: The memory.
        until: As `held_until` gives it.

    Returns:
        Pieces in no order, with the requests that end their holds.
    """
    found = pieces(requests, context, Queue.INFLATE)
    group = until[found.request]
    mixed = broken_holds(requests, context, until)[group]
    out_page, out_request = wire_pages(requests, context, Queue.DEFLATE)
    within = until[out_request] >= 0
    page = expand(Runs(found.page[mixed], found.pages[mixed]))
    request = np.repeat(found.request[mixed], found.pages[mixed])
    changed = changes((page, request), (out_page[within], out_request[within]), until)
    stays = changed.given & changed.last
    return Pieces(
        np.concatenate((found.page[~mixed], changed.page[stays])),
        np.concatenate((found.pages[~mixed], np.ones(int(stays.sum()), np.int64))),
        np.concatenate((group[~mixed], until[changed.request[stays]])),
    )


def broken_holds(requests: Requests, context: Context, until: Int64s) -> Bools:
    """Mark the holds, by the request that ends them, during which pages are deflated."""
    by = until[pieces(requests, context, Queue.DEFLATE).request]
    broken = np.zeros(len(until) + 1, np.bool_)
    broken[by[by >= 0]] = True
    return broken
