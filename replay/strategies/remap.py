"""remap: map fresh memory over the range instead of advising on it."""

from __future__ import annotations

from replay.backings import Advice
from replay.plan import Context
from replay.strategies.request import Request


class Remap(Request):
    """`request` with mmap(MAP_FIXED | MAP_ANONYMOUS | MAP_PRIVATE) over each range.

    On a private file mapping it is the only call after which a page reads as zero whatever the file
    holds. Each range may split a mapping in two, and a process may have 65530 of them
    (vm.max_map_count).
    """

    name = "remap"
    source = (
        "Firecracker, vstate/memory.rs (discard_range), for memory mapped from a snapshot's file"
    )

    def advice(self, context: Context) -> Advice:
        """A new mapping, wherever."""
        del context
        return Advice.REMAP
