"""A VM's threads in the programs' memory: in a request, or with a run of calls open."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tracer.engine import decode
from tracer.engine.maps import Map
from tracer.engine.ring import Records
from tracer.record.live import UnderWay
from tracer.trace.schema import Queue


class VmThreads:
    """The threads of one VM in the map `inflight` of bpf/host_runs.bpf.c.

    Args:
        inflight: The map, which has the threads of every VM.
        pid: The VM's process.
    """

    def __init__(self, inflight: Map, pid: int) -> None:
        self._inflight, self._pid = inflight, pid

    def enter(self, tid: int) -> None:
        """Have all calls of a thread recorded from now on, as if it were in a request."""
        key = self._inflight.Key(self._pid << 32 | tid)
        leaf = self._inflight.Leaf()
        leaf.run.tid = tid
        self._inflight[key] = leaf

    def under_way(self) -> list[UnderWay]:
        """Read which requests were taken and are not returned, in no order."""
        return [
            UnderWay(_queues(leaf.handler), leaf.pop_ns)
            for _, _, leaf in self._threads()
            if leaf.token != decode.NO_REQUEST and leaf.pop_ns  # else it is being filled in
        ]

    def take_dead(self) -> Records:
        """Take threads that have ended out of the map.

        Returns:
            HOST_CALLS[n]: the runs they left open.
        """
        tasks = Path(f"/proc/{self._pid}/task")
        return self._take(lambda tid: not (tasks / str(tid)).exists())

    def take_all(self) -> Records:
        """Take every thread out of the map; HOST_CALLS[n]: the runs they left open."""
        return self._take(lambda _: True)

    def _take(self, is_wanted: Callable[[int], bool]) -> Records:
        runs = []
        for key, tid, leaf in list(self._threads()):
            if not is_wanted(tid):
                continue
            if leaf.run.count:
                runs.append(np.frombuffer(bytes(leaf.run), decode.HOST_CALLS))
            with contextlib.suppress(KeyError):
                del self._inflight[key]
        return np.concatenate(runs) if runs else np.empty(0, decode.HOST_CALLS)

    def _threads(self) -> Iterator[tuple[Any, int, Any]]:
        """Go through the VM's threads: key, thread id, value."""
        for key, leaf in self._inflight.items():
            if key.value >> 32 == self._pid:
                yield key, key.value & 0xFFFFFFFF, leaf


def _queues(handler: int) -> tuple[Queue, ...]:
    """The queues that a handler serves: which of them it is at, its push alone can tell."""
    if handler >= len(decode.HANDLER_QUEUES):
        return ()
    queue = decode.HANDLER_QUEUES[handler]
    return (Queue.INFLATE, Queue.DEFLATE) if queue is Queue.INFLATE else (queue,)
