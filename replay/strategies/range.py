"""range: the seed patch's protocol, {pfn | pages} words and one call per range."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from replay.backings import Advice
from replay.plan import Context, Protocol, SentRanges
from replay.ranges import Int64s
from replay.requests import Requests
from replay.strategies.base import Deflated, Operations, Sent, Strategy, at_least
from replay.strategies.select import (
    Pieces,
    merged_by,
    once,
    reported,
    touched_host_pages,
    whole_host_pages,
)
from replay.strategies.windows import PAUSE_NS, episode_begins, episode_last
from replay.wire import HEADER_BYTES, MAX_SHORT_PAGES, MAX_WORDS, WORD_BYTES, close_requests
from tracer.trace.schema import Queue


class ByEpisode(Strategy):
    """A strategy whose driver sorts an episode's pages; the device advises each range at once."""

    pause_ns: int
    """A pause this long ends an episode."""
    deflated: ClassVar[Deflated] = "merged"

    @abstractmethod
    def cut(self, pfn: Int64s, pages: Int64s, episode: Int64s) -> Pieces:
        """Cut ranges, given by PFN, where the protocol cannot name more in one."""

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
        ranges = self.cut(*episode_ranges(requests, context, queue, self.pause_ns))
        return ranges._replace(page=context.layout.pages_of(ranges.page))

    def merged_with(self, requests: Requests) -> Int64s:
        """The last request of each episode."""
        return episode_last(requests, self.pause_ns)

    def settled(self, requests: Requests) -> int:
        """The first request of the last episode: it may yet go on."""
        first = np.flatnonzero(episode_begins(requests, self.pause_ns))
        return int(first[-1]) if len(first) else len(requests)


@dataclass(frozen=True)
class Range(ByEpisode):
    """The driver sorts what it gave in one go and sends ranges; the device advises each at once.

    An episode is a series of inflate (or of deflate) requests without a request of the other kind
    and without a pause of `pause_ns` between them. The driver of the patch marks the pages of an
    episode in a bitmap, walks it upwards, and sends up to `words` words a request: so all
    operations of an episode come with its last request. The device discards inflated ranges and
    gives WILLNEED on deflated ones. The patch knows no reporting: blocks go one by one.

    Args:
        words: Words of 64 bits that fit the driver's buffer (32 KiB in the patch).
        window_pages: Pages that the driver's bitmap spans (32 GiB); a range ends at its border.
        pause_ns: A pause this long ends an episode. The driver that is out of pages sends what it
            has and sleeps 200 ms.
    """

    words: int = MAX_WORDS
    window_pages: int = 32 * 262_144
    pause_ns: int = PAUSE_NS

    name = "range"
    source = "[PATCH v4 qemu 2/6] virtio-balloon: speed up inflating & deflating process, 2016"
    protocol: ClassVar[Protocol] = "range_words"

    def __post_init__(self) -> None:
        """Refuse buffers that cannot hold one extended range after another."""
        at_least(2, self, "words")
        at_least(1, self, "window_pages", "pause_ns")

    def sent(self, requests: Requests, context: Context) -> Sent:
        """Ranges of whole episodes, packed into as few requests as the buffer allows."""
        return in_order(
            [self._packed(requests, context, q) for q in (Queue.INFLATE, Queue.DEFLATE)]
        )

    def _packed(self, requests: Requests, context: Context, queue: Queue) -> Sent:
        ranges = self.cut(*driver_ranges(requests, context, queue, self.pause_ns))
        words = np.where(ranges.pages > MAX_SHORT_PAGES, 2, 1)
        closes = close_requests(words, ranges.request, self.words)
        total = np.diff(np.concatenate(([0], np.cumsum(words)[closes])))
        wire = np.repeat(np.arange(len(closes)), np.diff(np.concatenate(([-1], closes))))
        return Sent(
            ranges.request[closes],
            HEADER_BYTES + WORD_BYTES * total,
            SentRanges(ranges.page, ranges.pages, wire),
        )

    def cut(self, pfn: Int64s, pages: Int64s, episode: Int64s) -> Pieces:
        """Cut ranges where the bitmap, which begins at the episode's lowest PFN, is moved on."""
        first = np.ones(len(pfn), bool)
        first[1:] = episode[1:] != episode[:-1]
        origin = pfn[np.flatnonzero(first)][np.cumsum(first) - 1]
        low = (pfn - origin) // self.window_pages
        count = (pfn + pages - 1 - origin) // self.window_pages - low + 1
        source = np.repeat(np.arange(len(pfn)), count)
        window = low[source] + np.arange(len(source)) - np.repeat(np.cumsum(count) - count, count)
        border = origin[source] + window * self.window_pages
        start = np.maximum(pfn[source], border)
        stop = np.minimum((pfn + pages)[source], border + self.window_pages)
        return Pieces(start, stop - start, episode[source])


@once
def episode_ranges(
    requests: Requests, context: Context, queue: Queue, pause_ns: int
) -> tuple[Int64s, Int64s, Int64s]:
    """First PFN, pages and last request of each episode's ranges, within regions."""
    merged = merged_by(requests, context, queue, episode_last(requests, pause_ns))
    return context.layout.pfns_of(merged.page), merged.pages, merged.request


def driver_ranges(
    requests: Requests, context: Context, queue: Queue, pause_ns: int
) -> tuple[Int64s, Int64s, Int64s]:
    """The same as a driver has them: it knows no regions, so what touches in PFNs is one range."""
    pfn, pages, episode = episode_ranges(requests, context, queue, pause_ns)
    first = np.ones(len(pfn), bool)
    first[1:] = (pfn[1:] != pfn[:-1] + pages[:-1]) | (episode[1:] != episode[:-1])
    begin = np.flatnonzero(first)
    length = np.add.reduceat(pages, begin) if len(begin) else pages
    return pfn[begin], length, episode[begin]


def in_order(parts: list[Sent]) -> Sent:
    """Merge what several queues send into the order in which it is sent."""
    counts = [len(part.request) for part in parts]
    before = np.cumsum([0, *counts[:-1]])
    request = np.concatenate([part.request for part in parts])
    order = np.argsort(request, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    named = [part.ranges for part in parts if part.ranges is not None]
    wire = place[np.concatenate([r.wire + b for r, b in zip(named, before, strict=True)])]
    by_wire = np.argsort(wire, kind="stable")
    pfn, pages = (np.concatenate([r[i] for r in named])[by_wire] for i in (0, 1))
    size = np.concatenate([part.bytes for part in parts])
    return Sent(request[order], size[order], SentRanges(pfn, pages, wire[by_wire]))
