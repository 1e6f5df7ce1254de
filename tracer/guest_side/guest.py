"""Records the balloon from inside the guest: the driver's requests, why they were made, when."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from tracer.engine.attach import Attachment
from tracer.engine.ring import Ring
from tracer.guest_side.guest_rows import GuestRows
from tracer.guest_side.guest_state import balloon_size, under_way
from tracer.record.capture import DRAIN_LONGEST_S, CaptureOptions, LossCounter, run_loop
from tracer.record.clock_watch import ClockWatch
from tracer.record.flight import FlightRecorder
from tracer.record.machine import (
    balloon_counters,
    balloon_features,
    clock_anchor,
    probe_record,
    side_info,
)
from tracer.record.samples import guest_sample
from tracer.sites.guest_probes import RINGS, Count, Driver, attach_driver
from tracer.trace.manifest import Manifest, ProbeRecord, VmInfo
from tracer.trace.progress import Progress, silent
from tracer.trace.schema import SAMPLES, Mark, Side
from tracer.trace.sink import Sink

_LOOK_S = 0.25
"""Time between two looks of a flight recorder at requests that are not answered."""
_HITS = {
    "send": Count.HIT_TELL,
    "report": Count.HIT_REPORT,
    "kick": Count.HIT_KICK,
    "ack": Count.HIT_ACK,
    "hint": Count.HIT_HINT,
    "hint-id": Count.HIT_HINT_ID,
    "hint-block": Count.HIT_HINT_BLOCK,
    "stats": Count.HIT_STATS,
}
"""By a point's name, or by its first word where all points of that have one count."""


@dataclass(frozen=True, slots=True)
class GuestOptions(CaptureOptions):
    """What the guest's recorder is told.

    Attributes:
        fentry: True or False to insist on fentry or on kprobes; None tries fentry first.
        ring_bytes: Size of each of its rings, a power of two of pages; None for what is usual.
    """

    fentry: bool | None = None
    ring_bytes: int | None = None


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
    driver = driver or attach_driver(fentry=options.fentry, ring_bytes=options.ring_bytes)
    with (
        contextlib.closing(driver.program),
        contextlib.closing(driver.cost),
        options.open_sink(options.output, Side.GUEST) as writer,
    ):
        return _GuestCapture(driver, options, writer).run(stop or threading.Event(), progress)


class _GuestCapture:
    """The attached probes of the driver, their rings, and the trace they go to."""

    def __init__(self, driver: Driver, options: GuestOptions, writer: Sink) -> None:
        self._options, self._writer = options, writer
        self._program, self._attached, self._cost = driver.program, driver.attached, driver.cost
        self._clocks = ClockWatch()
        self._rows = GuestRows(writer)
        self._ring_bytes = driver.ring_bytes
        self._rings = {
            name: Ring(self._program.map_fd(name), driver.ring_bytes[name], record)
            for name, record in RINGS.items()
        }
        self._next_look_s = 0.0

    def run(self, stop: threading.Event, progress: Progress) -> Path:
        """Record, then close the trace."""
        self._writer.expect(("samples", "requests"))
        self._begin, counted = clock_anchor(), _counted("begin")
        self._writer.describe(self._manifest(None, counted, ""))
        self._writer.mark(Mark.ATTACH, self._begin[0], text="virtio_balloon")
        self._losses = LossCounter(self._writer, self._lost)
        # Before the balloon moves: in an emulated guest a first run takes seconds.
        self._rows.warm_up()
        self.sample()
        self._options.ready()
        reason = run_loop(self, self._options, stop, progress)
        end = clock_anchor()
        counted |= _counted("end")
        probes = self._probes()
        self._cost.close()
        self._program.detach()
        self.drain()
        for ring in self._rings.values():
            ring.close()
        self._rows.finish()
        self._mark(final=True)
        self._losses.check()
        self._writer.mark(Mark.DETACH, time.monotonic_ns())
        manifest = self._manifest(end, counted | self._counters(), reason, probes)
        self._writer.close(manifest)
        self._options.tell_dumps(self._writer)
        return self._options.output

    def _manifest(
        self,
        end: tuple[int, int] | None,
        counters: dict[str, int],
        reason: str,
        probes: list[ProbeRecord] | None = None,
    ) -> Manifest:
        """Describe this side; `probes` as they are where None, which takes them attached."""
        side = side_info(
            begin=self._begin,
            end=end,
            detail="requests",
            probes=self._probes() if probes is None else probes,
            counters=counters,
        )
        vm = VmInfo(features=balloon_features())
        return Manifest(sides={"guest": side}, vm=vm, complete=True, end_reason=reason)

    @property
    def longest_wait_s(self) -> float:
        """How long the rings may go undrained."""
        return DRAIN_LONGEST_S

    def used_share(self) -> float:
        """How full the fullest ring is, 0 to 1."""
        return max(ring.used_share for ring in self._rings.values())

    def ended(self) -> str | None:
        """Why the trace can hold no more, or None; a guest that ends ends its recorder."""
        return self._writer.stop_reason

    def drain(self) -> int:
        """Take what waits in the rings; return how many records there were."""
        taken = self._take()
        self._cost.poll()
        if isinstance(self._writer, FlightRecorder):
            self._look_for_stalls(self._writer)
            if self._writer.is_due:
                self._flush()
        self._options.tend(self._writer)
        return taken

    def _take(self) -> int:
        now_ns = time.monotonic_ns()
        return self._rows.add(now_ns, **{name: ring.read() for name, ring in self._rings.items()})

    def _flush(self) -> None:
        """Write every row and mark that waits, for a dump."""
        self._rows.flush()
        self._mark(final=True)

    def _look_for_stalls(self, flight: FlightRecorder) -> None:
        """Show the requests that the host has not answered, now and then."""
        now_s = time.monotonic()
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + _LOOK_S
            flight.under_way(under_way(self._program["slots"]))

    def sample(self) -> None:
        """Write a row of samples, what was lost, and the marks that are due."""
        self._losses.check()
        self._mark()
        for mark, ts_ns, since_ns, value in self._clocks.check():
            self._writer.mark(mark, ts_ns, since_ns=since_ns, value=value)
        if isinstance(self._writer, FlightRecorder):
            self._writer.watch(balloon_size(self._program["state"][0], time.monotonic_ns()))
            if self._options.keep.is_set():
                self._options.keep.clear()
                self._writer.request()  # The next `drain` writes what waits, and dumps.
        row = {"side": Side.GUEST, **guest_sample()}
        self._writer.append("samples", pa.RecordBatch.from_pylist([row], schema=SAMPLES))

    def _mark(self, *, final: bool = False) -> None:
        self._rows.flush_events()
        state = self._program["state"][0]
        if state.actual_ns:
            self._rows.marks.actual(state.actual_pages, state.actual_ns)
        self._rows.marks.flush(time.monotonic_ns(), final=final)

    def _lost(self) -> dict[tuple[str, str], int]:
        full = self._program.counter(Count.LOST_REQUESTS) + self._program.counter(Count.LOST_EVENTS)
        return {
            ("requests", "ring"): full,
            ("requests", "partial"): self._rows.partial,
            ("requests", "stranger"): self._rows.strangers,
            ("marks", "ring"): self._program.counter(Count.LOST_MARKS),
        }

    def _counters(self) -> dict[str, int]:
        """What was lost, and how large the rings were."""
        lost = sum(count for (stream, _), count in self._lost().items() if stream == "requests")
        return {
            "lost_requests": lost,
            "lost_inflate_pages": self._program.counter(Count.LOST_INFLATE_PAGES),
            "lost_deflate_pages": self._program.counter(Count.LOST_DEFLATE_PAGES),
            **{f"{name}_ring_bytes": size for name, size in self._ring_bytes.items()},
        }

    def _probes(self) -> list[ProbeRecord]:
        """Say of every probe what it costs and how often it was hit; while they are attached."""
        return [
            probe_record(attachment, self._cost.hit_ns(attachment), self._hits(attachment))
            for attachment in self._attached
        ]

    def _hits(self, attachment: Attachment) -> int | None:
        """How often a point was hit for the balloon, where the programs count that."""
        name = attachment.point.name
        index = _HITS.get(name, _HITS.get(name.partition("-")[0]))
        return None if index is None else self._program.counter(index)


def _counted(when: str) -> dict[str, int]:
    """Read the kernel's own counts, and when that was over: counters of the manifest."""
    counted = {f"vmstat_{name}_{when}": value for name, value in balloon_counters().items()}
    return counted | {f"counted_{when}_ns": time.monotonic_ns()}
