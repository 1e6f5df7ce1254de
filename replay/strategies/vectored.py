"""vectored: many ranges in one process_madvise, merged or not."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from replay.backings import Advice
from replay.plan import MAX_CALL_RANGES, Context
from replay.ranges import Bools, Int64s
from replay.requests import Requests
from replay.strategies.base import Operations, at_least
from replay.strategies.batch import Batching
from replay.strategies.select import (
    Pieces,
    merged_by,
    reported,
    single_pages,
    whole_host_pages,
    wire_pages,
)
from replay.strategies.windows import PAUSE_NS, batch_last
from tracer.trace.schema import PAGE_BYTES, Queue

MAX_CALL_BYTES = (2 << 30) - (2 << 20)
"""process_madvise stops at 2 GiB less a page (MAX_RW_COUNT), which would split the last huge page;
this is the last border of huge pages before it."""


@dataclass(frozen=True)
class Vectored(Batching):
    """Save the entry to the kernel and most flushes, with or without sorting.

    Pages are collected like Firecracker's, up to `ranges` PFNs, and each batch is one call, or as
    many as the limits ask for. Without `merge` its ranges are single pages in wire order. The
    reported blocks of a request are one call. Deflate only acknowledges. Giving memory back this
    way needs Linux 6.13, where a process may advise itself on anything.

    Args:
        ranges: PFNs in a batch and ranges in a call, 1 to 1024.
        merge: Sort and merge each batch first.
        call_bytes: Most memory in one call of several ranges.
        pause_ns: A pause this long ends a batch.
    """

    ranges: int = MAX_CALL_RANGES
    merge: bool = False
    call_bytes: int = MAX_CALL_BYTES
    pause_ns: int = PAUSE_NS

    name = "vectored"
    source = (
        "process_madvise on the caller itself (Linux 6.13), batched flushes (6.16, SeongJae Park);"
        " jemalloc purges this way"
    )

    def __post_init__(self) -> None:
        """Refuse what the kernel refuses."""
        at_least(1, self, "ranges", "call_bytes", "pause_ns")
        if self.ranges > MAX_CALL_RANGES:
            raise ValueError(f"ranges is {self.ranges}; the kernel takes {MAX_CALL_RANGES} at most")

    def advice(self, context: Context) -> Advice:
        """The madvise value that frees: a hole punched by fallocate has no vector form."""
        return context.memory.vector

    def merged_with(self, requests: Requests) -> Int64s:
        """The last request of each batch."""
        return batch_last(requests, self.ranges, self.pause_ns)

    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        """Single pages or merged ranges of each batch, and reported blocks, in joint calls."""
        last = self.merged_with(requests)
        if self.merge:
            found = merged_by(requests, context, Queue.INFLATE, last)
        else:
            page, request = wire_pages(requests, context, Queue.INFLATE)
            found = single_pages(page, last[request])
        return [
            self._vector(whole_host_pages(found, requests, context), context),
            self._vector(reported(requests, context), context),
        ]

    def _vector(self, found: Pieces, context: Context) -> Operations:
        joined = joint_calls(found, self.ranges, self.call_bytes // PAGE_BYTES)
        return Operations((self.advice(context),), found, joined)


def joint_calls(found: Pieces, ranges: int, pages: int) -> Bools:
    """Say which pieces share the call of the one before.

    Args:
        found: Pieces, those of one request next to each other.
        ranges: Most pieces in a call.
        pages: Most pages in a call of several pieces.
    """
    begins = np.ones(len(found.page), np.bool_)
    begins[1:] = found.request[1:] != found.request[:-1]
    first = np.flatnonzero(begins)
    if len(first) == 0:
        return begins
    count = np.diff(np.append(first, len(begins)))
    calls = -(-count // ranges)
    nth = np.arange(int(calls.sum())) - np.repeat(np.cumsum(calls) - calls, calls)
    begins[np.repeat(first, calls) + nth * ranges] = True
    heavy = np.add.reduceat(found.pages, first) > pages
    for start, size in zip(first[heavy].tolist(), count[heavy].tolist(), strict=True):
        part = slice(start, start + size)
        _split(begins[part], found.pages[part], ranges, pages)
    return ~begins


def _split(begins: Bools, size_pages: Int64s, ranges: int, pages: int) -> None:
    """Mark where calls begin within a request that is too much for one."""
    reach = [0, *np.cumsum(size_pages).tolist()]
    begins[:] = False
    at = 0
    while at < len(begins):
        begins[at] = True
        at = max(at + 1, min(at + ranges, bisect_right(reach, reach[at] + pages) - 1))
