"""Records the balloon from inside the guest: the driver's requests, why they were made, when."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from tracer import decode, guest_probes
from tracer.capture import (
    DRAIN_LONGEST_S,
    CaptureOptions,
    Gather,
    LossCounter,
    run_loop,
)
from tracer.clock_watch import ClockWatch
from tracer.flight import FlightRecorder
from tracer.guest_probes import Driver, attach_driver
from tracer.machine import (
    balloon_counters,
    balloon_features,
    clock_anchor,
    probe_record,
    read_text,
    side_info,
)
from tracer.ring import Records, Ring
from tracer.trace.manifest import Manifest, ProbeRecord, VmInfo
from tracer.trace.progress import Progress, silent
from tracer.trace.schema import SAMPLES, Caller, Mark, Side
from tracer.trace.sink import Sink


@dataclass(frozen=True, slots=True)
class GuestOptions(CaptureOptions):
    """What the guest's recorder is told; `fentry` None tries fentry and falls back to kprobes."""

    fentry: bool | None = None


def record_guest(
    options: GuestOptions,
    progress: Progress = silent,
    stop: threading.Event | None = None,
    driver: Driver | None = None,
) -> Path:
    """Record this kernel's balloon driver until `stop` is set or the duration has passed.

    Args:
        options: Where to record to.
        progress: Told how many requests were recorded.
        stop: Set it to end the capture.
        driver: The attached probes, where the caller has them already; closed at the end.

    Returns:
        The bundle. What was lost is in its manifest, never an error here.

    Raises:
        MissingPrivilegeError: Not root, no BCC, no BTF, no balloon driver, or no probe attaches.
        TraceError: The bundle exists or cannot be written.
    """
    progress("compile and attach")
    driver = driver or attach_driver(fentry=options.fentry)
    with (
        contextlib.closing(driver.program),
        options.open_sink(options.output, Side.GUEST) as writer,
    ):
        return _GuestCapture(driver, options, writer).run(stop or threading.Event(), progress)


class _GuestCapture:
    """The attached probes of the driver, their ring, and the trace they go to."""

    def __init__(self, driver: Driver, options: GuestOptions, writer: Sink) -> None:
        self._options, self._writer = options, writer
        self._program, self._attached = driver.program, driver.attached
        self._clocks = ClockWatch()
        self._next_seq = 0
        self._strangers = self._partial = 0
        self._batch = Gather(self._write_requests)
        self._requests = Ring(
            self._program.map_fd("requests"), guest_probes.RING_BYTES, decode.GUEST_REQUEST
        )

    def run(self, stop: threading.Event, progress: Progress) -> Path:
        """Record, then close the trace."""
        begin, counted = clock_anchor(), balloon_counters()
        self._writer.mark(Mark.ATTACH, begin[0], text="virtio_balloon")
        self._losses = LossCounter(self._writer, self._lost)
        # First runs are slow, by seconds in an emulated guest: have them before the balloon moves.
        decode.guest_requests(np.zeros(2, decode.GUEST_REQUEST), 0)
        self.sample()
        self._options.ready()
        reason = run_loop(self, self._options, stop, progress)
        end, counters = clock_anchor(), self._counters(counted, balloon_counters())
        self._program.detach()
        self.drain()
        self._requests.close()
        self._batch.flush()
        self._losses.check()
        self._writer.mark(Mark.DETACH, time.monotonic_ns())
        counters["lost_requests"] = sum(self._lost().values())
        side = side_info(
            begin=begin, end=end, detail="requests", probes=self._probes(), counters=counters
        )
        vm = VmInfo(features=balloon_features())
        self._writer.close(Manifest(sides={"guest": side}, vm=vm, complete=True, end_reason=reason))
        return self._options.output

    @property
    def longest_wait_s(self) -> float:
        """How long the ring may go undrained."""
        return DRAIN_LONGEST_S

    def used_share(self) -> float:
        """How full the ring is, 0 to 1."""
        return self._requests.used_share

    def ended(self) -> str | None:
        """Why the trace can hold no more, or None; a guest that ends ends its recorder."""
        return self._writer.stop_reason

    def drain(self) -> int:
        """Take what waits in the ring; return how many records there were."""
        taken = self._batch.add(self._requests.read())
        self._options.tend(self._writer)
        return taken

    def _write_requests(self, records: Records) -> None:
        known = records["queue"] != decode.UNKNOWN_QUEUE
        self._strangers += int(np.count_nonzero(~known))
        records = records[known]
        self._partial += int(np.count_nonzero(records["flags"]))
        self._writer.append("requests", decode.guest_requests(records, self._next_seq))
        self._next_seq += len(records)
        self._mark_events(records)

    def _mark_events(self, records: Records) -> None:
        """Write the marks that requests carry with them: waits for memory, OOM, migration."""
        for record in records[records["puffs"] > 0]:
            self._writer.mark(
                Mark.OUT_OF_PUFF,
                int(record["send_ns"]),
                since_ns=int(record["begin_ns"]) or None,
                value=int(record["puffs"]),
                text="allocation failed; slept",
            )
        for caller, mark in ((Caller.OOM, Mark.OOM_DEFLATE), (Caller.MIGRATION, Mark.MIGRATION)):
            for record in records[records["caller"] == caller]:
                self._writer.mark(mark, int(record["send_ns"]), value=int(record["total"]))

    def sample(self) -> None:
        """Write a row of samples, and what was lost since the last."""
        self._losses.check()
        for mark, ts_ns, since_ns, value in self._clocks.check():
            self._writer.mark(mark, ts_ns, since_ns=since_ns, value=value)
        if isinstance(self._writer, FlightRecorder) and self._options.keep.is_set():
            self._options.keep.clear()
            self.drain()
            self._batch.flush()
            self._writer.request()
        counted = balloon_counters()
        memory = dict(
            line.split(":", 1) for line in (read_text("/proc/meminfo") or "").splitlines()
        )
        available = memory.get("MemAvailable", "").split()
        pressure = (read_text("/proc/pressure/memory") or "").partition("total=")[2].split()
        row = {
            "side": Side.GUEST,
            "ts_ns": time.monotonic_ns(),
            "mem_available_bytes": int(available[0]) * 1024 if available else None,
            "balloon_inflate_pages": counted.get("balloon_inflate"),
            "balloon_deflate_pages": counted.get("balloon_deflate"),
            "psi_some_us": int(pressure[0]) if pressure else None,
        }
        self._writer.append("samples", pa.RecordBatch.from_pylist([row], schema=SAMPLES))

    def _lost(self) -> dict[tuple[str, str], int]:
        return {
            ("requests", "ring"): self._program.counter(guest_probes.LOST_REQUESTS),
            ("requests", "partial"): self._partial,
            ("requests", "stranger"): self._strangers,
        }

    @staticmethod
    def _counters(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
        counters = {f"vmstat_{name}_begin": value for name, value in before.items()}
        return counters | {f"vmstat_{name}_end": value for name, value in after.items()}

    def _probes(self) -> list[ProbeRecord]:
        indices = {
            "send": guest_probes.HIT_TELL,
            "report": guest_probes.HIT_REPORT,
            "kick": guest_probes.HIT_KICK,
            "ack": guest_probes.HIT_ACK,
        }
        hits = {name: self._program.counter(index) for name, index in indices.items()}
        return [
            probe_record(attachment, None, hits.get(attachment.point.name.partition("-")[0]))
            for attachment in self._attached
        ]
