"""Records VMs from their host: what the balloon is asked to do, and the discards that follow."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tracer.engine.host_engine import HostEngine
from tracer.engine.privilege import (
    LOAD,
    VM_PROCESS,
    host_needs,
    require,
    require_first_pid_namespace,
)
from tracer.engine.ring_size import ring_bytes
from tracer.engine.vm_probes import Quota
from tracer.host_side.again import Again
from tracer.host_side.host_account import Settings
from tracer.host_side.host_session import Ended, Followed, HostSession
from tracer.record.capture import CaptureOptions, run_loop
from tracer.trace.errors import AerostatError
from tracer.trace.progress import Progress, silent
from tracer.vms.discover import Changes, is_replaced
from tracer.vms.vmm import Vmm

DETAILS = ("requests", "discards", "calls")
"""requests: every PFN, no system-call probe; discards: and the calls, adjacent ones merged in the
kernel; calls: every single call."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_NAME = 100


@dataclass(frozen=True, slots=True)
class HostOptions(CaptureOptions):
    """What the host's recorder is told, of one VM or of all.

    Attributes:
        detail: One of DETAILS.
        ring_bytes: Size of each of a VM's rings, a power of two of pages; chosen where None.
        quota: What a VM may put into them in a second.
    """

    detail: str = field(default="discards", kw_only=True)
    ring_bytes: int | None = field(default=None, kw_only=True)
    quota: Quota = field(default_factory=Quota, kw_only=True)

    def settings(self) -> Settings:
        """How each VM is recorded.

        Raises:
            AerostatError: The detail is none of DETAILS.
        """
        if self.detail not in DETAILS:
            raise AerostatError(
                f"there is no detail {self.detail!r}", remedy=f"choose of {', '.join(DETAILS)}"
            )
        size_bytes = self.ring_bytes or ring_bytes(self.detail)
        # Requests come with up to 256 pages each: what takes a record a page is the other ring.
        requests_bytes = self.ring_bytes or min(size_bytes, ring_bytes("requests"))
        return Settings(
            detail=self.detail,
            ring_bytes=size_bytes,
            requests_ring_bytes=requests_bytes,
            quota=self.quota,
            counts_only=self.counts_only,
        )


@dataclass(frozen=True, slots=True)
class VmOptions(HostOptions):
    """What is to be recorded of one VM.

    Attributes:
        vmm: Which.
        actual_bytes: Reads the device's `actual` (guest memory without the balloon) over QMP, where
            the caller has a monitor connection.
        vm_name: Name for the manifest; the command line's where None.
        scenario: What is being done to the VM, for the manifest.
    """

    vmm: Vmm = field(kw_only=True)
    actual_bytes: Callable[[], int] | None = field(default=None, kw_only=True)
    vm_name: str | None = field(default=None, kw_only=True)
    scenario: str | None = field(default=None, kw_only=True)

    def settings(self) -> Settings:
        """How the VM is recorded."""
        return replace(
            HostOptions.settings(self),
            actual_bytes=self.actual_bytes,
            name=self.vm_name,
            scenario=self.scenario,
        )


def record_host(
    options: VmOptions, progress: Progress = silent, stop: threading.Event | None = None
) -> Ended:
    """Record one VM until `stop` is set, the duration has passed or the VM ends.

    A VMM that executes another in its place ends it too: nothing of what was learned of the one,
    such as where its memory lies, holds for the other.

    Args:
        options: What to record and where to.
        progress: Told how many requests were recorded.
        stop: Set it to end the capture.

    Returns:
        Its bundle, and why it ended. What was lost is in the manifest, never an error here.

    Raises:
        ProcessError: The VM has ended, or may not be read.
        MissingPrivilegeError: Not root, no BCC, in a PID namespace, or a required probe does not
            attach.
        TraceError: The bundle exists or cannot be written.
    """
    settings = options.settings()
    require_first_pid_namespace()
    require(f"process {options.vmm.pid}", host_needs(options.vmm.pid))
    ends: list[Ended] = []

    def follow() -> Followed:
        return Followed([options.vmm] if is_replaced(options.vmm) else [], ())

    progress("compile and attach")
    with HostEngine(calls=options.detail != "requests") as engine:
        session = HostSession(
            engine,
            settings,
            options,
            on_end=ends.append,
            progress=progress,
            follow=follow,
            goes_on=False,
        )
        session.add(options.vmm, options.output)
        _run(session, options, stop, progress)
    (end,) = ends
    if end.error is not None:
        raise end.error
    return end


def record_all(
    options: HostOptions,
    changes: Callable[[], Changes],
    on_end: Callable[[Ended], None],
    progress: Progress = silent,
    stop: threading.Event | None = None,
) -> None:
    """Record every VM of this host, each into a bundle of its own, until `stop` is set.

    A VM that starts is taken up, one that ends is closed. One that was suspended, or whose VMM
    executed another in its place, goes on in a new bundle, which begins at once; one whose
    recording failed, or found the disk full, in another later (`Again`).

    Args:
        options: How; `output` is the directory of the bundles.
        changes: Says which VMs ended and appeared since it was last asked; asked with every row of
            samples.
        on_end: Told of each VM whose trace is closed, or that could not be recorded; once of one
            that still cannot.
        progress: Told how many requests were recorded.
        stop: Set it to end the capture.

    Raises:
        MissingPrivilegeError: Not root, in a PID namespace, or no BCC.
    """
    settings = options.settings()
    again = Again(None if options.counts_only else options.output)
    require_first_pid_namespace()
    require("the VMs of this host", LOAD | VM_PROCESS)

    def ended(end: Ended) -> None:
        if again.note(end):
            on_end(end)

    def named(found: Changes) -> Iterator[tuple[Vmm, Path]]:
        # By now those that ended are closed, and noted if that failed.
        again.forget(found.ended)
        for vmm in (*again.due(), *found.appeared):
            yield vmm, next_bundle(options.output, vmm)

    def follow() -> Followed:
        found = changes()
        return Followed(found.ended, named(found))

    progress("compile and attach")
    with HostEngine(calls=options.detail != "requests") as engine:
        session = HostSession(
            engine,
            settings,
            options,
            on_end=ended,
            progress=progress,
            follow=follow,
            goes_on=True,
        )
        _run(session, options, stop, progress)


def _run(
    session: HostSession, options: HostOptions, stop: threading.Event | None, progress: Progress
) -> None:
    try:
        session.take_up()  # Ready means: the probes of every VM that is there are attached.
        options.ready()
        reason = run_loop(session, options, stop or threading.Event(), progress)
    except BaseException as problem:
        session.abandon(problem)
        raise
    session.finish(reason)


def next_bundle(directory: Path, vmm: Vmm) -> Path:
    """Name the bundle of a VM's next trace: nothing that is there is touched.

    Args:
        directory: Where the bundles lie.
        vmm: The VM; what its name holds beside letters, digits and `._-` becomes `_`.
    """
    stem = _UNSAFE.sub("_", vmm.name or vmm.uuid or "").strip("._")[:_MAX_NAME] or "vm"
    for number in itertools.count(1):
        path = directory / f"{stem}-{vmm.pid}-{number:03}.balloon"
        if not path.exists():
            return path
    raise AssertionError
