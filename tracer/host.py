"""Records VMs from their host: what QEMU's balloon is asked to do, and the discards it does."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tracer import host_probes
from tracer.capture import CaptureOptions, run_loop
from tracer.host_account import Subject
from tracer.host_capture import HostCapture
from tracer.host_engine import HostEngine, Quota
from tracer.privilege import require_root
from tracer.ring_size import ring_bytes
from tracer.trace.errors import AerostatError
from tracer.trace.progress import Progress, silent
from tracer.trace.schema import Side
from tracer.trace.writer import TraceWriter
from tracer.vmm import inspect

DETAILS = ("requests", "discards", "calls")
"""requests: every PFN, no system-call probe; discards: and the calls, adjacent ones merged in the
kernel; calls: every single call."""


@dataclass(frozen=True, slots=True)
class HostOptions(CaptureOptions):
    """What the host's recorder is told.

    Attributes:
        pid: The VMM's process.
        detail: One of DETAILS.
        ring_bytes: Size of each of its rings, a power of two of pages; chosen where None.
        quota: What the VM may put into them in a second.
        actual_bytes: Reads the device's `actual` (guest memory without the balloon) over QMP, where
            the caller has a monitor connection.
        vm_name: Name for the manifest; the command line's where None.
        scenario: What is being done to the VM, for the manifest.
    """

    pid: int = field(kw_only=True)
    detail: str = field(default="discards", kw_only=True)
    ring_bytes: int | None = field(default=None, kw_only=True)
    quota: Quota = field(default_factory=Quota, kw_only=True)
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
    check_detail(options.detail)
    vmm = inspect(options.pid)
    require_root(f"process {options.pid}")
    progress("find probe sites")
    sites = host_probes.find_sites(options.pid)
    subject = Subject(
        vmm=vmm,
        sites=sites,
        detail=options.detail,
        ring_bytes=options.ring_bytes or ring_bytes(options.detail),
        quota=options.quota,
        actual_bytes=options.actual_bytes,
        name=options.vm_name,
        scenario=options.scenario,
    )
    with TraceWriter(options.output, Side.HOST, force=options.force) as writer:
        progress("compile and attach")
        with (
            HostEngine(calls=options.detail != "requests", other_calls=False) as engine,
            contextlib.closing(HostCapture(engine, subject, writer, progress)) as capture,
        ):
            options.ready()
            reason = run_loop(capture, options, stop or threading.Event(), progress)
            capture.finish(reason)
    return options.output


def check_detail(detail: str) -> None:
    """Refuse a detail that does not exist.

    Raises:
        AerostatError: It is none of DETAILS.
    """
    if detail not in DETAILS:
        raise AerostatError(
            f"there is no detail {detail!r}", remedy=f"choose of {', '.join(DETAILS)}"
        )
