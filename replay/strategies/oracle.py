"""oracle: look at the whole trace, discard only what stays with the host."""

from __future__ import annotations

import numpy as np

from replay.plan import Context
from replay.ranges import Int64s, align_in, compact
from replay.requests import Requests
from replay.strategies.base import (
    Operations,
    Pieces,
    Strategy,
    merged_within,
    reported,
    wire_pages,
)
from tracer.trace.schema import Queue


class Oracle(Strategy):
    """One discard per unbroken run of pages that the host keeps; a bound, not deployable.

    No plan that discards only pages the host keeps needs fewer operations: each operation lies
    inside one such run, and every run needs one. Each runs as soon as the last of its pages has
    come for good. Reported blocks must go within their request, so there the bound is the merged
    request. Pages that the guest takes back are never discarded; a plan that discards them too
    may bridge two runs and need fewer operations, at the price of that wasted work.
    """

    name = "oracle"
    source = "aerostat: lower bound for plans without wasted discards"
    causal = False

    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        """One discard per run that stays, and per merged run of a report."""
        found = reported(requests, context)
        discard = (context.discard,)
        return [
            Operations(discard, kept_runs(requests, context)),
            Operations(discard, merged_within(found, found.request, context)),
        ]

    def settled(self, requests: Requests) -> int:
        """Nothing is settled before the end."""
        del requests
        return 0


def kept_runs(requests: Requests, context: Context) -> Pieces:
    """Runs of whole host pages that the host owns at the end, ordered by their last request."""
    given = wire_pages(requests, context, Queue.INFLATE)
    taken = wire_pages(requests, context, Queue.DEFLATE)
    owned_by = last_request(given, context)
    returned_by = last_request(taken, context)
    runs = align_in(compact(np.flatnonzero(owned_by > returned_by)), context.host_page_pages)
    if len(runs.start) == 0:
        return Pieces(runs.start, runs.pages, runs.start)
    # Even items of the reduction are the runs, odd items the stretches between them.
    bounds = np.column_stack((runs.start, runs.end)).ravel()
    ready = np.maximum.reduceat(np.append(owned_by, 0), bounds)[0::2].astype(np.int64) - 1
    order = np.argsort(ready, kind="stable")
    return Pieces(runs.start[order], runs.pages[order], ready[order])


def last_request(named: tuple[Int64s, Int64s], context: Context) -> Int64s:
    """For every page of memory, one more than the last request that named it; 0 for none."""
    page, request = named
    latest = np.zeros(context.layout.memory_pages, np.int64)
    latest[page] = request + 1  # requests ascend, and of repeated indices the last one counts
    return latest
