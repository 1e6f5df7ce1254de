"""Loaded BPF programs and where they are attached: each kind of probe, set and taken away.

How programs are made is left to a subclass: compiled (tracer/engine/loader.py) or empty.
"""

from __future__ import annotations

import abc
import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from tracer.engine import perf_events
from tracer.engine.bpf_programs import (
    BPF_TRACE_FENTRY,
    BPF_TRACE_FEXIT,
    PROG_TYPE_KPROBE,
    PROG_TYPE_RAW_TRACEPOINT,
    PROG_TYPE_TRACEPOINT,
    Runs,
    denial_remedy,
    link_tracing,
    load_tracing,
    program_runs,
)
from tracer.engine.libbpf import Btf
from tracer.engine.privilege import lacking_for, names, remedy_for
from tracer.errors import REPORT, ProbeError
from tracer.sites.probes import Kind

_TRACEFS = Path("/sys/kernel/tracing")
_NO_FUNCTION = (
    "the kernel has no such function",
    f"nothing where another way of this point works, else {REPORT}",
)
_NO_EVENT = ("the kernel has no such event", "boot a kernel built with CONFIG_FTRACE_SYSCALLS=y")
_ABSENT = {
    Kind.UPROBE: ("there is no such file", "see that the VM still runs, and name its pid again"),
    Kind.KPROBE: _NO_FUNCTION,
    Kind.KRETPROBE: _NO_FUNCTION,
    Kind.TRACEPOINT: _NO_EVENT,
    Kind.RAW_TRACEPOINT: _NO_EVENT,
}
"""What ENOENT means and what mends it, by what was to be probed."""
_WITH_PMU = {
    Kind.UPROBE: "boot a kernel built with CONFIG_UPROBE_EVENTS=y",
    Kind.KPROBE: "boot a kernel built with CONFIG_KPROBE_EVENTS=y",
    Kind.KRETPROBE: "boot a kernel built with CONFIG_KPROBE_EVENTS=y",
}
"""What mends that the kernel has no such source of events."""


class Attachments(abc.ABC):
    """Attaches programs and keeps what must be closed to take them away."""

    def __init__(self) -> None:
        self._closers: list[Callable[[], object]] = []
        self._programs: dict[str, set[int]] = {}

    @abc.abstractmethod
    def _load(self, function: str, kind: int) -> int:
        """Return the descriptor of a program, loaded as a BPF program type."""

    @abc.abstractmethod
    def _text(self, function: str) -> bytes:
        """Return a program's instructions."""

    @abc.abstractmethod
    def _loaded_as(self, function: str, program: int) -> None:
        """Take note of a program that is loaded and not attached yet."""

    def detach(self) -> None:
        """Detach every probe that was not claimed; the maps stay readable."""
        self.claim()()

    def claim(self) -> Callable[[], None]:
        """Hand over what was attached since the last claim.

        Returns:
            Detaches it; until then it stays attached, even when this object detaches the rest.
        """
        closers, self._closers = self._closers, []

        def detach() -> None:
            while closers:
                closers.pop()()

        return detach

    def runs(self, function: str) -> Runs:
        """How often and how long a program ran while `RunStats` were kept and it was attached."""
        found = [program_runs(program) for program in self._programs.get(function, ())]
        return Runs(sum(runs.count for runs in found), sum(runs.total_ns for runs in found))

    def _known(self, function: str, kind: int) -> int:
        program = self._load(function, kind)
        self._programs.setdefault(function, set()).add(program)
        return program

    def _keep(self, attach: Callable[[], int], kind: Kind, what: str) -> None:
        try:
            fd = attach()
        except OSError as error:
            raise _refused(kind, what, error) from error
        self._closers.append(lambda: os.close(fd))

    def attach_uprobe(self, function: str, path: Path, file_offset: int, pid: int) -> None:
        """Attach to an instruction of a program file, in one process's memory only.

        Raises:
            ProbeError: The kernel refuses it.
        """
        program = self._known(function, PROG_TYPE_KPROBE)
        self._keep(
            lambda: perf_events.attach_to_file(program, path, file_offset, pid),
            Kind.UPROBE,
            str(path),
        )

    def attach_kprobe(
        self, function: str, symbol: str, *, at_return: bool, address: int | None = None
    ) -> None:
        """Attach to the entry or the return of a kernel function.

        Args:
            function: BPF program.
            symbol: The kernel's function.
            at_return: At its return.
            address: Its address, where the kernel has others of that name.

        Raises:
            ProbeError: The kernel has no kprobes or no such function.
        """
        program = self._known(function, PROG_TYPE_KPROBE)
        self._keep(
            lambda: perf_events.attach_to_function(program, symbol, address, at_return=at_return),
            Kind.KRETPROBE if at_return else Kind.KPROBE,
            symbol,
        )

    def attach_fentry(self, function: str, btf: Btf, symbol: str, *, at_return: bool) -> None:
        """Attach to the entry or the return of a kernel or module function by trampoline.

        Raises:
            ProbeError: The kernel lists no such function or loads no such program.
        """
        kind = BPF_TRACE_FEXIT if at_return else BPF_TRACE_FENTRY
        program = load_tracing(self._text(function), btf, symbol, kind)
        try:
            self._loaded_as(function, program)
            link = link_tracing(program, symbol, kind)
        except ProbeError:
            os.close(program)
            raise
        programs = self._programs.setdefault(function, set())
        programs.add(program)
        self._closers += [lambda: programs.discard(program), lambda: os.close(program)]
        self._closers.append(lambda: os.close(link))

    def attach_tracepoint(self, function: str, category: str, event: str) -> None:
        """Attach to a classic tracepoint; mounts tracefs where nobody has.

        Raises:
            ProbeError: There is no tracefs or no such event.
        """
        mount_tracefs()
        program = self._known(function, PROG_TYPE_TRACEPOINT)

        def attach() -> int:
            number = int((_TRACEFS / "events" / category / event / "id").read_text())
            return perf_events.attach_to_tracepoint(program, number)

        self._keep(attach, Kind.TRACEPOINT, f"{category}:{event}")

    def attach_raw_tracepoint(self, function: str, event: str) -> None:
        """Attach to a raw tracepoint.

        Raises:
            ProbeError: There is no such event.
        """
        program = self._known(function, PROG_TYPE_RAW_TRACEPOINT)
        self._keep(
            lambda: perf_events.attach_to_raw_tracepoint(program, event),
            Kind.RAW_TRACEPOINT,
            event,
        )


def _refused(kind: Kind, what: str, error: OSError) -> ProbeError:
    """Say why the kernel does not attach a probe, and what mends that."""
    reason, remedy = error.strerror or str(error), REPORT
    if error.errno in (errno.EPERM, errno.EACCES):
        missing = lacking_for(kind)
        if missing:
            reason, remedy = f"this process lacks {names(missing)}", remedy_for(missing)
        else:
            remedy = denial_remedy()
    elif error.errno == errno.ENOENT:
        reason, remedy = _ABSENT[kind]
    elif error.errno == errno.ENODEV:
        remedy = _WITH_PMU.get(kind, REPORT)
    return ProbeError(f"cannot attach a {kind.value} to {what}", reason=reason, remedy=remedy)


def mount_tracefs() -> None:
    """Mount tracefs where nobody has: classic tracepoints are found through it.

    Raises:
        ProbeError: It is not there and cannot be mounted.
    """
    if _has_events():
        return
    subprocess.run(
        ["mount", "-t", "tracefs", "tracefs", str(_TRACEFS)], check=False, capture_output=True
    )
    if not _has_events():
        raise ProbeError("tracefs is not mounted", remedy=f"mount -t tracefs tracefs {_TRACEFS}")


def _has_events() -> bool:
    try:
        return (_TRACEFS / "events").exists()
    except PermissionError as error:
        missing = lacking_for(Kind.TRACEPOINT)
        raise ProbeError(
            f"{_TRACEFS} may not be read",
            reason=f"this process lacks {names(missing)}" if missing else str(error),
            remedy=remedy_for(missing) if missing else denial_remedy(),
        ) from error
