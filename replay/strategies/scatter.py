"""scatter: the later range series' protocol (F_SG), one descriptor and one call a range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from replay.backings import Advice
from replay.plan import Context, Protocol, SentRanges
from replay.ranges import Int64s
from replay.requests import Requests
from replay.strategies.base import DESCRIPTOR_BYTES, Operations, Sent, Strategy, at_least
from replay.strategies.range import driver_ranges, episode_ranges, in_order
from replay.strategies.select import Pieces, reported, touched_host_pages, whole_host_pages
from replay.strategies.windows import PAUSE_NS, episode_begins
from replay.wire import MAX_DESCRIPTOR_PAGES, shares
from tracer.trace.schema import Queue


@dataclass(frozen=True)
class Scatter(Strategy):
    """The driver sorts what it gave in one go and adds one descriptor for each range to the ring.

    Episodes are those of `range`. The descriptor itself is the range, so nothing is written and
    nothing decoded; the driver kicks when the ring is full and at the end of the episode (v15 of
    the series; v14 waited for each range). The device advises each range at once: a discard on
    inflate, WILLNEED on deflate. Reported blocks go one by one.

    Args:
        pause_ns: A pause this long ends an episode.
    """

    pause_ns: int = PAUSE_NS

    name = "scatter"
    source = "[PATCH v15 2/5] virtio-balloon: VIRTIO_BALLOON_F_SG, 2017"
    protocol: ClassVar[Protocol] = "scatterlist"

    def __post_init__(self) -> None:
        """Refuse pauses that would end an episode before it began."""
        at_least(1, self, "pause_ns")

    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        """One advice per range of an episode, one discard per reported block."""
        discard = (context.discard,)
        given, taken = (
            self._on_memory(requests, context, queue) for queue in (Queue.INFLATE, Queue.DEFLATE)
        )
        return [
            Operations(discard, reported(requests, context)),
            Operations(discard, whole_host_pages(given, requests, context)),
            Operations((Advice.WILLNEED,), touched_host_pages(taken, context)),
        ]

    def _on_memory(self, requests: Requests, context: Context, queue: Queue) -> Pieces:
        ranges = _cut(*episode_ranges(requests, context, queue, self.pause_ns))
        return ranges._replace(page=context.layout.pages_of(ranges.page))

    def settled(self, requests: Requests) -> int:
        """The first request of the last episode: it may yet go on."""
        first = np.flatnonzero(episode_begins(requests, self.pause_ns))
        return int(first[-1]) if len(first) else len(requests)

    def sent(self, requests: Requests, context: Context) -> Sent:
        """One request for each range of an episode."""
        return in_order([self._added(requests, context, q) for q in (Queue.INFLATE, Queue.DEFLATE)])

    def _added(self, requests: Requests, context: Context, queue: Queue) -> Sent:
        ranges = _cut(*driver_ranges(requests, context, queue, self.pause_ns))
        count = len(ranges.request)
        size = np.full(count, DESCRIPTOR_BYTES, np.int64)
        wire = np.arange(count, dtype=np.int64)
        return Sent(ranges.request, size, SentRanges(ranges.page, ranges.pages, wire))


def _cut(pfn: Int64s, pages: Int64s, episode: Int64s) -> Pieces:
    """Cut ranges at what one descriptor can name."""
    source, size = shares(pages, MAX_DESCRIPTOR_PAGES)
    before = np.cumsum(size) - size - (np.cumsum(pages) - pages)[source]
    return Pieces(pfn[source] + before, size, episode[source])
