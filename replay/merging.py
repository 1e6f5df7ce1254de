"""What a strategy sorts and merges beside stages b, c and d, so that it can be timed as well.

Whoever merges marks pages in a bitmap and walks it: the driver under the range protocol, the device
under every other. It is done in C over the recorded requests, in the groups that the plan makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from replay.native.gathering import Gathered, Wanted, gather
from replay.ranges import Bools, Int64s
from replay.requests import Requests
from replay.sending import Sending
from replay.strategies.base import Strategy
from replay.strategies.windows import BALLOON
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
        taken_out: bool, one each: what the request names is taken out of its group.
        memory_pages: Of the replayed memory.
    """

    recorded: Sending
    order: Int64s
    group: Int64s
    taken_out: Bools
    memory_pages: int

    def run(self, regions: Sequence[tuple[int, int, int]]) -> Gathered:
        """Merge, timed.

        Args:
            regions: As `replay.native.translate` takes them.
        """
        content = (self.recorded.wire, self.recorded.start, self.recorded.form)
        wanted = Wanted(self.order, self.group, self.taken_out)
        return gather(content, wanted, regions, self.memory_pages)


def merges(strategy: Strategy) -> bool:
    """Whether a strategy sorts; one with a parameter `merge` does where that says so."""
    return strategy.name not in NEVER and bool(getattr(strategy, "merge", True))


def merging(
    strategy: Strategy, requests: Requests, recorded: Sending, memory_pages: int
) -> Merging | None:
    """Say what a strategy has to merge: None where nothing is.

    What inflate requests name is merged with what the strategy says, what deflate requests name
    likewise or taken out of what is held back. A report is merged by itself.

    Args:
        strategy: Whose plan it is.
        requests: What it was made for.
        recorded: The same requests as the guest sent them (`sending` of a plan of `nop`).
        memory_pages: Of the replayed memory.

    Raises:
        TypeError: What the strategy says is not one int64 for each request.
    """
    if not merges(strategy):
        return None
    merged = (Queue.INFLATE,) if strategy.deflated == "left" else BALLOON
    place = np.flatnonzero(np.isin(recorded.queue, merged))
    group = _merged_with(strategy, requests)[recorded.request[place]]
    place, group = place[group >= 0], group[group >= 0]
    taken_out = recorded.queue[place] == Queue.DEFLATE
    taken_out &= strategy.deflated == "taken out"
    if strategy.name not in BLOCKS_ONE_BY_ONE:
        reports = np.flatnonzero(recorded.queue == Queue.REPORTING)
        place = np.concatenate((place, reports))
        group = np.concatenate((group, recorded.request[reports]))
        taken_out = np.concatenate((taken_out, np.zeros(len(reports), np.bool_)))
    if len(place) == 0:
        return None
    return Merging(recorded, place, group, taken_out, memory_pages)


def _merged_with(strategy: Strategy, requests: Requests) -> Int64s:
    """What the strategy says, held to its form: anyone may have written it."""
    found = strategy.merged_with(requests)
    right = isinstance(found, np.ndarray) and found.dtype == np.int64
    if not right or found.shape != (len(requests),):
        raise TypeError(f"merged_with() of {strategy.name} must give one int64 for each request")
    return found
