"""request: sort and merge the pages of each request."""

from __future__ import annotations

from replay.plan import Context
from replay.requests import Requests
from replay.strategies.base import Operations, Strategy
from replay.strategies.select import merged_requests, whole_host_pages
from tracer.trace.schema import Queue


class Request(Strategy):
    """Sort a request's pages, drop repeats, merge neighbours, discard each range.

    Firecracker's rule, with one request (256 PFNs from Linux) as the batch. Deflate only
    acknowledges, as Firecracker does. Reported blocks are merged within their request.
    """

    name = "request"
    source = "Firecracker, balloon/util.rs (compact_page_frame_numbers), one request at a time"

    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        """One discard per merged range."""
        discard = (self.advice(context),)
        inflated = merged_requests(requests, context, Queue.INFLATE)
        return [
            Operations(discard, whole_host_pages(inflated, requests, context)),
            Operations(discard, merged_requests(requests, context, Queue.REPORTING)),
        ]
