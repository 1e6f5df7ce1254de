"""What a strategy decides: ordered operations on the replayed memory, and what is sent."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.backings import BACKINGS, Advice, Backing
from replay.layout import Layout
from replay.native.types import Effect, Operations
from replay.ranges import Bools, Int64s, Runs, empty, merge, merge_sorted
from tracer.trace.schema import PAGE_BYTES, PFN_SHIFT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.trace.manifest import Region

UInt8s = npt.NDArray[np.uint8]
UInt64s = npt.NDArray[np.uint64]
Protocol = Literal["pfns", "range_words", "scatterlist"]

MAX_CALL_RANGES = 1024
"""UIO_MAXIOV: process_madvise takes no more ranges (Linux 5.10 and later)."""
COVERED_AT_ONCE = 1 << 18
"""Operations whose pages are looked at together."""


@dataclass(frozen=True)
class Context:
    """What a strategy may know of the memory that it plans for.

    Args:
        regions: Guest memory.
        host_page_bytes: Smallest unit that the host can give back.
        backing: A name in `BACKINGS`.
    """

    regions: tuple[Region, ...]
    host_page_bytes: int = PAGE_BYTES
    backing: str = "anon"

    def __post_init__(self) -> None:
        """Refuse what no host has; a wrong value here would make every plan wrong."""
        size = self.host_page_bytes
        if size < PAGE_BYTES or size & (size - 1):
            raise ValueError(f"host_page_bytes is {size}: not a power of two of {PAGE_BYTES} up")
        if self.backing not in BACKINGS:
            raise ValueError(f"backing is {self.backing!r}: not one of {', '.join(BACKINGS)}")

    @cached_property
    def layout(self) -> Layout:
        """Translation from PFNs to pages of the replayed memory."""
        return Layout(self.regions)

    @property
    def host_page_pages(self) -> int:
        """4 KiB pages in one host page."""
        return self.host_page_bytes >> PFN_SHIFT

    @property
    def memory(self) -> Backing:
        """What each operation does on this backing."""
        return BACKINGS[self.backing]

    @property
    def discard(self) -> Advice:
        """The one call that gives a page back on this backing."""
        return self.memory.discard


def context_of(regions: Sequence[Region], backing: str | None = None) -> Context:
    """Describe the memory of a trace, or the same memory on another backing.

    Args:
        regions: The trace's memory map.
        backing: A name in `BACKINGS`; when left out, that of the trace's largest region, with its
            page size, or anon where the trace names one that no replay knows.
    """
    largest = max(regions, key=lambda region: region.length_bytes)
    if backing is None and largest.backing in BACKINGS:
        return Context(tuple(regions), largest.page_size_bytes or PAGE_BYTES, largest.backing)
    backing = backing or "anon"
    return Context(tuple(regions), BACKINGS[backing].host_page_bytes, backing)


class SentRanges(NamedTuple):
    """Ranges that inflate and deflate requests name, in the order in which they are sent.

    Args:
        pfn: int64[m], first PFN of each.
        pages: int64[m].
        wire: int64[m], ascending: index of the wire request that holds each.
    """

    pfn: Int64s
    pages: Int64s
    wire: Int64s


@dataclass(frozen=True, eq=False)
class Plan:
    """Operations in the order in which they are to run, and the requests the driver would send.

    Args:
        name: The strategy's name.
        protocol: How inflate and deflate requests name their pages.
        advice: uint8[k], `Advice`.
        offset_bytes: uint64[k], into the replayed memory.
        length_bytes: uint64[k].
        request: int64[k], ascending: the operation runs when this recorded request has arrived,
            before it is acknowledged.
        sent_request: int64[w], ascending: the recorded request by whose arrival each wire request
            has been sent.
        sent_bytes: int64[w]: bytes in each wire request that name pages.
        sent_queue: uint8[w], `Queue`.
        sent_ranges: What they name, under a protocol of ranges; None under `pfns`, where the
            recorded PFNs are sent.
        discards: False for a plan that is not meant to give memory back (`nop`).
        joined: bool[k]: the operation shares the system call of the one before it (one
            process_madvise). None: every operation is a call of its own.
        thread: uint8[k]: which of the device's threads makes the call. The threads of one request
            run at once, and all have ended before it is acknowledged. None: there is one thread.
    """

    name: str
    protocol: Protocol
    advice: UInt8s
    offset_bytes: UInt64s
    length_bytes: UInt64s
    request: Int64s
    sent_request: Int64s = field(default_factory=lambda: np.zeros(0, np.int64))
    sent_bytes: Int64s = field(default_factory=lambda: np.zeros(0, np.int64))
    sent_queue: UInt8s = field(default_factory=lambda: np.zeros(0, np.uint8))
    sent_ranges: SentRanges | None = None
    discards: bool = True
    joined: Bools | None = None
    thread: UInt8s | None = None

    def __len__(self) -> int:
        """Operations."""
        return len(self.advice)

    @property
    def calls(self) -> int:
        """System calls, where none has to be repeated."""
        return len(self) - (0 if self.joined is None else int(self.joined.sum()))

    @property
    def threads(self) -> int:
        """Threads that carry the plan out."""
        return 1 if self.thread is None or not len(self) else int(self.thread.max()) + 1

    @property
    def wire_requests(self) -> int:
        """Requests that the driver sends under this plan's protocol (stage b)."""
        return len(self.sent_request)

    @property
    def wire_bytes(self) -> int:
        """Bytes in those requests that name pages."""
        return int(self.sent_bytes.sum())

    def before(self, request: int) -> Plan:
        """The part of the plan that belongs to recorded requests below an index."""
        k = int(np.searchsorted(self.request, request))
        w = int(np.searchsorted(self.sent_request, request))
        ranges = self.sent_ranges
        if ranges is not None:
            m = int(np.searchsorted(ranges.wire, w))
            ranges = SentRanges(*(column[:m] for column in ranges))
        return replace(
            self,
            advice=self.advice[:k],
            offset_bytes=self.offset_bytes[:k],
            length_bytes=self.length_bytes[:k],
            request=self.request[:k],
            sent_request=self.sent_request[:w],
            sent_bytes=self.sent_bytes[:w],
            sent_queue=self.sent_queue[:w],
            sent_ranges=ranges,
            joined=None if self.joined is None else self.joined[:k],
            thread=None if self.thread is None else self.thread[:k],
        )


def gone_pages(plan: Plan, context: Context) -> Runs:
    """Pages of the replayed memory that the plan takes away at once at some time.

    MADV_FREE only allows the kernel to take a page, so its pages are not among them.
    """
    return covered_pages(plan, context.memory.advice_with(Effect.FREES))


def covered_pages(plan: Plan | Operations, advice: Sequence[Advice] = tuple(Advice)) -> Runs:
    """Pages of the replayed memory that operations lie on.

    Args:
        plan: A plan, or its operations.
        advice: Operations of these kinds.
    """
    found = empty()
    shift = np.uint64(PFN_SHIFT)
    # Part by part: whole columns of numbers beside the plan's would take more than the plan.
    for first in range(0, len(plan.advice), COVERED_AT_ONCE):
        part = slice(first, first + COVERED_AT_ONCE)
        chosen = np.isin(plan.advice[part], advice)
        start = (plan.offset_bytes[part][chosen] >> shift).astype(np.int64)
        pages = (plan.length_bytes[part][chosen] >> shift).astype(np.int64)
        found = merge_sorted(found, merge(start, pages))
    return found
