"""One set of BPF programs for every VM of this host, and what each VM has of its own in it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from tracer import decode, host_probes
from tracer.attach import Attachment
from tracer.costs import BodyTimes, CostMeter, ProbeCosts
from tracer.errors import ProbeError
from tracer.host_probes import QemuSites
from tracer.libbpf import create_ring, drop_map, put_map
from tracer.probes import HOST_CALL_POINTS, HOST_OTHER_CALL_POINTS, Point
from tracer.pump import Pump
from tracer.ring import Records, Ring

_FLAG_MERGE, _FLAG_ALL_CALLS = 1, 2
_REGIONS = 8
"""AEROSTAT_REGIONS of bpf/records.h."""
_TIMED = ("on_pop_0", "on_push")
"""Programs that run for every request."""
_OWN_SLOT = 0
"""Place of this process itself, without rings: for measuring what the probes cost."""


class Count(IntEnum):
    """Indices of host_vm.counts: enum aerostat_count of bpf/records.h."""

    LOST_REQUESTS = 0
    LOST_CALLS = 1
    QUOTA_REQUESTS = 2
    QUOTA_CALLS = 3
    LOST_INFLATE_PAGES = 4
    LOST_DEFLATE_PAGES = 5
    LOST_OTHER_PAGES = 6
    LOST_PARTS = 7
    LOST_THREADS = 8
    OUTSIDE_CALLS = 9
    HIT_POP = 10
    HIT_PUSH = 11
    HIT_CALL = 12


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
        merge: Whether adjacent calls are merged in the kernel.
        ring_bytes: Size of each of its two rings, a power of two of pages.
        quota: Its share of this host's recorder.
    """

    pid: int
    sites: QemuSites | None
    spans: Sequence[tuple[int, int]]
    descriptors: Collection[int]
    merge: bool
    ring_bytes: int
    quota: Quota


class HostEngine:
    """The compiled programs and the probes that serve every VM: those of the system calls.

    Attributes:
        call_attachments: What became of the system calls' probes.
        costs: What probes cost on this machine, as measured when those attached.

    Args:
        calls: Whether discards are recorded; without it no system call is probed until a VM needs
            it whose handlers are not known.

    Raises:
        BccError: BCC is missing or does not compile the source.
        ProbeError: The kernel refuses the programs.
    """

    def __init__(self, *, calls: bool) -> None:
        self.program = host_probes.compile_host()
        self.pump = Pump()
        self.call_attachments: list[Attachment] = []
        self.costs = ProbeCosts()
        self._bodies: BodyTimes | None = None
        self._free = list(range(host_probes.MAX_VMS - 1, _OWN_SLOT, -1))
        self._detach_calls: list[Callable[[], None]] = []
        self._watch_calls(HOST_CALL_POINTS if calls else ())

    def _watch_calls(self, points: tuple[Point, ...]) -> None:
        meter = CostMeter()
        self._attach_calls(points)
        self.costs = meter.costs(self, self.call_attachments)

    def watch_other_calls(self) -> None:
        """Probe every system call that can give memory back: for a VMM that is not QEMU."""
        done = {attachment.point for attachment in self.call_attachments}
        if not done:
            self._watch_calls(HOST_CALL_POINTS)
        if not done.issuperset(HOST_OTHER_CALL_POINTS):
            self._attach_calls(HOST_OTHER_CALL_POINTS)

    def _attach_calls(self, points: tuple[Point, ...]) -> None:
        self.call_attachments += host_probes.attach_calls(self.program, points)
        self._detach_calls.append(self.program.claim())

    def time_programs(self) -> None:
        """Have the kernel time the programs in the handlers over their first runs from now on."""
        if self._bodies is None:
            self._bodies = BodyTimes(self.program, _TIMED)

    def poll(self) -> None:
        """Stop timing once there were runs enough; call it now and then."""
        if self._bodies is not None:
            self._bodies.poll()

    def hit_ns(self, attachment: Attachment, sites: QemuSites | None) -> float | None:
        """What one hit of an attached probe costs the traced VM; None where nothing was measured.

        Args:
            attachment: The probe.
            sites: Where the uprobes of this VM are.
        """
        if attachment.way is None:
            return None
        timed = self._bodies is not None and attachment.way.program in _TIMED
        body_ns = self._bodies.mean_ns(attachment.way.program) if self._bodies and timed else None
        return self.costs.hit_ns(attachment.way, sites, body_ns)

    def close(self) -> None:
        """Detach what serves every VM, and free the maps."""
        if self._bodies is not None:
            self._bodies.close()
        for detach in self._detach_calls:
            detach()
        self.program.close()

    def __enter__(self) -> HostEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def add(self, target: Target) -> VmProbes:
        """Make a VM known to the programs, with rings of its own; no handler is probed yet.

        Raises:
            ProbeError: There is no room, or the kernel refuses its rings.
        """
        if not self._free:
            raise ProbeError(
                f"cannot record process {target.pid}",
                reason=f"{host_probes.MAX_VMS - 1} VMs are recorded already",
                remedy="start another recorder for it",
            )
        return VmProbes(self, target, self._free.pop())

    def release(self, slot: int) -> None:
        """Take a VM's place back."""
        self._free.append(slot)

    @contextlib.contextmanager
    def as_if_in_request(self) -> Iterator[Callable[[], int]]:
        """Enter the calling thread as if it were handling a request; its calls go to no ring.

        Yields:
            Counts the calls that the probes have seen of it. They see none where this process is
            not in the kernel's first PID namespace.
        """
        vms, inflight = self.program["vms"], self.program["inflight"]
        own = vms.Key(os.getpid())
        thread = inflight.Key(os.getpid() << 32 | threading.get_native_id())
        vms[own] = vms.Leaf(slot=_OWN_SLOT)
        inflight[thread] = inflight.Leaf()
        try:
            yield lambda: int(vms[own].counts[Count.HIT_CALL])
        finally:
            del inflight[thread]
            del vms[own]


class VmProbes:
    """One VM's rings, counts and probes.

    Args:
        engine: The programs.
        target: The VM.
        slot: Its place in the arrays of rings.
    """

    def __init__(self, engine: HostEngine, target: Target, slot: int) -> None:
        self._engine, self._target, self._slot = engine, target, slot
        self._vms = engine.program["vms"]
        self._key = self._vms.Key(target.pid)
        self._detach: Callable[[], None] = lambda: None
        self._resources = contextlib.ExitStack()
        with self._resources:
            self._resources.callback(engine.release, slot)
            self.requests = self._ring("requests", decode.HOST_REQUEST)
            self.calls = self._ring("calls", decode.HOST_CALLS)
            self._vms[self._key] = self._leaf()
            self._resources.callback(self._forget)
            self._resources = self._resources.pop_all()

    def _ring(self, name: str, record: np.dtype[np.void]) -> Ring:
        fd = create_ring(f"{name}_{self._target.pid}", self._target.ring_bytes)
        self._resources.callback(os.close, fd)
        outer = self._engine.program.map_fd(name)
        put_map(outer, self._slot, fd)
        self._resources.callback(drop_map, outer, self._slot)
        ring = Ring(fd, self._target.ring_bytes, record)
        self._resources.callback(ring.close)
        return ring

    def _leaf(self) -> Any:
        target = self._target
        flags = (_FLAG_MERGE if target.merge else 0) | (0 if target.sites else _FLAG_ALL_CALLS)
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

    def events(self) -> list[EventLog]:
        """Read what QEMU has said of itself, by Event."""
        logs = []
        for event in self._vms[self._key].events:
            held = range(max(0, event.count - len(event.value)), event.count)
            places = [number % len(event.value) for number in held]
            latest = tuple((event.value[at], event.ts_ns[at]) for at in places)
            logs.append(EventLog(count=event.count, latest=latest))
        return logs

    def stop(self) -> Records:
        """Detach the VM's probes; its rings and counts stay readable.

        Returns:
            HOST_CALLS[n]: runs that were still open in threads without a request.
        """
        self._detach()
        memories = self._engine.program["memories"]
        with contextlib.suppress(KeyError):
            del memories[memories.Key(self._target.pid)]
        return self._take_threads(lambda _: True)

    def take_dead_threads(self) -> Records:
        """Take threads that have ended out of the programs' memory, with the runs they left open.

        Returns:
            HOST_CALLS[n]: those runs.
        """
        tasks = Path(f"/proc/{self._target.pid}/task")
        return self._take_threads(lambda tid: not (tasks / str(tid)).exists())

    def _take_threads(self, is_wanted: Callable[[int], bool]) -> Records:
        inflight = self._engine.program["inflight"]
        runs = []
        for key, leaf in list(inflight.items()):
            tgid, tid = key.value >> 32, key.value & 0xFFFFFFFF
            if tgid != self._target.pid or not is_wanted(tid):
                continue
            if leaf.token == decode.NO_REQUEST and leaf.run.count:
                runs.append(np.frombuffer(bytes(leaf.run), decode.HOST_CALLS))
            with contextlib.suppress(KeyError):
                del inflight[key]
        return np.concatenate(runs) if runs else np.empty(0, decode.HOST_CALLS)

    def close(self) -> None:
        """Detach and free everything of this VM."""
        self._detach()
        self._resources.close()
