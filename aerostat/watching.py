"""Watches VMs without keeping a trace: the recorder's own loop, its figures shown."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import click

from aerostat.output import printable, warn
from aerostat.top_outputs import Output
from aerostat.unprivileged import then_drop, watcher_needs
from aerostat.watched import Gone, Readings
from tracer.host_side.host import HostOptions, record_all
from tracer.host_side.host_events import SUSPENDED
from tracer.host_side.host_session import Ended
from tracer.record.capture import nothing
from tracer.record.live import VmStats
from tracer.trace.errors import ExitCode
from tracer.vms.discover import Changes


class Watching:
    """Shows how VMs do until it is told to stop.

    Args:
        output: Where that is shown.
        stop: Ends it; set here too.
        count: Updates after which it ends; None for no end.
        is_one: It is about one VM, and over when that ends.
    """

    def __init__(
        self, output: Output, stop: threading.Event, *, count: int | None, is_one: bool
    ) -> None:
        self._output, self._stop = output, stop
        self._count, self._is_one = count, is_one
        self._readings = Readings()
        self._end: Ended | None = None
        self._lost: dict[int | None, int] = {}
        self._lost_before = 0
        self._doubts: list[str] = []

    def run(self, changes: Callable[[], Changes], *, detail: str, interval_s: float) -> None:
        """Attach, give up privileges for good, show, detach.

        Args:
            changes: Says which VMs ended and appeared since it was last asked.
            detail: requests or discards.
            interval_s: Time between two updates.

        Raises:
            MissingPrivilegeError: Not root, or no BCC.
        """
        options = HostOptions(
            output=Path(),
            counts_only=True,
            ready=then_drop(nothing, watcher_needs, self._doubts.append),
            alive=self._output.look,
            told=self._told,
            sample_every_s=interval_s,
            detail=detail,
        )
        record_all(options, changes, self._ended, self._phase, self._stop)

    def conclude(self) -> ExitCode:
        """Say why the one VM is watched no more, unless the user ended it; and what was lost.

        Returns:
            What to end with.

        Raises:
            AerostatError: It could not be watched.
        """
        for doubt in self._doubts:  # A screen would have hidden them.
            warn(doubt)
        if self._end is not None:
            if self._end.error is not None:
                raise self._end.error
            vmm = self._end.vmm
            name = printable(vmm.name or "the VM")
            click.echo(f"aerostat: {name} (pid {vmm.pid}): {self._end.reason}", err=True)
        lost = self._lost_before + sum(self._lost.values())
        if not lost:
            return ExitCode.OK
        warn(f"{lost:,} events were lost; what was shown is not all that happened")
        return ExitCode.CAPTURE_INCOMPLETE

    def _phase(self, phase: str, done: int = 0, total: int | None = None) -> None:
        self._output.phase(phase)

    def _told(self, stats: list[VmStats]) -> None:
        self._lost |= {vm.pid: sum(vm.lost.values()) for vm in stats}
        update = self._readings.take(stats)
        self._output.update(update)
        if self._count is not None and update.number >= self._count:
            self._stop.set()

    def _ended(self, end: Ended) -> None:
        """Take note of a VM that ended; one that was suspended is taken up anew at once."""
        # Whatever has this pid next counts from nothing.
        self._lost_before += self._lost.pop(end.vmm.pid, 0)
        if self._stop.is_set() or end.reason == SUSPENDED:
            self._readings.forget(end.vmm.pid)
        elif self._is_one:
            self._end = end
            self._stop.set()
        else:
            error = end.error
            reason = end.reason if error is None else f"{error.what}: {error.reason}"
            name = end.vmm.name or f"pid {end.vmm.pid}"
            self._readings.leave(Gone(name, end.vmm.pid, reason))
