"""What a strategy decides: ordered operations on the replayed memory, and what is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from replay.layout import Layout
from replay.ranges import Int64s, Runs, empty, merge
from tracer.trace.schema import PAGE_BYTES, PFN_SHIFT

if TYPE_CHECKING:
    from tracer.trace.manifest import Region

UInt8s = npt.NDArray[np.uint8]
UInt64s = npt.NDArray[np.uint64]
Protocol = Literal["pfns", "range_words", "scatterlist"]


class Advice(IntEnum):
    """What an operation does; a madvise value of Linux, or PUNCH_HOLE for fallocate."""

    WILLNEED = 3
    DONTNEED = 4
    FREE = 8
    REMOVE = 9
    PUNCH_HOLE = 128


DISCARDS: dict[str, Advice] = {
    "anon": Advice.DONTNEED,
    "memfd": Advice.PUNCH_HOLE,
    "shmem": Advice.REMOVE,
    "hugetlb": Advice.PUNCH_HOLE,
    "file-private": Advice.DONTNEED,
}
"""The one call that gives a page back on each backing. DONTNEED on shared memory only unmaps it
(mm/madvise.c, Linux 2.6 and later), so memfd needs a hole and shared anonymous memory REMOVE."""


@dataclass(frozen=True)
class Context:
    """What a strategy may know of the memory that it plans for.

    Args:
        regions: Guest memory.
        host_page_bytes: Smallest unit that the host can give back.
        backing: One of `DISCARDS`.
        thp: Whether transparent huge pages may form.
    """

    regions: tuple[Region, ...]
    host_page_bytes: int = PAGE_BYTES
    backing: str = "anon"
    thp: bool = False

    def __post_init__(self) -> None:
        """Refuse what no host has; a wrong value here would make every plan wrong."""
        size = self.host_page_bytes
        if size < PAGE_BYTES or size & (size - 1):
            raise ValueError(f"host_page_bytes is {size}: not a power of two of {PAGE_BYTES} up")
        if self.backing not in DISCARDS:
            raise ValueError(f"backing is {self.backing!r}: not one of {', '.join(DISCARDS)}")

    @cached_property
    def layout(self) -> Layout:
        """Translation from PFNs to pages of the replayed memory."""
        return Layout(self.regions)

    @property
    def host_page_pages(self) -> int:
        """4 KiB pages in one host page."""
        return self.host_page_bytes >> PFN_SHIFT

    @property
    def discard(self) -> Advice:
        """The advice that gives a page back on this backing."""
        return DISCARDS[self.backing]


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
        discards: False for a plan that is not meant to give memory back (`nop`).
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
    discards: bool = True

    def __len__(self) -> int:
        """Operations."""
        return len(self.advice)

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
        return Plan(
            self.name,
            self.protocol,
            self.advice[:k],
            self.offset_bytes[:k],
            self.length_bytes[:k],
            self.request[:k],
            self.sent_request[:w],
            self.sent_bytes[:w],
            self.sent_queue[:w],
            self.discards,
        )


def gone_pages(plan: Plan, context: Context) -> Runs:
    """Pages of the replayed memory that must read as zero once the whole plan has run.

    MADV_FREE only allows the kernel to take a page, so its pages are in neither set.
    """
    chosen = np.isin(plan.advice, effective_advice(context.backing))
    if not chosen.any():
        return empty()
    start = (plan.offset_bytes[chosen] >> np.uint64(PFN_SHIFT)).astype(np.int64)
    pages = (plan.length_bytes[chosen] >> np.uint64(PFN_SHIFT)).astype(np.int64)
    return merge(start, pages)


def effective_advice(backing: str) -> Sequence[int]:
    """Advice that takes a page away at once on a backing (table in docs/strategies.md)."""
    shared = backing in {"memfd", "shmem", "hugetlb"}
    return [Advice.REMOVE, Advice.PUNCH_HOLE] if shared else [Advice.DONTNEED]
