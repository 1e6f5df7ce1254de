"""scatter: the later range series' protocol (F_SG), one descriptor and one call a range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from replay.plan import Context, Protocol, SentRanges
from replay.ranges import Int64s
from replay.requests import Requests
from replay.strategies.base import DESCRIPTOR_BYTES, Sent, at_least
from replay.strategies.range import ByEpisode, driver_ranges, in_order
from replay.strategies.select import Pieces
from replay.strategies.windows import PAUSE_NS
from replay.wire import MAX_DESCRIPTOR_PAGES, shares
from tracer.trace.schema import Queue


@dataclass(frozen=True)
class Scatter(ByEpisode):
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

    def sent(self, requests: Requests, context: Context) -> Sent:
        """One request for each range of an episode."""
        return in_order([self._added(requests, context, q) for q in (Queue.INFLATE, Queue.DEFLATE)])

    def _added(self, requests: Requests, context: Context, queue: Queue) -> Sent:
        ranges = self.cut(*driver_ranges(requests, context, queue, self.pause_ns))
        count = len(ranges.request)
        size = np.full(count, DESCRIPTOR_BYTES, np.int64)
        wire = np.arange(count, dtype=np.int64)
        return Sent(ranges.request, size, SentRanges(ranges.page, ranges.pages, wire))

    def cut(self, pfn: Int64s, pages: Int64s, episode: Int64s) -> Pieces:
        """Cut ranges at what one descriptor can name."""
        source, size = shares(pages, MAX_DESCRIPTOR_PAGES)
        before = np.cumsum(size) - size - (np.cumsum(pages) - pages)[source]
        return Pieces(pfn[source] + before, size, episode[source])
