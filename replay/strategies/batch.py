"""batch: collect the PFNs of several requests, sort and merge them together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replay.plan import Context
from replay.ranges import Int64s
from replay.requests import Requests
from replay.strategies.base import Operations, Strategy, at_least
from replay.strategies.select import merged_by, reported, whole_host_pages
from replay.strategies.windows import PAUSE_NS, batch_last
from tracer.trace.schema import Queue


@dataclass(frozen=True)
class Batching(Strategy):
    """A strategy that takes the inflate requests of one batch together.

    It is causal, with one allowance: it knows that the queue is empty when an episode has ended. A
    device sees that. But Linux's driver waits for each answer, so its queue never holds more than
    one request, and a real batch of its requests is one request: that is `request`.
    """

    def settled(self, requests: Requests) -> int:
        """The last inflate request: its batch may yet go on."""
        inflates = np.flatnonzero(requests.queue == Queue.INFLATE)
        return int(inflates[-1]) if len(inflates) else len(requests)


@dataclass(frozen=True)
class Batch(Batching):
    """Firecracker's rule for a driver that keeps its queue full.

    A request that does not fit the buffer any more waits for the next batch. Deflate only
    acknowledges; reported blocks go one by one.

    Args:
        pfns: PFNs that the device's buffer holds.
        pause_ns: A pause this long means that the queue was empty.
    """

    pfns: int = 2048
    pause_ns: int = PAUSE_NS

    name = "batch"
    source = "Firecracker, balloon/device.rs (process_inflate, MAX_PAGE_COMPACT_BUFFER)"

    def __post_init__(self) -> None:
        """Refuse buffers that hold nothing."""
        at_least(1, self, "pfns", "pause_ns")

    def merged_with(self, requests: Requests) -> Int64s:
        """The last request of each batch."""
        return batch_last(requests, self.pfns, self.pause_ns)

    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        """One discard per merged range of a batch and per reported block."""
        discard = (context.discard,)
        merged = merged_by(requests, context, Queue.INFLATE, self.merged_with(requests))
        return [
            Operations(discard, whole_host_pages(merged, requests, context)),
            Operations(discard, reported(requests, context)),
        ]
