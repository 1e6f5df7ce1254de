"""What a strategy sorts and merges beside stages b, c and d, so that it can be timed as well.

Whoever merges marks pages in a bitmap and walks it: the driver under the range protocol, the device
under every other. It is done in C over the recorded requests, in the groups that the plan makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from replay.native.gathering import Gathered, gather
from replay.plan import Plan
from replay.ranges import Int64s
from replay.requests import Requests
from replay.sending import Sending
from replay.strategies.base import Strategy
from tracer.trace.schema import Queue

NEVER = frozenset({"nop", "qemu", "adjacent"})
"""Strategies that take pages as they come; `adjacent` compares each with the one before alone."""
BLOCKS_ONE_BY_ONE = frozenset({"batch", "range", "scatter"})
"""Strategies that merge what is inflated, and leave reported blocks as they are."""


@dataclass(frozen=True, eq=False)
class Merging:
    """Recorded requests, and which of them are merged together.

    Args:
        recorded: All requests as the guest sent them.
        order: int64: places in `recorded`, in the order of merging.
        group: int64, one each; equal neighbours are merged together.
        memory_pages: Of the replayed memory.
    """

    recorded: Sending
    order: Int64s
    group: Int64s
    memory_pages: int

    def run(self, regions: Sequence[tuple[int, int, int]]) -> Gathered:
        """Merge, timed.

        Args:
            regions: As `replay.native.translate` takes them.
        """
        content = (self.recorded.wire, self.recorded.start, self.recorded.form)
        return gather(content, self.order, self.group, regions, self.memory_pages)


def merges(strategy: Strategy) -> bool:
    """Whether a strategy sorts; one with a parameter `merge` does where that says so."""
    return strategy.name not in NEVER and bool(getattr(strategy, "merge", True))


def merging(
    strategy: Strategy, plan: Plan, requests: Requests, recorded: Sending, memory_pages: int
) -> Merging | None:
    """Say what has to be merged for a plan: None where nothing is.

    An inflate request is merged with all others that the plan serves at the same arrival, and with
    those that are sent together where the driver merges: it does so on deflate as well. A report is
    merged by itself.

    Args:
        strategy: Whose plan it is.
        plan: The plan.
        requests: What it was made for.
        recorded: The same requests as the guest sent them (`sending` of a plan of `nop`).
        memory_pages: Of the replayed memory.
    """
    if not merges(strategy):
        return None
    driver = plan.protocol != "pfns"
    merged = (Queue.INFLATE, Queue.DEFLATE) if driver else (Queue.INFLATE,)
    place = np.flatnonzero(np.isin(recorded.queue, merged))
    group = _arrivals(plan, requests, recorded.request[place])
    place, group = place[group >= 0], group[group >= 0]
    if strategy.name not in BLOCKS_ONE_BY_ONE:
        reports = np.flatnonzero(recorded.queue == Queue.REPORTING)
        place = np.concatenate((place, reports))
        group = np.concatenate((group, recorded.request[reports]))
    if len(place) == 0:
        return None
    return Merging(recorded, place, group, memory_pages)


def _arrivals(plan: Plan, requests: Requests, named: Int64s) -> Int64s:
    """The arrival at which the plan serves each request, -1 for what it never does."""
    arrivals = plan.request if plan.protocol == "pfns" else plan.sent_request
    served = np.unique(arrivals[requests.queue[arrivals] != Queue.REPORTING])
    if len(served) == 0:
        return np.full(len(named), -1, np.int64)
    at = np.searchsorted(served, named)
    found: Int64s = np.where(at < len(served), served[np.minimum(at, len(served) - 1)], -1)
    return found
