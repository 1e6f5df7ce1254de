"""One set of BPF programs for every VM of this host, and the probes that serve all of them."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

from tracer.cost.costs import BodyTimes, CostMeter, ProbeCosts
from tracer.engine.attach import Attachment
from tracer.engine.pump import Pump
from tracer.engine.vm_probes import Count, Target, VmProbes
from tracer.errors import ProbeError
from tracer.sites import host_probes
from tracer.sites.host_probes import QemuSites
from tracer.sites.probes import HOST_CALL_POINTS, HOST_OTHER_CALL_POINTS, Point
from tracer.trace.schema import Call

_ONE_A_REQUEST = ("on_push",)
"""Runs for every request but a statistics buffer: all are timed until it ran often enough."""
_ALIKE = ("on_pop_0", "on_pop_1", "on_pop_3")
"""The same program three times, but for the number of the handler; on_pop_2 also emits."""
_OWN_SLOT = 0
"""Place of this process itself, without rings: for measuring what the probes cost."""


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
        self._slots: dict[int, int] = {}
        self._detach_calls: list[Callable[[], None]] = []
        self.watch_calls(HOST_CALL_POINTS if calls else ())

    def watch_calls(self, points: tuple[Point, ...]) -> None:
        """Probe system calls, and measure what that costs.

        Args:
            points: Those of HOST_CALL_POINTS, or the same with other ways to them.

        Raises:
            ProbeError: No way to a point works that is required.
        """
        meter = CostMeter()
        self._attach_calls(points)
        self.costs = meter.costs(self, self.call_attachments)

    def watch_other_calls(self) -> None:
        """Probe every system call that can give memory back: for a VMM that is not QEMU."""
        done = {attachment.point for attachment in self.call_attachments}
        if not done:
            self.watch_calls(HOST_CALL_POINTS)
        if not done.issuperset(HOST_OTHER_CALL_POINTS):
            self._attach_calls(HOST_OTHER_CALL_POINTS)

    def _attach_calls(self, points: tuple[Point, ...]) -> None:
        self.call_attachments += host_probes.attach_calls(self.program, points)
        self._detach_calls.append(self.program.claim())

    def time_programs(self) -> None:
        """Have the kernel time the programs in VMMs over their first runs from now on."""
        if self._bodies is None:
            self._bodies = BodyTimes(self.program, _ONE_A_REQUEST)

    def poll(self) -> None:
        """Stop timing once there were runs enough; call it now and then."""
        if self._bodies is not None:
            self._bodies.poll()

    def hit_ns(self, attachment: Attachment, sites: QemuSites | None) -> float | None:
        """What one hit of an attached probe costs the traced VM; None where that was not measured.

        Args:
            attachment: The probe.
            sites: Where the uprobes of this VM are.
        """
        if attachment.way is None:
            return None
        return self.costs.hit_ns(attachment.way, sites, self._body_ns(attachment.way.program))

    def _body_ns(self, program: str) -> float | None:
        """What one run of a program takes; None where neither it nor one like it was timed."""
        if self._bodies is None:
            return None
        like = (each for each in _ALIKE if program in _ALIKE and each != program)
        means = (self._bodies.mean_ns(each) for each in (program, *like))
        return next((mean_ns for mean_ns in means if mean_ns is not None), None)

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
            ProbeError: It is known already, there is no room, or the kernel refuses its rings.
        """
        if target.pid in self._slots:
            # Its counts are found by its pid, and would be those of both.
            raise ProbeError(
                f"cannot record process {target.pid}",
                reason="this recorder records it already",
                remedy="end that recording first",
            )
        if not self._free:
            raise ProbeError(
                f"cannot record process {target.pid}",
                reason=f"{host_probes.MAX_VMS - 1} VMs are recorded already",
                remedy="start another recorder for it",
            )
        self._slots[target.pid] = self._free.pop()
        return VmProbes(self, target, self._slots[target.pid])

    def release(self, pid: int) -> None:
        """Take a VM's place back."""
        self._free.append(self._slots.pop(pid))

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
            yield lambda: sum(vms[own].counts[Count.HIT_CALL + call] for call in Call)
        finally:
            del inflight[thread]
            del vms[own]
