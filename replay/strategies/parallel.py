"""parallel: share a large discard among threads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replay.native.types import MAX_THREADS
from replay.plan import Context
from replay.ranges import Int64s, intersect, merge
from replay.requests import Requests
from replay.strategies.base import Operations, check_unit
from replay.strategies.deferred import Deferred
from replay.strategies.select import Pieces, merged_requests
from tracer.trace.schema import PAGE_BYTES, Queue


@dataclass(frozen=True)
class Parallel(Deferred):
    """`deferred`, with the ranges of each hold cut into equal shares, one a thread.

    The threads run at once on memory that is not each other's, and the request that ends the hold
    is not acknowledged before all have ended. Ranges are cut at the borders of huge pages only, and
    a hold of less than one for each thread is not shared: page by page, threads would hinder each
    other more than they help.

    Args:
        threads: How many, 1 to 64.
        border_bytes: Where ranges may be cut: a power of two from 4096 up.
    """

    threads: int = 2
    border_bytes: int = 2 << 20

    name = "parallel"
    source = "QEMU, util/oslib-posix.c (touch_all_pages), which shares out preallocation like this"

    def __post_init__(self) -> None:
        """Refuse what nobody has CPUs for."""
        super().__post_init__()
        if not 1 <= self.threads <= MAX_THREADS:
            raise ValueError(f"threads is {self.threads}; it must be 1 to {MAX_THREADS}")
        check_unit("border_bytes", self.border_bytes)

    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        """The ranges of each hold, shared; blocks of reports on the first thread."""
        discard = (self.advice(context),)
        border = max(self.border_bytes, context.host_page_bytes) // PAGE_BYTES
        found, thread = shared_out(self.ranges(requests, context), self.threads, border)
        blocks = merged_requests(requests, context, Queue.REPORTING)
        # A guest may report a page that is in the balloon: two threads must not meet on it.
        with_blocks = requests.queue[found.request] == Queue.REPORTING
        if with_blocks.any():
            beside = Pieces(*(column[with_blocks] for column in found))
            thread[np.isin(found.request, _overlapping(beside, blocks, context))] = 0
        return [
            Operations(discard, found, thread=thread.astype(np.uint8)),
            Operations(discard, blocks),
        ]


def _overlapping(found: Pieces, blocks: Pieces, context: Context) -> Int64s:
    """Requests in which ranges and blocks have pages in common."""
    stride = context.layout.memory_pages + 1
    both = intersect(
        *(merge(each.page + each.request * stride, each.pages) for each in (found, blocks))
    )
    return np.unique(both.start // stride)


def shared_out(found: Pieces, threads: int, border: int) -> tuple[Pieces, Int64s]:
    """Cut the pieces of each request into shares of nearly the same size.

    Args:
        found: Pieces, those of one request next to each other.
        threads: How many shares.
        border: Pieces are cut at multiples of this many pages only.

    Returns:
        The pieces, and the thread of each; the shares of a request follow each other.
    """
    if threads == 1 or len(found.page) == 0:
        return found, np.zeros(len(found.page), np.int64)
    # Places count pages from the first piece of all to the last, as if laid end to end.
    place = np.cumsum(found.pages) - found.pages
    begins = np.ones(len(place), np.bool_)
    begins[1:] = found.request[1:] != found.request[:-1]
    first = np.flatnonzero(begins)
    total = np.add.reduceat(found.pages, first)
    cuts = _cuts(found, place, (place[first], total), threads, border)
    inner = np.unique(cuts[place[np.searchsorted(place, cuts, side="right") - 1] != cuts])
    at, pieces = place, found
    if len(inner):
        behind = np.searchsorted(place, inner)
        at = np.insert(place, behind, inner)
        source = np.insert(np.arange(len(place)), behind, behind - 1)
        end = place[-1] + found.pages[-1]
        pieces = Pieces(
            found.page[source] + at - place[source],
            np.diff(np.append(at, end)),
            found.request[source],
        )
    return pieces, _threads(np.searchsorted(at, place[first]), np.searchsorted(at, cuts), len(at))


def _threads(first: Int64s, cuts: Int64s, pieces: int) -> Int64s:
    """The thread of each piece: how many cuts there were since the first piece of its request.

    Args:
        first: Indices of first pieces.
        cuts: Indices of pieces with which another thread takes over.
        pieces: How many pieces there are.
    """
    borders = np.sort(np.concatenate((first, cuts)))
    group = first[np.searchsorted(first, borders, side="right") - 1]
    earlier = np.searchsorted(cuts, group)
    thread = np.searchsorted(cuts, borders, side="right") - earlier
    return np.repeat(thread, np.diff(np.append(borders, pieces)))


def _cuts(
    found: Pieces, place: Int64s, groups: tuple[Int64s, Int64s], threads: int, border: int
) -> Int64s:
    """Places, ascending, at which the next thread takes over; `threads - 1` in each group."""
    start, total = (column[groups[1] >= threads * border] for column in groups)
    nth = np.arange(1, threads)
    ideal = (start[:, np.newaxis] + -(-nth * total[:, np.newaxis] // threads)).reshape(-1)
    piece = np.searchsorted(place, ideal, side="right") - 1
    within = ideal - place[piece]
    # Back to the border below, or to the piece's own start where that lies above it.
    back = np.minimum((found.page[piece] + within) % border, within)
    return np.sort(ideal - back)
