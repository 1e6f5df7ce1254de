"""Records one VM from the host: its rings into its trace, and what is sampled beside them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable

import pyarrow as pa

from tracer.engine.host_engine import HostEngine
from tracer.engine.pump import Pump, PumpedRing
from tracer.engine.ring import Ring
from tracer.engine.ring_size import longest_wait_s
from tracer.engine.vm_probes import Target
from tracer.host_side.guest_map import GuestMap
from tracer.host_side.host_account import Account, Subject
from tracer.host_side.host_events import QuotaEpisodes, VmEvents
from tracer.host_side.host_rows import HostRows
from tracer.host_side.host_tally import Tally
from tracer.record.capture import LossCounter
from tracer.record.clock_watch import ClockEvent
from tracer.record.live import UnderWay, VmStats
from tracer.record.machine import clock_anchor, side_info
from tracer.record.residency import residency_batch
from tracer.record.samples import HostSampler
from tracer.trace.errors import AerostatError
from tracer.trace.manifest import Manifest, Region
from tracer.trace.progress import Progress
from tracer.trace.schema import SAMPLES, Mark, Side
from tracer.trace.sink import Sink
from tracer.vms.process import is_running

EXITED = "vm-exited"
"""Why a trace ends whose VM's process has."""


class HostCapture:
    """The attached probes of one VM, their rings, and the trace they go to.

    Args:
        engine: The programs of this host.
        subject: The VM.
        writer: Where to; closed by `finish`.
        progress: Told what takes time.

    Raises:
        ProbeError: The in- and deflate handler cannot be probed.
        ProcessError: The process is gone or may not be read.
    """

    def __init__(
        self, engine: HostEngine, subject: Subject, writer: Sink, progress: Progress
    ) -> None:
        self.subject = subject
        self._engine, self._writer = engine, writer
        self._memory = GuestMap(subject.vmm)
        self._tally = Tally()
        self._sampler = HostSampler(subject.vmm.pid)
        self._rows = HostRows(
            writer, self._memory, calls_observed=subject.calls_observed, tally=self._tally
        )
        self._resources = contextlib.ExitStack()
        with self._resources:
            self._pidfd = subject.vmm.hold()
            self._resources.callback(os.close, self._pidfd)
            self._probes = engine.add(
                Target(
                    pid=subject.vmm.pid,
                    sites=subject.sites,
                    spans=self._memory.spans,
                    descriptors=self._memory.descriptors,
                    merge=subject.settings.detail != "calls",
                    ring_bytes=subject.settings.ring_bytes,
                    requests_ring_bytes=subject.settings.requests_ring_bytes,
                    quota=subject.settings.quota,
                    calls=subject.calls_observed,
                )
            )
            self._resources.callback(self._probes.close)
            detail, settings = subject.settings.detail, subject.settings
            requests_s = longest_wait_s("requests", settings.requests_ring_bytes)
            self._requests = self._pumped(engine.pump, self._probes.requests, requests_s)
            calls_s = longest_wait_s(detail, settings.ring_bytes)
            self._calls = self._pumped(engine.pump, self._probes.calls, calls_s)
            self._events = VmEvents(self._probes, writer, subject.vmm.pid, self._to_scan)
            self._account = Account(engine, self._probes, self._rows, subject.sites)
            self._losses = LossCounter(writer, self._account.lost)
            self._quota = QuotaEpisodes(self._account.refused, writer)
            # Before the first request can wait in a ring: a scan of much memory takes seconds.
            progress("scan resident memory")
            scanned = self._to_scan()
            residency = residency_batch(subject.vmm.pid, scanned, time.monotonic_ns())
            writer.expect(self._expected())
            if subject.sites is None:
                engine.watch_other_calls()
            attached = (*self._probes.attach(), *subject.unreached())
            # Calls that are probed for another VM's sake alone are none of this one's points.
            of_calls = engine.call_attachments if subject.calls_observed else ()
            self._account.attached = [*of_calls, *attached]
            self._begin = clock_anchor()
            self._read_ns = self._begin[0]
            self._actual_begin = self._ask_actual()
            self.describe()
            writer.append("residency", residency)
            writer.mark(Mark.ATTACH, self._begin[0], text=f"pid {subject.vmm.pid}")
            self._resources = self._resources.pop_all()

    def close(self) -> None:
        """Detach and free; the writer is the caller's."""
        self._resources.close()

    def _pumped(self, pump: Pump, ring: Ring, longest_s: float) -> PumpedRing:
        pumped = pump.add(ring, longest_s)
        self._resources.callback(pump.remove, pumped)
        return pumped

    def used_share(self) -> float:
        """How full the memory is that its rings are emptied into, 0 to 1."""
        return max(self._requests.used_share, self._calls.used_share)

    def drain(self) -> int:
        """Take what waits in the rings; return how many request records there were.

        Requests first, so that their calls are there by then.
        """
        self._read_ns = time.monotonic_ns()
        taken = sum(self._rows.add_requests(part) for part in self._requests.parts())
        for part in self._calls.parts():
            self._rows.add_calls(part)
        self._events.look()
        return taken

    def ended(self) -> str | None:
        """Why the VM cannot be recorded any further, or None."""
        if not is_running(self._pidfd):
            return EXITED
        return self._events.end_reason or self._writer.stop_reason

    def flush(self) -> None:
        """Write every row that waits to become a batch worth its while."""
        self.drain()
        self._rows.flush()

    def describe(self) -> None:
        """Tell the trace what is known by now: what probes cost is, once they have run."""
        self._writer.describe(self._manifest(None, {}, ""))

    def note_clocks(self, events: Iterable[ClockEvent]) -> None:
        """Mark that this machine slept, or that its wall clock was set."""
        for mark, ts_ns, since_ns, value in events:
            self._writer.mark(mark, ts_ns, since_ns=since_ns, value=value)

    def sample(self) -> None:
        """Write a row of samples, what was lost, and where `actual` has got to."""
        self._engine.poll()
        self._losses.check()
        self._quota.look()
        self._events.mark_actual()
        if self.subject.sites is None:
            self._rows.add(self._requests.read(), self._probes.threads.take_dead())
        if self.subject.settings.counts_only:
            return
        row = self._sample_row()
        if row is not None:
            self._writer.append("samples", pa.RecordBatch.from_pylist([row], schema=SAMPLES))

    def finish(self, reason: str) -> None:
        """Detach, write what is left, and close the trace.

        Args:
            reason: Why the recording ends.
        """
        pid, actual_end = self.subject.vmm.pid, self._ask_actual()
        if reason == EXITED:
            self._writer.mark(Mark.VM_EXIT, time.monotonic_ns(), text=f"pid {pid} ended")
        end = clock_anchor()
        left_open = self._probes.stop()
        self.drain()
        self._rows.add(self._requests.read(), left_open)
        self._rows.finish()
        self._events.mark_actual()
        self._losses.check()
        self._quota.look()
        self._quota.close()
        self._writer.mark(Mark.DETACH, time.monotonic_ns())
        counters = self._account.counters() | {"misplaced_requests": self._memory.misplaced}
        if self._actual_begin is not None and actual_end is not None:
            counters |= {"actual_bytes_begin": self._actual_begin, "actual_bytes_end": actual_end}
        self._writer.close(self._manifest(end, counters, reason))

    def under_way(self) -> list[UnderWay]:
        """Read which requests the VMM is at right now."""
        return self._probes.threads.under_way()

    def stats(self) -> VmStats:
        """Sum up what was seen so far."""
        tally, vmm, observed = self._tally, self.subject.vmm, self.subject.calls_observed
        return VmStats(
            name=self.subject.name,
            pid=vmm.pid,
            uuid=vmm.uuid,
            ts_ns=self._read_ns,
            memory_bytes=vmm.memory_bytes,
            actual_bytes=self._events.actual_bytes,
            target_bytes=self._events.target_bytes,
            pages=dict(tally.pages),
            requests=dict(tally.requests),
            runs=tally.runs,
            discard_calls=tally.discard_calls if observed else None,
            discard_ns=tally.discard_ns if observed else None,
            discard_bytes=tally.discard_bytes if observed else None,
            busy_ns=tally.busy_ns,
            longest_ns=tally.longest_ns,
            lost=self._losses.by_cause,
            written_bytes=self._writer.written_bytes,
            probe_ns=self._account.probe_ns(),
            queues=self._account.queues(),
        )

    def _expected(self) -> tuple[str, ...]:
        """The tables that get rows from now on; in a flood, in the first moment.

        Not marks: the first of them, and with it their segment, says that the probes are attached.
        """
        calls = ("calls",) if self.subject.calls_observed else ()
        return ("residency", "samples", "requests", *calls)

    def _to_scan(self) -> tuple[Region, ...]:
        """What of the guest's memory is looked at for residency."""
        return () if self.subject.settings.counts_only else self._memory.regions

    def _ask_actual(self) -> int | None:
        try:
            return (
                self.subject.settings.actual_bytes() if self.subject.settings.actual_bytes else None
            )
        except AerostatError:
            return None  # The monitor went away with the VM: not observed.

    def _sample_row(self) -> dict[str, int | None] | None:
        sample = self._sampler.sample()
        if sample is None:
            return None
        asked = self._ask_actual()
        if asked is None or asked < 0:
            asked = self._events.actual_bytes
        return {
            "side": Side.HOST,
            **sample,
            "balloon_actual_bytes": asked,
            "balloon_target_bytes": self._events.target_bytes,
        }

    def _manifest(
        self, end: tuple[int, int] | None, counters: dict[str, int], reason: str
    ) -> Manifest:
        side = side_info(
            begin=self._begin,
            end=end,
            detail=self.subject.settings.detail,
            probes=self._account.probe_records(),
            counters={
                **counters,
                "ring_bytes": self.subject.settings.ring_bytes,
                "requests_ring_bytes": self.subject.settings.requests_ring_bytes,
            },
        )
        return Manifest(
            sides={"host": side},
            vm=self.subject.info(),
            regions=self._memory.regions,
            complete=True,
            end_reason=reason,
            scenario=self.subject.settings.scenario,
        )
