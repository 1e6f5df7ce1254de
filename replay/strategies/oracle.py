"""oracle: know where every inflate phase ends, and discard there all that it gave."""

from __future__ import annotations

from replay.plan import Context
from replay.ranges import Int64s
from replay.requests import Requests
from replay.strategies.base import Operations, Strategy
from replay.strategies.select import (
    Pieces,
    merged_by,
    merged_requests,
    once,
    whole_host_pages,
)
from replay.strategies.windows import phase_last
from tracer.trace.schema import Queue


class Oracle(Strategy):
    """One discard per merged range of each inflate phase; a bound, not deployable.

    A phase is all inflate requests between one deflate request and the next; other queues neither
    begin nor end one, and pauses do not either. Every page inflated in a phase is discarded with
    the phase's last inflate request, so the memory is given back before anything is taken back.

    On 4 KiB host pages this is the fewest discards of all plans that discard every page by the
    end of the phase it was inflated in, and whose discards in a phase touch only pages inflated in
    that phase: each lies inside one merged range, and each range needs one. Reported blocks must
    go within their request; there the bound is one discard per merged range of blocks, of plans
    that join no block with balloon pages.

    Two kinds of plan lie outside the bound. One that discards pages again which the host already
    has may bridge two ranges. One that defers beyond a phase may skip pages which soon come back:
    it does less work because it gives less memory back.
    """

    name = "oracle"
    source = "aerostat: lower bound for plans that give all memory back phase by phase"
    causal = False

    def merged_with(self, requests: Requests) -> Int64s:
        """The last inflate request of each phase."""
        return phase_last(requests)

    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        """One discard per merged range of a phase, and per merged range of a report."""
        ranges = phase_ranges(requests, context)
        discard = (context.discard,)
        return [
            Operations(discard, whole_host_pages(ranges, requests, context)),
            Operations(discard, merged_requests(requests, context, Queue.REPORTING)),
        ]

    def settled(self, requests: Requests) -> int:
        """Nothing is settled before the end: no device can tell that a phase is over."""
        del requests
        return 0


@once
def phase_ranges(requests: Requests, context: Context) -> Pieces:
    """Merged ranges of each inflate phase, with the phase's last inflate request."""
    return merged_by(requests, context, Queue.INFLATE, phase_last(requests))
