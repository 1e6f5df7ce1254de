"""What every strategy shares: from requests to pages, from decisions to a plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from replay.plan import Advice, Context, Plan, Protocol
from replay.ranges import Int64s, merge, pfns_from_runs, rising
from replay.requests import Requests
from tracer.trace.schema import PFN_SHIFT, Queue

PFN_BYTES = 4
"""An inflate or deflate request is an array of le32 PFNs (virtio 1.x, 5.5.6)."""
DESCRIPTOR_BYTES = 16
"""A reported block is one descriptor of the split ring and has no content."""


class Pieces(NamedTuple):
    """Runs of pages of the replayed memory, each inside one region, and who named them."""

    page: Int64s
    pages: Int64s
    request: Int64s


class Operations(NamedTuple):
    """One or more pieces of advice, given on each piece in turn."""

    advice: Sequence[Advice]
    pieces: Pieces


class Sent(NamedTuple):
    """Wire requests, in order: when each is sent, and its bytes that name pages."""

    request: Int64s
    bytes: Int64s


class Strategy(ABC):
    """A pure rule: requests in, plan out.

    A subclass names itself and its source, and says which operations it gives on which pages.
    `settled` must be overridden where operations wait for later requests.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    """The VMM, patch or paper that the rule is taken from."""
    protocol: ClassVar[Protocol] = "pfns"
    causal: ClassVar[bool] = True
    """False for a bound that looks ahead: no device can do it."""
    discards: ClassVar[bool] = True

    @abstractmethod
    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        """Decide; each item's requests ascend and no two items share a request."""

    def sent(self, requests: Requests, context: Context) -> Sent:
        """Wire requests that carry the balloon's pages; by default as they were recorded."""
        del context
        return sent_as_recorded(requests)

    def settled(self, requests: Requests) -> int:
        """First request whose operations could still change if more requests followed."""
        return len(requests)

    def plan(self, requests: Requests, context: Context) -> Plan:
        """Plan the whole stream.

        Args:
            requests: Requests in order of arrival.
            context: The memory they act on.

        Returns:
            Operations and wire requests, both in order of the recorded requests.
        """
        parts = [part for part in self.operations(requests, context) if len(part.pieces.page)]
        request = _joined([np.repeat(p.pieces.request, len(p.advice)) for p in parts])
        advice = _joined([np.tile(p.advice, len(p.pieces.page)) for p in parts])
        page = _joined([np.repeat(p.pieces.page, len(p.advice)) for p in parts])
        pages = _joined([np.repeat(p.pieces.pages, len(p.advice)) for p in parts])
        if len(parts) > 1:
            order = np.argsort(request, kind="stable")
            request, advice, page, pages = (c[order] for c in (request, advice, page, pages))
        sent = self._with_reports(self.sent(requests, context), requests)
        return Plan(
            self.name,
            self.protocol,
            advice.astype(np.uint8),
            page.view(np.uint64) << np.uint64(PFN_SHIFT),
            pages.view(np.uint64) << np.uint64(PFN_SHIFT),
            request,
            sent.request,
            sent.bytes,
            requests.queue[sent.request],
            self.discards,
        )

    @staticmethod
    def _with_reports(sent: Sent, requests: Requests) -> Sent:
        """Reports are sent as they were recorded under every strategy."""
        reports = np.flatnonzero(requests.queue == Queue.REPORTING)
        entries = np.diff(requests.run_offsets)[reports]
        request = np.concatenate((sent.request, reports))
        order = np.argsort(request, kind="stable")
        size = np.concatenate((sent.bytes, entries * DESCRIPTOR_BYTES))
        return Sent(request[order], size[order])


def _joined(columns: list[Int64s]) -> Int64s:
    if len(columns) == 1:
        return columns[0]
    return np.concatenate([np.zeros(0, np.int64), *columns])


def sent_as_recorded(requests: Requests) -> Sent:
    """One wire request of le32 PFNs for each recorded inflate or deflate request."""
    balloon = np.flatnonzero(np.isin(requests.queue, (Queue.INFLATE, Queue.DEFLATE)))
    return Sent(balloon, requests.pages[balloon] * PFN_BYTES)


def pieces(requests: Requests, context: Context, *queues: Queue) -> Pieces:
    """Pages of some queues as pieces in arrival order; what is no guest memory is left out."""
    pfn, pages, request = requests.runs_of(*queues)
    clipped = context.layout.clip(*rising(pfn, pages))
    return Pieces(clipped.page, clipped.pages, request[clipped.source])


def wire_pages(requests: Requests, context: Context, queue: Queue) -> tuple[Int64s, Int64s]:
    """Every page of a queue in wire order: page of the replayed memory, request."""
    pfn, pages, request = requests.runs_of(queue)
    page = context.layout.pages_of(pfns_from_runs(pfn, pages))
    request = np.repeat(request, np.abs(pages))
    inside = page >= 0
    return (page, request) if inside.all() else (page[inside], request[inside])


def reported(requests: Requests, context: Context) -> Pieces:
    """Reported blocks that a device may discard, one piece an entry, in arrival order.

    An entry that is not wholly inside one region, or not whole host pages, is left alone, as in
    virtio_balloon_handle_report of QEMU 5.1 and later.
    """
    pfn, pages, request = requests.runs_of(Queue.REPORTING)
    start, length = rising(pfn, pages)
    clipped = context.layout.clip(start, length)
    unit = context.host_page_pages
    whole = clipped.pages == length[clipped.source]
    whole &= (clipped.page | clipped.pages) % unit == 0
    return Pieces(clipped.page[whole], clipped.pages[whole], request[clipped.source[whole]])


def merged_within(found: Pieces, group: Int64s, context: Context) -> Pieces:
    """Sort and merge the pieces of each group.

    Args:
        found: Pieces in arrival order.
        group: int64, ascending, one per piece; the result's `request` holds groups.
        context: The memory.
    """
    stride = context.layout.memory_pages + 1  # one page more, so that groups never touch
    runs = merge(found.page + group * stride, found.pages)
    request = runs.start // stride
    return Pieces(runs.start - request * stride, runs.pages, request)


def whole_host_pages(found: Pieces, context: Context) -> Pieces:
    """Shrink each piece, by itself, to the whole host pages that it holds."""
    unit = context.host_page_pages
    if unit == 1:
        return found
    start = -(-found.page // unit) * unit
    length = (found.page + found.pages) // unit * unit - start
    kept = length > 0
    return Pieces(start[kept], length[kept], found.request[kept])
