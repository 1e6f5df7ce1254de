"""Records one VM's balloon from the host: QEMU's requests and the discards they cause."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tracer import decode, host_probes
from tracer.attach import Attachment
from tracer.call_cost import CallCost
from tracer.capture import (
    CaptureOptions,
    Gather,
    LossCounter,
    Records,
    Source,
    run_loop,
)
from tracer.host_probes import QemuSites
from tracer.machine import clock_anchor, probe_record, read_text, side_info
from tracer.memory_map import MemoryMap, find_regions
from tracer.privilege import require_root
from tracer.residency import residency_batch
from tracer.ring import Ring
from tracer.trace.errors import AerostatError
from tracer.trace.manifest import Manifest, ProbeRecord, VmInfo
from tracer.trace.progress import Progress, silent
from tracer.trace.schema import SAMPLES, Mark, Side
from tracer.trace.writer import TraceWriter
from tracer.vmm import Vmm, inspect, is_running

DETAILS = ("requests", "discards", "calls")
"""requests: every PFN, no system-call probe; discards: and the calls, adjacent ones merged in the
kernel; calls: every single call."""


RING_BYTES = {
    "requests": host_probes.REQUEST_RING_BYTES,
    "calls": host_probes.CALL_RING_BYTES,
}


@dataclass(frozen=True, slots=True)
class HostOptions(CaptureOptions):
    """What the host's recorder is told.

    Attributes:
        pid: The QEMU process.
        detail: One of DETAILS.
        actual_bytes: Reads the device's `actual` (guest memory without the balloon) over QMP, where
            the caller has a monitor connection.
        vm_name: Name for the manifest; the command line's where None.
        scenario: What is being done to the VM, for the manifest.
    """

    pid: int = field(kw_only=True)
    detail: str = field(default="discards", kw_only=True)
    actual_bytes: Callable[[], int] | None = field(default=None, kw_only=True)
    vm_name: str | None = field(default=None, kw_only=True)
    scenario: str | None = field(default=None, kw_only=True)


def record_host(
    options: HostOptions, progress: Progress = silent, stop: threading.Event | None = None
) -> Path:
    """Record until `stop` is set, the duration has passed or the VM exits.

    Args:
        options: What to record and where to.
        progress: Told how many requests were recorded.
        stop: Set it to end the capture.

    Returns:
        The bundle. What was lost is in its manifest, never an error here.

    Raises:
        ProcessError: The pid is no QEMU.
        SymbolError: QEMU's balloon handlers are not found.
        MissingPrivilegeError: Not root, no BCC, or a required probe does not attach.
        TraceError: The bundle exists or cannot be written.
    """
    if options.detail not in DETAILS:
        raise AerostatError(
            f"there is no detail {options.detail!r}", remedy=f"choose of {', '.join(DETAILS)}"
        )
    vmm = inspect(options.pid)
    require_root(f"process {options.pid}")
    progress("find probe sites")
    sites = host_probes.find_sites(options.pid)
    with (
        TraceWriter(options.output, Side.HOST, force=options.force) as writer,
        _HostCapture(vmm, sites, options, writer, progress) as capture,
    ):
        return capture.run(stop or threading.Event(), progress)


class _HostCapture:
    """The attached probes of one VM, their rings, and the trace they go to."""

    def __init__(
        self,
        vmm: Vmm,
        sites: QemuSites,
        options: HostOptions,
        writer: TraceWriter,
        progress: Progress,
    ) -> None:
        self._vmm, self._sites, self._options, self._writer = vmm, sites, options, writer
        self._map = MemoryMap(find_regions(vmm))
        self._calls = options.detail != "requests"
        self._resources = contextlib.ExitStack()
        self._attached: list[Attachment] = []
        self._call_cost_ns: float | None = None
        self._held = np.empty(0, decode.HOST_REQUEST)
        self._early = np.empty(0, decode.HOST_CALLS)
        self._last_seq = -1
        self._request_batch = Gather(self._write_requests)
        self._call_batch = Gather(self._write_calls)
        self._strangers = self._partial = self._misplaced = 0
        with self._resources:
            self._pidfd = os.pidfd_open(vmm.pid)
            self._resources.callback(os.close, self._pidfd)
            progress("compile and attach")
            self._program = self._resources.enter_context(
                host_probes.compile_host(
                    sites, calls=self._calls, merge=options.detail == "discards"
                )
            )
            self._requests = self._ring("requests", decode.HOST_REQUEST)
            self._call_runs = self._ring("calls", decode.HOST_CALLS)
            cost = CallCost()
            if self._calls:
                self._attached = host_probes.attach_calls(self._program)
                self._call_cost_ns = cost.traced_ns(self._program)
                # What this thread did to measure the cost is not the VM's: drop it.
                self._call_runs.read()
            self._own_calls = self._program.counter(host_probes.HIT_CALL)
            # Before the first request can wait in a ring: a scan of much memory takes seconds.
            progress("scan resident memory")
            self._residency = residency_batch(vmm.pid, self._map.regions, time.monotonic_ns())
            self._losses = LossCounter(writer, self._lost)
            self._attached += host_probes.attach_requests(self._program, sites, vmm.pid)
            self._resources = self._resources.pop_all()

    def __enter__(self) -> _HostCapture:
        return self

    def __exit__(self, *exc: object) -> None:
        self._resources.close()

    def _ring(self, name: str, record: np.dtype[np.void]) -> Ring:
        ring = Ring(self._program.map_fd(name), RING_BYTES[name], record)
        self._resources.callback(ring.close)
        return ring

    def run(self, stop: threading.Event, progress: Progress) -> Path:
        """Record, then close the trace."""
        begin = clock_anchor()
        actual_begin = self._actual()
        self._writer.describe(self._manifest(begin, None, {}, ""))
        self._writer.append("residency", self._residency)
        self._writer.mark(Mark.ATTACH, begin[0], text=f"pid {self._vmm.pid}")
        source = Source(
            self._drain,
            lambda: max(self._requests.used_share, self._call_runs.used_share),
            self._sample,
            self._lost,
            lambda: is_running(self._pidfd),
        )
        self._options.ready()
        reason = run_loop(source, self._losses, self._options, stop, progress)
        actual_end = self._actual()
        if reason == "vm-exited":
            self._writer.mark(Mark.VM_EXIT, time.monotonic_ns(), text=f"pid {self._vmm.pid} ended")
        end = clock_anchor()
        self._program.detach()
        self._drain()
        self._flush()
        self._losses.check()
        self._writer.mark(Mark.DETACH, time.monotonic_ns())
        counters = self._counters(actual_begin, actual_end)
        self._writer.close(self._manifest(begin, end, counters, reason))
        return self._options.output

    def _drain(self) -> int:
        """Take what waits in the rings; requests first, so that their calls are there by then."""
        taken = self._request_batch.add(self._requests.read())
        self._call_batch.add(self._call_runs.read())
        return taken

    def _flush(self) -> None:
        self._request_batch.flush()
        self._write_whole(self._held)
        self._call_batch.flush()
        self._write_calls(np.empty(0, decode.HOST_CALLS))

    def _write_calls(self, records: Records) -> None:
        """Write the calls of requests that are written; those of one still under way wait.

        What waits at the end belongs to a request that the capture did not see to its end.
        """
        records = np.concatenate((self._early, records))
        is_early = records["seq"].astype(np.int64) > self._last_seq
        self._early, records = records[is_early], records[~is_early]
        self._writer.append("calls", decode.host_calls(records, self._gpa(records)))

    def _write_requests(self, records: Records) -> None:
        """Write whole requests; the chunks of one that is still to be completed wait."""
        records = np.concatenate((self._held, records))
        whole = len(records)
        if whole and not decode.is_last_chunk(records[-1:])[0]:
            whole = int(np.flatnonzero(records["seq"] == records["seq"][-1])[0])
        self._held = records[whole:]
        self._write_whole(records[:whole])

    def _write_whole(self, records: Records) -> None:
        if len(records):
            self._last_seq = max(self._last_seq, int(records["seq"].max()))
        known = decode.host_queues(records) != decode.UNKNOWN_QUEUE
        self._strangers += int(np.count_nonzero(~known))
        records = records[known]
        self._partial += int(np.count_nonzero((records["flags"] != 0) & (records["chunk"] == 0)))
        self._check_map(records)
        self._writer.append("requests", decode.host_requests(records, calls_observed=self._calls))

    def _gpa(self, calls: Records) -> npt.NDArray[np.int64]:
        is_madvise = calls["call"] == 0
        by_address = self._map.gpa_of_hva(calls["address"])
        return np.where(is_madvise, by_address, self._map.gpa_of_offset(calls["address"]))

    def _check_map(self, records: Records) -> None:
        """Count requests whose own descriptor lies elsewhere than the memory map says."""
        if not self._map.regions:
            return
        expected = self._map.gpa_of_hva(records["first_hva"])
        self._misplaced += int(np.count_nonzero(expected != records["first_gpa"].astype(np.int64)))

    def _actual(self) -> int | None:
        try:
            return self._options.actual_bytes() if self._options.actual_bytes else None
        except AerostatError:
            return None  # The monitor went away with the VM: not observed.

    def _sample(self) -> None:
        pages = read_text(f"/proc/{self._vmm.pid}/statm")
        stat = read_text(f"/proc/{self._vmm.pid}/stat")
        if pages is None or stat is None:
            return
        row = {
            "side": Side.HOST,
            "ts_ns": time.monotonic_ns(),
            "balloon_actual_bytes": self._actual(),
            "rss_bytes": int(pages.split()[1]) * os.sysconf("SC_PAGE_SIZE"),
            # Field 10 of proc(5) stat, counted after the name, which may hold spaces.
            "minor_faults": int(stat.rpartition(")")[2].split()[7]),
        }
        self._writer.append("samples", pa.RecordBatch.from_pylist([row], schema=SAMPLES))

    def _lost(self) -> dict[str, int]:
        return {
            "requests": self._program.counter(host_probes.LOST_REQUESTS)
            + self._strangers
            + self._partial,
            "calls": self._program.counter(host_probes.LOST_CALLS),
        }

    def _counters(self, actual_begin: int | None, actual_end: int | None) -> dict[str, int]:
        lost = self._lost()
        counters = {
            "lost_requests": lost["requests"],
            "lost_calls": lost["calls"],
            "misplaced_requests": self._misplaced,
        }
        if actual_begin is not None and actual_end is not None:
            counters |= {"actual_bytes_begin": actual_begin, "actual_bytes_end": actual_end}
        return counters

    def _probes(self) -> list[ProbeRecord]:
        hits = {
            "pop": self._program.counter(host_probes.HIT_POP),
            "push": self._program.counter(host_probes.HIT_PUSH),
            "call": self._program.counter(host_probes.HIT_CALL) - self._own_calls,
        }
        return [self._probe(attachment, hits) for attachment in self._attached]

    def _probe(self, attachment: Attachment, hits: dict[str, int]) -> ProbeRecord:
        name = attachment.point.name
        if name.endswith(("-enter", "-exit")):
            # Entry and exit are measured as a pair; the programs' shares cannot be told apart.
            half = None if self._call_cost_ns is None else self._call_cost_ns / 2
            return probe_record(attachment, half, hits["call"])
        return probe_record(attachment, None, hits[name.rpartition("-")[2]])

    def _manifest(
        self,
        begin: tuple[int, int],
        end: tuple[int, int] | None,
        counters: dict[str, int],
        reason: str,
    ) -> Manifest:
        vmm = self._vmm
        return Manifest(
            sides={
                "host": side_info(
                    begin=begin,
                    end=end,
                    detail=self._options.detail,
                    probes=self._probes(),
                    counters=counters,
                )
            },
            vm=VmInfo(
                name=self._options.vm_name or vmm.name,
                uuid=vmm.uuid,
                pid=vmm.pid,
                exe=vmm.exe.name,
                build_id=self._sites.build_id,
                vmm="qemu",
                vmm_version=self._sites.version,
                memory_bytes=vmm.memory_bytes,
                vcpus=vmm.vcpus,
                accel=vmm.accel,
            ),
            regions=self._map.regions,
            complete=True,
            end_reason=reason,
            scenario=self._options.scenario,
        )
