"""Measures, at attach, what the system-call probes cost a traced call on this machine."""

from __future__ import annotations

import mmap
import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracer.host_engine import HostEngine

_BATCHES = 15
_CALLS = 400


def _batch_ns(memory: mmap.mmap) -> float:
    begin_ns = time.perf_counter_ns()
    for _ in range(_CALLS):
        memory.madvise(mmap.MADV_NORMAL)
    return (time.perf_counter_ns() - begin_ns) / _CALLS


class CallCost:
    """Cost of the entry and exit probes of one madvise, from calls of this process.

    The interpreter's own cost is in both figures and falls out of their difference. Make one before
    the probes attach, call `traced` after.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._bare_ns = statistics.median(_batch_ns(self._memory) for _ in range(_BATCHES))

    def traced_ns(self, engine: HostEngine) -> float | None:
        """Time the same calls with this thread entered as if it were in a balloon request.

        Args:
            engine: The host's programs, their system-call probes attached.

        Returns:
            Nanoseconds that the pair of probes adds to one call, not below 0; None where the probes
            did not know this thread (another PID namespace than the kernel's first).
        """
        with engine.as_if_in_request() as hits:
            traced_ns = statistics.median(_batch_ns(self._memory) for _ in range(_BATCHES))
            seen = hits()
        self._memory.close()
        return None if seen < _BATCHES * _CALLS else max(0.0, traced_ns - self._bare_ns)
