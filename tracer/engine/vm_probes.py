"""What one VM has in the host's programs: its rings, its quota, its counts, its own probes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Sequence
from ctypes import c_int64
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from tracer.engine import decode, decode_calls
from tracer.engine.attach import Attachment
from tracer.engine.map_creation import create_ring, drop_map, put_descriptor
from tracer.engine.ring import Records, Ring
from tracer.engine.threads import VmThreads
from tracer.sites import host_probes
from tracer.sites.host_probes import QemuSites
from tracer.trace.schema import Call

if TYPE_CHECKING:
    from tracer.engine.host_engine import HostEngine

_FLAG_MERGE, _FLAG_ALL_CALLS, _FLAG_NO_CALLS = 1, 2, 4
_REGIONS = 8
"""AEROSTAT_REGIONS of bpf/records.h."""


class Count(IntEnum):
    """Indices of host_vm.counts: enum aerostat_count of bpf/records.h.

    HIT_POP and HIT_PUSH begin the counts of each handler, HIT_CALL those of each Call.
    """

    LOST_REQUESTS = 0
    LOST_CALLS = 1
    QUOTA_REQUESTS = 2
    QUOTA_CALLS = 3
    LOST_INFLATE_PAGES = 4
    LOST_DEFLATE_PAGES = 5
    LOST_OTHER_PAGES = 6
    LOST_PARTS = 7
    LOST_THREADS = 8
    LOST_PIECES = 9
    OUTSIDE_CALLS = 10
    LONE_PUSHES = 11
    HIT_POP = 12
    HIT_POP_REPORT = 13
    HIT_POP_STATS = 14
    HIT_POP_HINT = 15
    HIT_PUSH = 16
    HIT_PUSH_REPORT = 17
    HIT_PUSH_STATS = 18
    HIT_PUSH_HINT = 19
    HIT_CALL = 20
    HIT_FALLOCATE = 21
    HIT_PROCESS_MADVISE = 22
    HIT_MMAP = 23


class Event(IntEnum):
    """Indices of host_vm.events: enum aerostat_event of bpf/records.h."""

    TARGET = 0
    ACTUAL = 1
    RUN_STATE = 2


@dataclass(frozen=True, slots=True)
class EventLog:
    """What is known of one kind of event.

    Attributes:
        count: How many there were since the VM was added.
        latest: (value, ts_ns) of the last few of them, in order.
    """

    count: int
    latest: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Quota:
    """What one VM may put into its rings in a second; a guest decides how much it would.

    The defaults are more than one thread can cause, with a record for each discarded page.
    """

    records_per_s: int = 4_000_000
    bytes_per_s: int = 512 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """One VM to record.

    Attributes:
        pid: Its VMM.
        sites: The balloon's handlers in it; None where they are not known, and every discard of
            guest memory is recorded in place of requests.
        spans: Guest memory: HVAs, half-open; for a VMM whose handlers are not known.
        descriptors: Those of the VMM that lead to the files behind that memory; likewise.
        merge: Whether adjacent calls are merged in the kernel: its ring of calls has HOST_CALLS,
            else HOST_CALL.
        ring_bytes: Size of its ring of calls, a power of two of pages.
        requests_ring_bytes: Size of its ring of requests, likewise.
        quota: Its share of this host's recorder.
        calls: Whether the calls of its requests are recorded; where not, they are passed over even
            if another VM has them probed.
    """

    pid: int
    sites: QemuSites | None
    spans: Sequence[tuple[int, int]]
    descriptors: Collection[int]
    merge: bool
    ring_bytes: int
    requests_ring_bytes: int
    quota: Quota
    calls: bool = True


class VmProbes:
    """One VM's rings, counts and probes.

    Args:
        engine: The programs.
        target: The VM.
        slot: Its place in the arrays of rings.

    Attributes:
        requests: Its ring of requests.
        calls: Its ring of system calls.
        threads: Those of its threads that the programs know.
    """

    def __init__(self, engine: HostEngine, target: Target, slot: int) -> None:
        self._engine, self._target, self._slot = engine, target, slot
        self._vms = engine.program["vms"]
        self._key = self._vms.Key(target.pid)
        self.threads = VmThreads(engine.program["inflight"], target.pid)
        self._detach: Callable[[], None] = lambda: None
        self._resources = contextlib.ExitStack()
        with self._resources:
            self._resources.callback(engine.release, target.pid)
            self.requests = self._ring("requests", decode.HOST_REQUEST, target.requests_ring_bytes)
            of_calls = decode.HOST_CALLS if target.merge else decode_calls.HOST_CALL
            self.calls = self._ring("calls", of_calls, target.ring_bytes)
            self._vms[self._key] = self._leaf()
            self._resources.callback(self._forget)
            self._resources = self._resources.pop_all()

    def _ring(self, name: str, record: np.dtype[np.void], size_bytes: int) -> Ring:
        fd = create_ring(f"{name}_{self._target.pid}", size_bytes)
        self._resources.callback(os.close, fd)
        outer = self._engine.program.map_fd(name)
        put_descriptor(outer, self._slot, fd, f"a ring of {name}")
        self._resources.callback(drop_map, outer, self._slot)
        ring = Ring(fd, size_bytes, record)
        self._resources.callback(ring.close)
        return ring

    def _leaf(self) -> Any:
        target = self._target
        flags = (_FLAG_MERGE if target.merge else 0) | (0 if target.sites else _FLAG_ALL_CALLS)
        flags |= 0 if target.calls else _FLAG_NO_CALLS
        return self._vms.Leaf(
            slot=self._slot,
            flags=flags,
            queue_index_offset=target.sites.queue_index_offset_bytes if target.sites else 0,
            quota_records=target.quota.records_per_s,
            quota_bytes=target.quota.bytes_per_s,
        )

    def _forget(self) -> None:
        with contextlib.suppress(KeyError):
            del self._vms[self._key]

    def attach(self) -> list[Attachment]:
        """Probe the VM's handlers, or begin to record its calls on guest memory.

        Raises:
            ProbeError: The in- and deflate handler cannot be probed.
        """
        target = self._target
        if target.sites is None:
            self._watch_memory()
            return []
        self._engine.time_programs()
        try:
            return host_probes.attach_requests(self._engine.program, target.sites, target.pid)
        finally:
            self._detach = self._engine.program.claim()

    def _watch_memory(self) -> None:
        """Tell the programs which addresses and files are guest memory."""
        memories = self._engine.program["memories"]
        leaf = memories.Leaf()
        for index, (start, end) in enumerate(self._target.spans[:_REGIONS]):
            leaf.begin[index], leaf.end[index] = start, end
        for index, fd in enumerate(sorted(self._target.descriptors)[:_REGIONS]):
            leaf.fd[index], leaf.fd_valid[index] = fd, 1
        memories[memories.Key(self._target.pid)] = leaf

    def counts(self) -> list[int]:
        """Read the counts since the VM was added, by Count."""
        return [int(value) for value in self._vms[self._key].counts]

    def calls_seen(self) -> int:
        """Count the system calls that the probes have seen to their end, of every kind."""
        return sum(self.counts()[Count.HIT_CALL : Count.HIT_CALL + len(Call)])

    def events(self) -> list[EventLog]:
        """Read what QEMU has said of itself, by Event."""
        logs = []
        for event in self._vms[self._key].events:
            held = range(max(0, event.count - len(event.value)), event.count)
            places = [number % len(event.value) for number in held]
            # All are signed in QEMU: a guest may say that it has less memory than none.
            latest = tuple((c_int64(event.value[at]).value, event.ts_ns[at]) for at in places)
            logs.append(EventLog(count=event.count, latest=latest))
        return logs

    def stop(self) -> Records:
        """Detach the VM's probes; its rings and counts stay readable.

        Returns:
            HOST_CALLS[n]: runs that were still open in its threads.
        """
        self._detach()
        memories = self._engine.program["memories"]
        with contextlib.suppress(KeyError):
            del memories[memories.Key(self._target.pid)]
        return self.threads.take_all()

    def close(self) -> None:
        """Detach and free everything of this VM."""
        self._detach()
        self._resources.close()
