"""range: the seed patch's protocol, {pfn | pages} words and one call per range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from replay.plan import Advice, Context, Protocol
from replay.ranges import Bools, Int64s
from replay.requests import NOT_OBSERVED_NS, Requests
from replay.strategies.base import (
    Operations,
    Pieces,
    Sent,
    Strategy,
    merged_within,
    pieces,
    reported,
    whole_host_pages,
)
from replay.wire import HEADER_BYTES, MAX_SHORT_PAGES, MAX_WORDS, WORD_BYTES, close_requests
from tracer.trace.schema import Queue


@dataclass(frozen=True)
class Range(Strategy):
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
            has and sleeps 200 ms (drivers/virtio/virtio_balloon.c, "Out of puff").
    """

    words: int = MAX_WORDS
    window_pages: int = 32 * 262_144
    pause_ns: int = 200_000_000

    name = "range"
    source = "[PATCH v4 qemu 2/6] virtio-balloon: speed up inflating & deflating process, 2016"
    protocol: ClassVar[Protocol] = "range_words"

    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        """One advice per range of an episode, one discard per reported block."""
        discard = (context.discard,)
        found = [Operations(discard, reported(requests, context))]
        for queue, advice in ((Queue.INFLATE, discard), (Queue.DEFLATE, (Advice.WILLNEED,))):
            ranges = self._windowed(*self._merged(requests, context, queue))
            page = context.layout.pages_of(ranges.page)
            found.append(Operations(advice, whole_host_pages(ranges._replace(page=page), context)))
        return found

    def settled(self, requests: Requests) -> int:
        """The first request of the last episode: it may yet go on."""
        first = np.flatnonzero(episode_begins(requests, self.pause_ns))
        return int(first[-1]) if len(first) else len(requests)

    def sent(self, requests: Requests, context: Context) -> Sent:
        """Ranges of whole episodes, packed into as few requests as the buffer allows."""
        request, size = [], []
        for queue in (Queue.INFLATE, Queue.DEFLATE):
            pfn, pages, episode = self._merged(requests, context, queue)
            # The driver knows no regions: what touches in PFNs is one range to it.
            first = np.ones(len(pfn), bool)
            first[1:] = (pfn[1:] != pfn[:-1] + pages[:-1]) | (episode[1:] != episode[:-1])
            begin = np.flatnonzero(first)
            length = np.add.reduceat(pages, begin) if len(begin) else pages
            ranges = self._windowed(pfn[begin], length, episode[begin])
            words = np.where(ranges.pages > MAX_SHORT_PAGES, 2, 1)
            closes = close_requests(words, ranges.request, self.words)
            request.append(ranges.request[closes])
            total = np.diff(np.concatenate(([0], np.cumsum(words)[closes])))
            size.append(HEADER_BYTES + WORD_BYTES * total)
        sent_with = np.concatenate(request)
        order = np.argsort(sent_with, kind="stable")
        return Sent(sent_with[order], np.concatenate(size)[order])

    def _merged(
        self, requests: Requests, context: Context, queue: Queue
    ) -> tuple[Int64s, Int64s, Int64s]:
        """First PFN, pages and last request of each episode's ranges, within regions."""
        found = pieces(requests, context, queue)
        episode = episode_last(requests, self.pause_ns)
        merged = merged_within(found, episode[found.request], context)
        return context.layout.pfns_of(merged.page), merged.pages, merged.request

    def _windowed(self, pfn: Int64s, pages: Int64s, episode: Int64s) -> Pieces:
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


def episode_begins(requests: Requests, pause_ns: int) -> Bools:
    """Mark the inflate and deflate requests that begin an episode.

    Returns:
        bool[n]; other queues' requests never begin one and never end one.
    """
    balloon = np.flatnonzero(np.isin(requests.queue, (Queue.INFLATE, Queue.DEFLATE)))
    queue, time_ns = requests.queue[balloon], requests.time_ns[balloon]
    seen = time_ns != NOT_OBSERVED_NS
    paused = (np.diff(time_ns) >= pause_ns) & seen[1:] & seen[:-1]
    begins = np.zeros(len(requests), bool)
    begins[balloon[:1]] = True
    begins[balloon[1:]] = (queue[1:] != queue[:-1]) | paused
    return begins


def episode_last(requests: Requests, pause_ns: int) -> Int64s:
    """For each inflate or deflate request, the last request of its episode.

    Returns:
        int64[n]; -1 for requests of other queues.
    """
    balloon = np.flatnonzero(np.isin(requests.queue, (Queue.INFLATE, Queue.DEFLATE)))
    number = np.cumsum(episode_begins(requests, pause_ns)[balloon])
    last = np.full(len(requests), -1, np.int64)
    ends = np.append(number[1:] != number[:-1], True) if len(balloon) else np.zeros(0, bool)
    if len(balloon):
        last[balloon] = balloon[ends][number - 1]
    return last
