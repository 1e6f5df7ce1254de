"""populate: make memory ready when it is deflated, so that the guest's touch does not fault."""

from __future__ import annotations

from typing import ClassVar

from replay.backings import Advice
from replay.plan import Context
from replay.requests import Requests
from replay.strategies.base import Deflated, Operations
from replay.strategies.request import Request
from replay.strategies.select import merged_requests, merged_within, touched_host_pages
from tracer.trace.schema import Queue


class Populate(Request):
    """`request`, and MADV_POPULATE_WRITE on the merged ranges of each deflate request.

    The price of the first touch moves from the guest's time into the device's. A page that is never
    touched is paid for as well, and takes memory.
    """

    name = "populate"
    deflated: ClassVar[Deflated] = "merged"
    source = "QEMU 7.0 and later, virtio-mem with prealloc=on (hw/virtio/virtio-mem.c)"

    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        """What `request` does, and one call per merged range of a deflate request."""
        back = merged_requests(requests, context, Queue.DEFLATE)
        ready = touched_host_pages(back, context)
        ready = merged_within(ready, ready.request, context)
        return [
            *super().operations(requests, context),
            Operations((Advice.POPULATE_WRITE,), ready),
        ]
