"""Measures, at attach, what the system-call probes cost a traced call on this machine."""

from __future__ import annotations

import mmap
import os
import statistics
import threading
import time

from tracer.host_probes import HIT_CALL
from tracer.loader import Program

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

    def traced_ns(self, program: Program) -> float | None:
        """Time the same calls with this thread entered as if it were in a balloon request.

        Args:
            program: bpf/host.bpf.c, its system-call probes attached.

        Returns:
            Nanoseconds that the pair of probes adds to one call, not below 0; None where the probes
            did not know this thread (another PID namespace than the kernel's first).
        """
        before = program.counter(HIT_CALL)
        inflight = program["inflight"]
        key = inflight.Key(os.getpid() << 32 | threading.get_native_id())
        inflight[key] = inflight.Leaf()
        try:
            traced_ns = statistics.median(_batch_ns(self._memory) for _ in range(_BATCHES))
        finally:
            del inflight[key]
            self._memory.close()
        if program.counter(HIT_CALL) - before < _BATCHES * _CALLS:
            return None
        return max(0.0, traced_ns - self._bare_ns)
