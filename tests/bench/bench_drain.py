"""The drain, alone and on to Arrow: bulk read against BCC's callback; then a sustained flood.

Same program, same ring of 1 MiB, same records: those of `--detail calls`, one for each discard of
a loop of machine code in this thread, entered as if it were handling a request.
"""

from __future__ import annotations

import ctypes
import importlib.resources
import mmap
import os
import threading
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.bench.flood import flooded
from tests.bench.measure import Report, Settings, at_least, at_most, interleaved, run
from tests.standins.build import Did, firecracker_like
from tracer.cost.machine_code import SYSTEM_CALLS, MachineCode
from tracer.engine import decode_calls, vm_probes
from tracer.engine.compiler import import_bcc
from tracer.engine.host_engine import HostEngine
from tracer.engine.ring import Records
from tracer.engine.vm_probes import Quota, Target
from tracer.sites.host_probes import QemuSites

RING_BYTES = 1 << 20
# The kernel leaves at least a byte of a ring free (__bpf_ringbuf_reserve, since 5.8).
IN_RING = (RING_BYTES - 1) // (8 + decode_calls.HOST_CALL.itemsize)
NR_MADVISE = 28
NO_SITES = QemuSites(Path("/proc/self/exe"), None, None, (), {}, 0, {})
UNLIMITED = Quota(records_per_s=1 << 62, bytes_per_s=1 << 62)
GOAL_PER_S = 1_600_000
PACE_PER_S = 1_700_000
IN_VECTORS = (64, 2)
"""Pages of a request, one apart: a vector of as many pieces as one run of a program looks at."""


class Producer:
    """Fills a VM's ring of calls; the VM is this process."""

    def __init__(self) -> None:
        self.engine = HostEngine(calls=True)
        self._code = MachineCode({"calls": SYSTEM_CALLS})
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._page = int(np.frombuffer(self._memory, np.uint8).ctypes.data)
        target = Target(os.getpid(), NO_SITES, (), (), False, RING_BYTES, RING_BYTES, UNLIMITED)
        self.ring_fd, self.probes = self._added(target)
        inflight = self.engine.program["inflight"]
        key = inflight.Key(os.getpid() << 32 | threading.get_native_id())
        inflight[key] = inflight.Leaf(token=0)

    def _added(self, target: Target) -> tuple[int, Any]:
        """Add the VM, and see which descriptor its ring of calls has: BCC wants that."""
        made, create = [], vm_probes.create_ring

        def remembering(name: str, size_bytes: int) -> int:
            made.append(create(name, size_bytes))
            return made[-1]

        vm_probes.create_ring = remembering
        try:
            probes = self.engine.add(target)
        finally:
            vm_probes.create_ring = create
        return made[-1], probes

    def fill(self) -> None:
        """Discard an untouched page until the ring is full."""
        self._code.call("calls", IN_RING, NR_MADVISE, self._page, mmap.PAGESIZE, mmap.MADV_DONTNEED)


class BccReader:
    """What a BCC program does: a callback that casts, rows of Python numbers, then columns."""

    def __init__(self, producer: Producer) -> None:
        layout = decode_calls.HOST_CALL

        class Event(ctypes.Structure):
            _fields_ = [(name, np.ctypeslib.as_ctypes_type(layout[name])) for name in layout.names]

        assert ctypes.sizeof(Event) == layout.itemsize
        self._kind = ctypes.POINTER(Event)
        self._rows: list[tuple[int, ...]] = []
        os.environ["BCC_KERNEL_SOURCE"] = str(importlib.resources.files("bpf") / "headers")
        # A ring of BCC's own making, and then the recorder's in its place.
        table = import_bcc().BPF(text=b"BPF_RINGBUF_OUTPUT(calls, 1);")[b"calls"]
        table.map_fd = producer.ring_fd
        table.open_ring_buffer(self._on_event)
        self._consume = table.bpf.ring_buffer_consume

    def _on_event(self, context: Any, data: int, size: int) -> None:
        event = ctypes.cast(data, self._kind).contents
        self._rows.append(
            (
                event.token,
                event.address,
                event.length_bytes,
                event.first_ns,
                event.last_ns,
                event.advice,
                event.tid,
                event.fd_or_pieces,
                event.error,
                event.call,
                event.later,
            )
        )

    def drain(self) -> list[tuple[int, ...]]:
        """Take what is in the ring, as what a callback gets."""
        self._rows.clear()
        self._consume()
        return self._rows

    def read(self) -> Records:
        """Take what is in the ring, as the recorder has it."""
        return np.array(self.drain(), decode_calls.HOST_CALL)


def to_arrow(records: Records) -> pa.RecordBatch:
    """The same columns for both."""
    zero = np.zeros(len(records), np.int64)
    return decode_calls.host_calls(records, zero, zero)


def measure(settings: Settings, report: Report) -> None:
    """Compare CPU per event, then flood."""
    producer = Producer()
    bcc = BccReader(producer)

    def event_ns(take: Callable[[], Sized]) -> float:
        producer.fill()
        begin_ns = time.thread_time_ns()
        count = len(take())
        took_ns = time.thread_time_ns() - begin_ns
        assert count == IN_RING, count
        return took_ns / count

    ring = producer.probes.calls
    sides = {
        "drain, recorder": lambda: event_ns(ring.read),
        "drain, BCC": lambda: event_ns(bcc.drain),
        "to Arrow, recorder": lambda: event_ns(lambda: to_arrow(ring.read())),
        "to Arrow, BCC": lambda: event_ns(lambda: to_arrow(bcc.read())),
    }
    found = interleaved(sides, Settings(5 * settings.pairs, settings.seed))
    producer.probes.close()
    producer.engine.close()
    report.keep(found)
    for part in ("drain", "to Arrow"):
        ours, theirs = found[f"{part}, recorder"], found[f"{part}, BCC"]
        report.figure(f"CPU per event, {part}, recorder", "ns", ours)
        report.figure(f"CPU per event, {part}, BCC callback", "ns", theirs)
        report.ratio(f"BCC callback over recorder, {part}", (ours, theirs), at_least(150))
    sustain(settings, report)


def sustain(settings: Settings, report: Report) -> None:
    """Record to disk at a steady rate: single calls, and vectors of pages, as fast as one can.

    One thread makes fewer single calls in a second than are to be held here: what leads to the
    probes costs more than they do. Of a vector each page is a record too.
    """
    pieces = firecracker_like("--mem-size-mib", "256", "--discard", "vector")
    steady(settings, report, "sustained", lambda did: did.calls)
    steady(settings, report, "vectors", lambda did: did.pages, *IN_VECTORS, vmm=pieces)
    with flooded(3, detail="calls", ring_bytes=RING_BYTES) as flood:
        report.figure("flat out, rate", "events/s", [flood.did.calls / flood.took_s])
        report.figure("flat out, lost", "%", [100 * flood.lost("calls") / flood.did.calls])


def steady(
    settings: Settings,
    report: Report,
    what: str,
    events: Callable[[Did], int],
    *arguments: int,
    **options: Any,
) -> None:
    """Flood at a pace above the goal for as long as the events take at it."""
    seconds = -(-settings.events // PACE_PER_S)
    options |= {"detail": "calls", "ring_bytes": RING_BYTES}
    with flooded(seconds, PACE_PER_S, *arguments, **options) as flood:
        lost, sent = flood.lost("calls"), events(flood.did)
        assert flood.recorded_calls + lost == sent
        rate = sent / flood.took_s
        report.figure(f"{what}, events", "events", [sent], at_least(settings.events))
        report.figure(f"{what}, rate", "events/s", [rate], at_least(GOAL_PER_S))
        report.figure(f"{what}, lost", "events", [lost], at_most(0))
        kept_ns = flood.cpu_ns / flood.recorded_calls
        report.figure(f"{what}, CPU per event, ring to disk", "ns", [kept_ns])


if __name__ == "__main__":
    run("drain", measure)
