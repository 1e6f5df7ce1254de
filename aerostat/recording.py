"""What a running recorder tells: the user, a script, the service manager, Prometheus."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aerostat.judge import why_not_whole
from aerostat.output import printable
from tracer.record.notify import Notifier
from tracer.trace.errors import AerostatError, CaptureIncompleteError

if TYPE_CHECKING:
    from aerostat.metrics import MetricsExport
    from tracer.host_side.host_session import Ended as HostEnded
    from tracer.record.flight_dump import Dump
    from tracer.record.live import VmStats
    from tracer.vms.vmm import Vmm

_SAY_AGAIN_S = 60
_NAMED_WRONG = 5
"""Recordings that are not whole and are named at the end; a service may see thousands."""
_SETTLE_NICE = 10
_CUT_SHORT = {
    "disk-full": ", to go on in another trace once there is room",
    "budget": ", and is recorded no further",
}
"""Why a trace ends and its VM does not (tracer/trace/side_store.py), and what then."""


class Listeners:
    """Passes on what the recorder says; nothing that fails here ends a recording.

    Args:
        output: Where it records to, for the words.
        ready_file: Made once every probe is attached.
        metrics: Told the figures of every VM, where there is one.
        quiet: Say on stderr what is wrong, or was kept, and nothing of what goes as it should.
    """

    def __init__(
        self,
        output: Path,
        ready_file: Path | None,
        metrics: MetricsExport | None,
        *,
        quiet: bool,
    ) -> None:
        self._output, self._ready_file, self._quiet = output, ready_file, quiet
        self._metrics = metrics
        self._notifier = Notifier.from_environment()
        self._silent_until_s = 0.0
        self._kept: list[Path] = []

    @property
    def kept(self) -> list[Path]:
        """Bundles that the flight recorder has made and not removed for newer ones."""
        return [bundle for bundle in self._kept if bundle.exists()]

    def ready(self) -> None:
        """Every probe is attached."""
        if self._ready_file is not None:
            try:
                self._ready_file.touch()
            except OSError as problem:
                self.insist(f"cannot make {self._ready_file}: {problem.strerror or problem}")
        self._notifier.ready(f"recording to {self._output}")
        self.say(f"recording to {self._output}; Ctrl-C ends it")

    def alive(self) -> None:
        """The loop still turns."""
        self._notifier.alive()

    def told(self, vms: list[VmStats]) -> None:
        """Take the figures of every VM that is recorded now."""
        requests = sum(sum(vm.requests.values()) for vm in vms)
        lost = sum(sum(vm.lost.values()) for vm in vms)
        self._notifier.status(f"{len(vms)} VMs, {requests} requests, {lost} events lost")
        problem = self._metrics.update(vms) if self._metrics is not None else None
        now_s = time.monotonic()
        if problem is not None and now_s >= self._silent_until_s:
            self._silent_until_s = now_s + _SAY_AGAIN_S
            self.insist(problem)

    def dumped(self, dump: Dump) -> None:
        """The flight recorder has made a bundle, or failed to."""
        if dump.problem is not None:
            self.insist(f"cannot keep what led to this: {dump.reason}: {dump.problem}")
            return
        self._kept = [*self.kept, dump.path]
        self.insist(f"kept {dump.path}: {dump.reason}")

    def doubt(self, vmm: Vmm) -> None:
        """A process has a VMM's name, and shows no VM."""
        self.insist(
            f"{vmm.label or 'a process'} (pid {vmm.pid}, {vmm.kind}) is not recorded: it has the"
            f" name of a VMM and shows no VM; --pid {vmm.pid} records it all the same"
        )

    def replaced(self, vmm: Vmm) -> None:
        """The one VM that was recorded is another program's now."""
        self.insist(
            f"{vmm.label or 'the VM'} (pid {vmm.pid}) is recorded no further: its VMM executed"
            " another program in its place; to record what that does, run aerostat record again"
            f" with --pid {vmm.pid} and another -o"
        )

    def stopping(self) -> None:
        """The recorder is closing its traces."""
        self._notifier.stopping("closing")

    def say(self, text: str) -> None:
        """Write to stderr what goes as it should; not where quiet was asked for."""
        if not self._quiet:
            self.insist(text)

    def insist(self, text: str) -> None:
        """Write to stderr what is wrong, quiet or not, unless whoever read it is gone.

        A service may run for months before its exit code tells of it.
        """
        with contextlib.suppress(OSError):
            click.echo(f"aerostat: {printable(text)}", err=True)

    def hooks(self) -> dict[str, Any]:
        """The arguments of CaptureOptions that end up here."""
        return {
            "ready": self.ready,
            "alive": self.alive,
            "closing": self.stopping,
            "told": self.told,
            "kept": self.dumped,
        }


@contextmanager
def listeners(given: dict[str, Any]) -> Iterator[Listeners]:
    """Make them from the options of `aerostat record`, and end them.

    Raises:
        AerostatError: The metrics file or address is not to be had, or the ready file has no
            directory.
    """
    ready_file = given["ready_file"]
    if ready_file is not None and not ready_file.parent.is_dir():
        raise AerostatError(
            f"cannot make the ready file {ready_file}",
            reason=f"there is no directory {ready_file.parent}",
            remedy="give a file in a directory that exists",
        )
    with contextlib.ExitStack() as resources:
        metrics = None
        if given["metrics_file"] is not None or given["metrics_listen"] is not None:
            from aerostat.metrics import MetricsExport

            export = MetricsExport(file=given["metrics_file"], listen=given["metrics_listen"])
            metrics = resources.enter_context(export)
        made = Listeners(Path(given["output"]), ready_file, metrics, quiet=given["quiet"])
        yield made


class Ended:
    """What became of the VMs of `record --all`.

    Ledgers are closed in a thread of their own: that reads a whole trace, and the other VMs are
    recorded meanwhile.

    Args:
        told: Says it to the user.
    """

    def __init__(self, told: Listeners) -> None:
        self._told = told
        self._lock = threading.Lock()
        self._wrong: list[str] = []
        self._wrong_count = 0
        self._settling = ThreadPoolExecutor(1, "aerostat-settle", initializer=_give_way)

    def take(self, end: HostEnded) -> None:
        """Have the ledger of a VM closed that is recorded no more, and say how it ended."""
        name = f"{end.vmm.label or 'a VM'} (pid {end.vmm.pid})"
        if end.error is not None:
            self._note(f"{name}: {end.error.what}")
            self._told.insist(f"{name} is not recorded: {end.error}")
            return
        say = self._told.insist if end.reason in _CUT_SHORT else self._told.say
        outlook = _CUT_SHORT.get(end.reason, "")
        if end.trace is None:
            say(f"{name}: {end.reason}{outlook}")
            return
        say(f"{name}: {end.reason}{outlook}; see: aerostat show {end.trace}")
        self._settle_later(end.trace)

    def _settle_later(self, bundle: Path) -> None:
        try:
            self._settling.submit(self._settle, bundle)
        except RuntimeError as problem:  # No thread may be started: that ends no recording.
            self._note(f"{bundle}: its ledger is not closed: {problem}")

    def _settle(self, bundle: Path) -> None:
        from tracer.account.merge import settle

        try:
            problem = why_not_whole(settle(bundle))
        except AerostatError as error:
            problem = str(error)
        except Exception as error:
            # Whatever is wrong with one trace, the other VMs are recorded on.
            problem = f"its ledger cannot be closed: {type(error).__name__}: {error}"
        if problem is not None:
            self._note(f"{bundle}: {problem}")

    def _note(self, wrong: str) -> None:
        with self._lock:
            self._wrong_count += 1
            if len(self._wrong) < _NAMED_WRONG:
                self._wrong.append(wrong)

    def judge(self, kept: list[Path]) -> None:
        """Wait for ledgers; raise where a trace, or what a flight recorder kept, is not whole.

        Raises:
            CaptureIncompleteError: With the first few of what is wrong.
        """
        for bundle in kept:
            self._settle_later(bundle)
        self._settling.shutdown(wait=True)
        if self._wrong_count:
            raise CaptureIncompleteError(
                f"{self._wrong_count} recordings are not whole",
                reason="; ".join(self._wrong),
                remedy="aerostat show TRACE says what is missing and where",
            )


def _give_way() -> None:
    """Let this thread have what CPU time the recording leaves."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _SETTLE_NICE)
