"""punch: a hole in the file for each page, and no second call."""

from __future__ import annotations

from dataclasses import dataclass

from replay.backings import Advice
from replay.plan import Context
from replay.requests import Requests
from replay.strategies.base import Operations, Strategy
from replay.strategies.select import (
    merged_requests,
    reported,
    single_pages,
    whole_host_pages,
    wire_pages,
)
from tracer.trace.schema import Queue


@dataclass(frozen=True)
class Punch(Strategy):
    """Of the two calls that `qemu` makes for each page of a file, only the one that frees.

    The hole unmaps the page as well, so the DONTNEED that QEMU and cloud-hypervisor add finds
    nothing. Shared anonymous memory has no descriptor; there MADV_REMOVE punches the hole. Deflate
    only acknowledges; reported blocks go one by one.

    Args:
        merge: Sort and merge each request first, as crosvm does for neighbours.
    """

    merge: bool = False

    name = "punch"
    source = "cloud-hypervisor, virtio-devices/src/balloon.rs (release_memory_range), less DONTNEED"

    def advice(self, context: Context) -> Advice:
        """A hole, by descriptor or by address."""
        return Advice.REMOVE if context.backing == "shmem" else Advice.PUNCH_HOLE

    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        """One hole per page or merged range, and per reported block."""
        if self.merge:
            found = merged_requests(requests, context, Queue.INFLATE)
        else:
            page, request = wire_pages(requests, context, Queue.INFLATE)
            found = single_pages(page, request)
        hole = (self.advice(context),)
        return [
            Operations(hole, whole_host_pages(found, requests, context)),
            Operations(hole, reported(requests, context)),
        ]
