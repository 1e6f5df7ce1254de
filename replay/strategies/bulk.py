"""bulk: the seed's protocol, and many ranges in one call on the device's side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replay.backings import Advice
from replay.native.types import MAX_THREADS
from replay.plan import MAX_CALL_RANGES, Context
from replay.ranges import Bools, Int64s
from replay.requests import Requests
from replay.strategies.base import Operations, at_least, check_unit
from replay.strategies.parallel import shared_out
from replay.strategies.range import Range
from replay.strategies.select import (
    Pieces,
    merged_requests,
    whole_host_pages,
)
from replay.strategies.vectored import MAX_CALL_BYTES, joint_calls
from tracer.trace.schema import PAGE_BYTES, Queue


@dataclass(frozen=True)
class Bulk(Range):
    """What `range` sends, and less work for the device: ranges share system calls and threads.

    The ranges of an episode come in whole, so the device need not advise them one by one. Each
    process_madvise takes up to `ranges` of them. Deflate only acknowledges. With more than one
    thread, the discards of an episode are shared out as in `parallel`, where the ranges are long
    enough: on average at least `border_bytes`. Reported blocks are merged within their request, and
    share a call.

    Args:
        ranges: Ranges in a call, 1 to 1024.
        call_bytes: Most memory in one call of several ranges.
        threads: Of the device, 1 to 64.
        border_bytes: Where threads may cut ranges: a power of two from 4096 up.
    """

    ranges: int = MAX_CALL_RANGES
    call_bytes: int = MAX_CALL_BYTES
    threads: int = 1
    border_bytes: int = 2 << 20

    name = "bulk"
    source = (
        "aerostat: the seed's wire, and process_madvise on the caller itself (Linux 6.13, flushes"
        " batched since 6.16)"
    )

    def __post_init__(self) -> None:
        """Refuse what the kernel refuses, and what nobody has CPUs for."""
        super().__post_init__()
        at_least(1, self, "ranges", "call_bytes", "threads")
        for name, most in (("ranges", MAX_CALL_RANGES), ("threads", MAX_THREADS)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {most} or less")
        check_unit("border_bytes", self.border_bytes)

    def advice(self, context: Context) -> Advice:
        """The madvise value that frees: a hole punched by fallocate has no vector form."""
        return context.memory.vector

    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        """The ranges of each episode and the merged blocks of each report, in joint calls."""
        given = self._on_memory(requests, context, Queue.INFLATE)
        reports = merged_requests(requests, context, Queue.REPORTING)
        border = max(self.border_bytes, context.host_page_bytes) // PAGE_BYTES
        given, thread = self._shared(whole_host_pages(given, requests, context), border)
        discard = (self.advice(context),)
        threads = None if self.threads == 1 else thread.astype(np.uint8)
        return [
            Operations(discard, reports, self._joined(reports, 0)),
            Operations(discard, given, self._joined(given, thread), threads),
        ]

    def _shared(self, found: Pieces, border: int) -> tuple[Pieces, Int64s]:
        """Share out episodes of long ranges; over short ones threads hinder each other."""
        if self.threads == 1 or len(found.page) == 0:
            return found, np.zeros(len(found.page), np.int64)
        episode, first = np.unique(found.request, return_index=True)
        mean = np.add.reduceat(found.pages, first) // np.diff(np.append(first, len(found.page)))
        long = np.isin(found.request, episode[mean >= border])
        shared, thread = shared_out(
            Pieces(*(column[long] for column in found)), self.threads, border
        )
        whole = Pieces(*(column[~long] for column in found))
        order = np.argsort(np.concatenate((shared.request, whole.request)), kind="stable")
        both = zip(shared, whole, strict=True)
        pieces = Pieces(*(np.concatenate(columns)[order] for columns in both))
        return pieces, np.append(thread, np.zeros(len(whole.page), np.int64))[order]

    def _joined(self, found: Pieces, thread: Int64s | int) -> Bools:
        """Which pieces share the call before them: those of one arrival and one thread."""
        key = found.request * MAX_THREADS + thread
        return joint_calls(
            Pieces(found.page, found.pages, key), self.ranges, self.call_bytes // PAGE_BYTES
        )
