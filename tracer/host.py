"""Records VMs from their host: what the balloon is asked to do, and the discards that follow."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tracer.capture import CaptureOptions, run_loop
from tracer.host_account import Settings
from tracer.host_engine import HostEngine, Quota
from tracer.host_session import Ended, HostSession
from tracer.privilege import require_root
from tracer.ring_size import ring_bytes
from tracer.trace.errors import AerostatError
from tracer.trace.progress import Progress, silent
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
    """Record one VM until `stop` is set, the duration has passed or the VM ends.

    Args:
        options: What to record and where to.
        progress: Told how many requests were recorded.
        stop: Set it to end the capture.

    Returns:
        The bundle. What was lost is in its manifest, never an error here.

    Raises:
        ProcessError: The pid is no VMM.
        MissingPrivilegeError: Not root, no BCC, or a required probe does not attach.
        TraceError: The bundle exists or cannot be written.
    """
    check_detail(options.detail)
    vmm = inspect(options.pid)
    require_root(f"process {options.pid}")
    settings = Settings(
        detail=options.detail,
        ring_bytes=options.ring_bytes or ring_bytes(options.detail),
        quota=options.quota,
        actual_bytes=options.actual_bytes,
        name=options.vm_name,
        scenario=options.scenario,
    )
    ends: list[Ended] = []
    progress("compile and attach")
    with HostEngine(calls=options.detail != "requests") as engine:
        session = HostSession(engine, settings, options, on_end=ends.append, progress=progress)
        session.add(vmm, options.output)
        try:
            options.ready()
            reason = run_loop(session, options, stop or threading.Event(), progress)
        except BaseException as problem:
            session.abandon(problem)
            raise
        session.finish(reason)
    for end in ends:
        if end.error is not None:
            raise end.error
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
