"""qemu: one call per page, in wire order."""

from __future__ import annotations

from replay.backings import Advice
from replay.hostpage import completed
from replay.plan import Context
from replay.requests import Requests
from replay.strategies.base import Operations, Strategy
from replay.strategies.select import reported, single_pages, touched_host_pages, wire_pages
from tracer.trace.schema import Queue

DISCARD_CALLS: dict[str, tuple[Advice, ...]] = {
    "anon": (Advice.DONTNEED,),
    "memfd": (Advice.PUNCH_HOLE, Advice.DONTNEED),
    "shmem": (Advice.REMOVE,),
    "hugetlb": (Advice.PUNCH_HOLE,),
    "file-private": (Advice.PUNCH_HOLE, Advice.DONTNEED),
}
"""Calls of ram_block_discard_range: a hole where the block has a file, then advice unless the
block's pages are larger than the host's (QEMU 7.2 softmmu/physmem.c; 10.0 does the same)."""


class Qemu(Strategy):
    """What QEMU does since 4.1, for every PFN and every reported block by itself.

    Inflate discards each 4 KiB page. Where the host page is larger, only a host page that one
    request fills without naming another in between is discarded (`replay.hostpage`). Deflate asks
    for the host page of each PFN with WILLNEED.
    """

    name = "qemu"
    source = "QEMU 4.1 to 10.0, hw/virtio/virtio-balloon.c"

    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        """One discard per page or reported block, one WILLNEED per deflated page."""
        unit = context.host_page_pages
        calls = DISCARD_CALLS[context.backing]
        page, request = wire_pages(requests, context, Queue.INFLATE)
        if unit > 1:
            full = completed(page, request, unit)
            page, request = page[full] // unit * unit, request[full]
        wanted, by = wire_pages(requests, context, Queue.DEFLATE)
        back = single_pages(wanted, by)
        return [
            Operations(calls, single_pages(page, request, unit)),
            Operations((Advice.WILLNEED,), touched_host_pages(back, context)),
            Operations(calls, reported(requests, context)),
        ]
