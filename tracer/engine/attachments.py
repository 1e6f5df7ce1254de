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
    attach_tracing,
    program_runs,
)
from tracer.engine.libbpf import Btf
from tracer.engine.privilege import lacking_for, names, remedy_for
from tracer.errors import ProbeError
from tracer.sites.probes import Kind

_TRACEFS = Path("/sys/kernel/tracing")
_ABSENT = {
    Kind.UPROBE: "there is no such file",
    Kind.KPROBE: "the kernel has no such function",
    Kind.KRETPROBE: "the kernel has no such function",
    Kind.TRACEPOINT: "the kernel has no such event",
    Kind.RAW_TRACEPOINT: "the kernel has no such event",
}
"""What ENOENT means, by what was to be probed."""


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
        program, link = attach_tracing(self._text(function), btf, symbol, kind)
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
    """Say why the kernel does not attach a probe."""
    missing = lacking_for(kind) if error.errno in (errno.EPERM, errno.EACCES) else frozenset()
    if missing:
        return ProbeError(
            f"cannot attach a {kind.value} to {what}",
            reason=f"this process lacks {names(missing)}",
            remedy=remedy_for(missing),
        )
    if error.errno == errno.ENOENT:
        return ProbeError(f"cannot attach a {kind.value} to {what}", reason=_ABSENT[kind])
    reason = error.strerror or str(error)
    return ProbeError(f"cannot attach a {kind.value} to {what}", reason=reason)


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
            remedy=remedy_for(missing),
        ) from error
