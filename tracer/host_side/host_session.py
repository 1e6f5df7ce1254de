"""Records one VM or every VM of this host, each into a trace of its own, in one loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from tracer.engine.host_engine import HostEngine
from tracer.errors import ProcessEndedError, SymbolError, foreseen
from tracer.host_side.host_account import Settings, Subject
from tracer.host_side.host_capture import EXITED, HostCapture
from tracer.record.capture import DRAIN_LONGEST_S, CaptureOptions
from tracer.record.clock_watch import ClockEvent, ClockWatch
from tracer.record.flight import FlightRecorder
from tracer.record.live import VmStats
from tracer.sites import host_probes
from tracer.trace.errors import AerostatError, TraceError
from tracer.trace.progress import Progress
from tracer.trace.replace_bundle import remove_bundle
from tracer.trace.schema import Side
from tracer.trace.writer import TraceWriter
from tracer.vms.discover import is_replaced
from tracer.vms.vmm import Vmm

REPLACED = "vm-replaced"
"""Why a trace ends whose VM's process runs another program now."""
_LOOK_S = 0.25
"""Time between two looks of a flight recorder at requests that do not end. A look takes three
system calls, and two more for each thread of any VM that is in a request."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A VM that is recorded no more.

    Attributes:
        vmm: The VM.
        trace: Its bundle; None where none was begun, and where a flight recorder or nothing at all
            kept its rows.
        reason: Why it ended, such as vm-exited; for one that failed, the error's text.
        error: What went wrong, or None.
    """

    vmm: Vmm
    trace: Path | None
    reason: str
    error: AerostatError | None = None


@dataclass(frozen=True, slots=True)
class Followed:
    """What became of the VMs since they were last asked about.

    Attributes:
        ended: VMs that are there no more, recorded or not; another may have their process.
        appeared: VMs that are there now, with the bundle to make of each.
    """

    ended: Collection[Vmm]
    appeared: Iterable[tuple[Vmm, Path]]


class Recorded:
    """One VM under way: its trace, and its probes.

    Args:
        engine: The programs of this host.
        subject: The VM.
        options: Where to, and how: `output` is the session's, not this VM's.
        output: The bundle to make.
        progress: Told what takes time.

    Raises:
        AerostatError: The trace cannot be made, or the probes do not attach.
    """

    def __init__(
        self,
        engine: HostEngine,
        subject: Subject,
        options: CaptureOptions,
        output: Path,
        progress: Progress,
    ) -> None:
        self.vmm, self._options = subject.vmm, options
        self._next_look_s = 0.0
        self.trace: Path | None = None
        self._resources = contextlib.ExitStack()
        try:
            self._begin(engine, subject, output, progress)
        except Exception:
            if self.trace is not None:  # Nothing is in it, and it may be tried many times.
                with contextlib.suppress(TraceError):
                    remove_bundle(self.trace)
            raise

    def _begin(
        self, engine: HostEngine, subject: Subject, output: Path, progress: Progress
    ) -> None:
        with self._resources:
            self.sink = self._resources.enter_context(self._options.open_sink(output, Side.HOST))
            self.trace = output if isinstance(self.sink, TraceWriter) else None
            self.capture = HostCapture(engine, subject, self.sink, progress)
            self._resources.callback(self.capture.close)
            self._resources = self._resources.pop_all()

    def drain(self) -> int:
        """Take what waits in its rings; return how many request records there were."""
        taken = self.capture.drain()
        if isinstance(self.sink, FlightRecorder):
            self._look_for_stalls(self.sink)
            if self.sink.is_due:
                self.capture.flush()  # A request is kept with its calls, or no ledger would close.
                self.capture.describe()
        self._options.tend(self.sink)
        return taken

    def _look_for_stalls(self, flight: FlightRecorder) -> None:
        """Show the requests that have not ended, now and then."""
        now_s = time.monotonic()
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + _LOOK_S
            flight.under_way(self.capture.under_way())

    def sample(self, clocks: Iterable[ClockEvent], *, keep: bool) -> None:
        """Write a row of samples and what the clocks did; let the flight recorder look.

        Args:
            clocks: What they did since the last row.
            keep: Somebody asks for what a flight recorder holds.
        """
        if self._options.counts_only:
            self.capture.flush()  # Its figures are all there is to it, so none of them may wait.
        self.capture.sample()
        self.capture.note_clocks(clocks)
        if isinstance(self.sink, FlightRecorder):
            self.sink.watch(self.capture.stats())
            if keep:
                self.sink.request()  # The next `drain` writes what waits, and dumps.

    def finish(self, reason: str, clocks: Iterable[ClockEvent] = ()) -> Ended:
        """Close the trace in order and free the probes; an error ends up in what is returned.

        Args:
            reason: Why the trace ends here.
            clocks: What the clocks did since the last sample.
        """
        try:
            with self._resources:
                self.capture.note_clocks(clocks)
                self.capture.finish(reason)
            self._options.tell_dumps(self.sink)
        except Exception as problem:
            error = foreseen(problem)
            return Ended(self.vmm, self.trace, str(error), error)
        return Ended(self.vmm, self.trace, reason)

    def fail(self, problem: BaseException) -> None:
        """Free the probes and leave the trace as it is, with what happened as its reason."""
        # The writer looks at the exception that leaves its block; whoever calls this has it.
        with contextlib.suppress(Exception, type(problem)), self._resources:
            raise problem


class HostSession:
    """The VMs that are recorded now: a `Source` of the loop. One that fails ends alone.

    Args:
        engine: The programs of this host.
        settings: How each VM is recorded.
        options: Where to and for how long; its `output` is not looked at.
        on_end: Told of each VM that is recorded no more.
        progress: Told what takes time.
        follow: Says which VMs have ended and appeared since it was last asked.
        goes_on: Whether the session is not over when its last VM is: others may appear.
    """

    def __init__(  # noqa: PLR0913  three things it works with and three that it tells
        self,
        engine: HostEngine,
        settings: Settings,
        options: CaptureOptions,
        *,
        on_end: Callable[[Ended], None],
        progress: Progress,
        follow: Callable[[], Followed],
        goes_on: bool,
    ) -> None:
        self._engine, self._settings, self._options = engine, settings, options
        self._clocks = ClockWatch()
        self._on_end, self._progress = on_end, progress
        self._follow, self._goes_on = follow, goes_on
        self._recorded: list[Recorded] = []
        self._last_end: Ended | None = None

    def add(self, vmm: Vmm, output: Path) -> None:
        """Begin to record a VM.

        Raises:
            AerostatError: Its trace cannot be made, or its probes do not attach.
        """
        self._progress("find probe sites")
        subject = subject_of(vmm, self._settings)
        recorded = Recorded(self._engine, subject, self._options, output, self._progress)
        self._recorded.append(recorded)

    def take_up(self) -> None:
        """Begin to record the VMs that have appeared; one that cannot be is told of.

        Those that have ended are closed before: a VMM that executes another in its place, as QEMU's
        cpr-exec does (since 10.2), leaves the process to the next VM.
        """
        followed = self._follow()
        for recorded in [each for each in self._recorded if each.vmm in followed.ended]:
            # One with much memory is not gone yet when its program is.
            gone = REPLACED if is_replaced(recorded.vmm) else EXITED
            reason = recorded.capture.ended() or gone
            self._drop(recorded, recorded.finish(reason))
        for vmm, output in followed.appeared:
            # Each may take seconds, and there may be hundreds at the begin.
            self._options.alive()
            try:
                self.add(vmm, output)
            except ProcessEndedError:
                continue  # Gone before a probe could be attached: nothing of it is missing.
            except Exception as problem:
                error = foreseen(problem)
                self._on_end(Ended(vmm, None, str(error), error))

    @property
    def longest_wait_s(self) -> float:
        """How long the memory that the rings are emptied into may be left alone."""
        return DRAIN_LONGEST_S

    def used_share(self) -> float:
        """How full the fullest of that memory is, 0 to 1."""
        shares = (recorded.capture.used_share() for recorded in self._recorded)
        return max(shares, default=0.0)

    def drain(self) -> int:
        """Take what waits in every VM's rings; return how many request records there were."""
        taken = 0
        for recorded in list(self._recorded):
            try:
                taken += recorded.drain()
            except Exception as problem:
                self._lose(recorded, problem)
        return taken

    def sample(self) -> None:
        """Write a row of samples for every VM, and take up those that have appeared."""
        clocks = self._clocks.check()
        keep = self._options.keep.is_set()
        if keep:  # Not later: who asks again from here on is heard the next time.
            self._options.keep.clear()
        for recorded in list(self._recorded):
            try:
                recorded.sample(clocks, keep=keep)
            except Exception as problem:
                self._lose(recorded, problem)
        self.take_up()
        self._options.told(self.stats())

    def ended(self) -> str | None:
        """Close what has ended; why nothing is left to record, or None."""
        for recorded in list(self._recorded):
            reason = recorded.capture.ended()
            if reason is not None:
                self._drop(recorded, recorded.finish(reason))
        if self._recorded or self._goes_on:
            return None
        return self._last_end.reason if self._last_end is not None else "no VM"

    def finish(self, reason: str) -> None:
        """Close every trace."""
        clocks = self._clocks.check()
        for recorded in list(self._recorded):
            self._drop(recorded, recorded.finish(reason, clocks))

    def abandon(self, problem: BaseException) -> None:
        """Leave every trace as it is, with what happened as its reason."""
        while self._recorded:
            self._recorded.pop().fail(problem)

    def stats(self) -> list[VmStats]:
        """Sum up what was seen of each VM so far."""
        return [recorded.capture.stats() for recorded in self._recorded]

    def _lose(self, recorded: Recorded, problem: Exception) -> None:
        """End one VM alone: what went wrong with it, foreseen or not, is no other VM's matter."""
        recorded.fail(problem)
        error = foreseen(problem)
        self._drop(recorded, Ended(recorded.vmm, recorded.trace, str(error), error))

    def _drop(self, recorded: Recorded, end: Ended) -> None:
        self._recorded.remove(recorded)
        self._last_end = end
        self._on_end(end)


def subject_of(vmm: Vmm, settings: Settings) -> Subject:
    """Find a VM's balloon handlers; where they are not found, its calls alone can be recorded."""
    try:
        return Subject(vmm, host_probes.find_sites(vmm.pid), settings)
    except SymbolError as error:
        return Subject(vmm, None, settings, f"{error.what}: {error.reason}")
