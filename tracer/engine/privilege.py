"""What recording needs of the process that does it: Linux capabilities, never the user id as such.

docs/privileges.md has the table that tests/kernel/test_privileges.py measures.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

from tracer.sites.probes import Kind
from tracer.trace.errors import MissingPrivilegeError

Needs = frozenset["Capability"]


class Capability(IntEnum):
    """Capabilities that some act of a recorder needs (include/uapi/linux/capability.h)."""

    CAP_DAC_OVERRIDE = 1
    CAP_DAC_READ_SEARCH = 2
    CAP_SYS_PTRACE = 19
    CAP_SYS_ADMIN = 21
    CAP_SYS_RESOURCE = 24
    CAP_SYSLOG = 34
    CAP_PERFMON = 38
    CAP_BPF = 39


_C = Capability
LOAD: Needs = frozenset({_C.CAP_BPF, _C.CAP_PERFMON})
"""Load a tracing program; CAP_SYS_ADMIN stands for both, and before 5.8 it alone will do."""
TRACEFS: Needs = frozenset({_C.CAP_DAC_READ_SEARCH})
"""Enter /sys/kernel/tracing: its directory is root's own (mode 0700)."""
MODULE_TYPES: Needs = frozenset({_C.CAP_SYS_ADMIN})
"""Name a module's function to fentry: BPF_BTF_GET_NEXT_ID and _GET_FD_BY_ID (since 5.11)."""
UPROBE: Needs = frozenset({_C.CAP_SYS_ADMIN})
"""perf_uprobe_event_init: CAP_PERFMON from 5.8 on, CAP_SYS_ADMIN again since 6.16 and in the stable
series of 2025 ("perf: Revert to requiring CAP_SYS_ADMIN for uprobes")."""
RUN_STATS: Needs = frozenset({_C.CAP_SYS_ADMIN})
"""BPF_ENABLE_STATS: have the kernel time BPF programs."""
VM_PROCESS: Needs = frozenset({_C.CAP_SYS_PTRACE, _C.CAP_DAC_READ_SEARCH})
"""Read /proc/PID/exe and maps (CAP_SYS_PTRACE), pagemap and mem (both) of another user's VMM."""
SAMPLE: Needs = VM_PROCESS
"""Read /proc/PID/smaps_rollup and pagemap while recording: of another user's VMM, and of one with
more capabilities than the recorder has left."""
KERNEL_ADDRESSES: Needs = frozenset({_C.CAP_SYSLOG})
"""See addresses in /proc/kallsyms: for reports, hints and changes of the target in the guest."""

PARANOID: Needs = frozenset({_C.CAP_SYS_ADMIN})
"""Open any perf event where perf_event_paranoid is above 2, a level that Debian and Ubuntu add."""
_OWN_EVENTS = 2
_BY_PERF_EVENT = (Kind.KPROBE, Kind.KRETPROBE, Kind.TRACEPOINT, Kind.UPROBE)

ALL_VMS: Needs = LOAD | TRACEFS | UPROBE | VM_PROCESS
"""Attach to VMs that start later: what a recorder of all VMs keeps."""

_BY_KIND: dict[Kind, Needs] = {
    Kind.FENTRY: LOAD,
    Kind.FEXIT: LOAD,
    Kind.KPROBE: LOAD,
    Kind.KRETPROBE: LOAD,
    Kind.RAW_TRACEPOINT: LOAD,
    Kind.TRACEPOINT: LOAD | TRACEFS,
    Kind.UPROBE: LOAD | UPROBE,
}


def effective(status: Path = Path("/proc/thread-self/status")) -> Needs:
    """Return the capabilities that this thread may use now, of those named here.

    Args:
        status: Its proc(5) status file.
    """
    found = re.search(r"^CapEff:\t([0-9a-f]{16})$", _read(status), re.MULTILINE)
    bits = int(found[1], 16) if found else 0
    return frozenset(capability for capability in Capability if bits >> capability & 1)


def is_filtered(status: Path = Path("/proc/thread-self/status")) -> bool:
    """Whether a seccomp filter decides about this thread's system calls, as in most containers."""
    return re.search(r"^Seccomp:\t2$", _read(status), re.MULTILINE) is not None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


_FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""PROC_PID_INIT_INO, include/linux/proc_ns.h, since 3.8."""
PID_NAMESPACE_REMEDY = "run outside the container, or with --pid=host (hostPID: true)"


def lacking(needs: Iterable[Capability], held: Needs | None = None) -> Needs:
    """Say what is missing of some needs.

    Args:
        needs: What an act needs.
        held: What the process has; None for what this thread has.
    """
    has = effective() if held is None else held
    if _C.CAP_SYS_ADMIN in has:
        # bpf_capable() and perfmon_capable() of the kernel take it for either.
        has |= LOAD
    if _C.CAP_DAC_OVERRIDE in has:
        has |= {_C.CAP_DAC_READ_SEARCH}
    return frozenset(needs) - has


def host_needs(pid: int) -> Needs:
    """Say what recording one VMM from the host takes at the least.

    That a uprobe takes CAP_SYS_ADMIN too depends on the kernel, and attaching one tells.

    Args:
        pid: The VMM; it need not exist.
    """
    try:
        owner = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return LOAD
    return LOAD if owner == os.geteuid() else LOAD | VM_PROCESS


def lacking_for(
    kind: Kind, held: Needs | None = None, user: int | None = None, paranoia: int | None = None
) -> Needs:
    """Say what is missing to attach a probe of one kind to what the kernel itself holds.

    Args:
        kind: Mechanism of the probe.
        held: What the process has; None for what this thread has.
        user: Its user id; None for this process's. tracefs belongs to user 0.
        paranoia: perf_event_paranoid; None for this machine's.
    """
    needs = _BY_KIND[kind]
    if (os.geteuid() if user is None else user) == 0:
        needs -= TRACEFS
    if kind in _BY_PERF_EVENT and (_paranoia() if paranoia is None else paranoia) > _OWN_EVENTS:
        needs |= PARANOID
    return lacking(needs, held)


def _paranoia() -> int:
    text = _read(Path("/proc/sys/kernel/perf_event_paranoid")).strip()
    return int(text) if text.isdigit() else _OWN_EVENTS


def names(capabilities: Iterable[Capability]) -> str:
    """Write capabilities as a list, by number."""
    return ", ".join(capability.name for capability in sorted(capabilities))


def remedy_for(missing: Iterable[Capability]) -> str:
    """Say how a process comes by capabilities."""
    return f"run with sudo, or grant {names(missing)} as docs/privileges.md shows"


def require(what: str, needs: Iterable[Capability]) -> None:
    """Refuse early where this process cannot do what it is about to try.

    Args:
        what: What is to be recorded.
        needs: What that takes.

    Raises:
        MissingPrivilegeError: A capability is missing; all that are missing are named.
    """
    missing = lacking(needs)
    if missing:
        raise MissingPrivilegeError(
            f"cannot record {what} with these privileges",
            reason=f"this process (user id {os.geteuid()}) lacks {names(missing)}",
            remedy=remedy_for(missing),
        )


def in_first_pid_namespace() -> bool:
    """Say whether this process numbers processes as the kernel's programs do.

    In a namespace of its own it would look for a VM by a number that no program ever sees, and
    record nothing without a word.
    """
    try:
        return Path("/proc/self/ns/pid").stat().st_ino == _FIRST_PID_NAMESPACE
    except OSError:
        return False


def require_first_pid_namespace() -> None:
    """Refuse to record VMs from within a PID namespace.

    Raises:
        MissingPrivilegeError: This process is in one of its own.
    """
    if not in_first_pid_namespace():
        raise MissingPrivilegeError(
            "cannot record VMs from within a PID namespace",
            reason="the kernel's programs see other process ids than this process does",
            remedy=PID_NAMESPACE_REMEDY,
        )
