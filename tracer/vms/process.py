"""One process as /proc shows it, read so that a pid that is used again is noticed.

Everything a process says of itself (arguments, paths) is hostile: it is bounded here, and made safe
for a terminal where it is shown.
"""

from __future__ import annotations

import errno
import os
import select
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tracer.errors import ProcessEndedError, ProcessError

PROC = Path("/proc")
_ARGUMENT_BYTES = 1 << 20
"""Read of a command line; the kernel's own bound is 6 MiB (fs/exec.c, since 4.13)."""
_DELETED = " (deleted)"
_PF_EXITING = 0x4
"""include/linux/sched.h, since 2.6.0."""
GONE = (errno.ENOENT, errno.ESRCH)
"""What procfs answers once a process has ended."""


@dataclass(frozen=True, slots=True)
class Process:
    """What is known of a process without its memory.

    Attributes:
        pid: Its id as this /proc numbers it.
        start_ticks: When it started, in clock ticks since boot (proc(5) stat field 22): with the
            pid, a name that is never used twice.
        parent: Its parent's pid.
        exe: The program file as the process sees it; None where that may not be read.
        exe_deleted: The file was removed or replaced since: only /proc/PID/exe still leads to it.
        arguments: Its argument vector.
        namespace_pids: Its pid in this namespace and each one below it (NSpid); empty if unknown.
        stack: Where its stack begins (proc(5) stat field 28), by which a program that it executes
            in its place can be told from itself: the kernel chooses anew for each. 0 where that may
            not be read.
        is_ending: It is on its way out (PF_EXITING of field 9): it has neither program nor
            arguments any more, and takes some 0.3 s for each GiB of its memory to be gone.
    """

    pid: int
    start_ticks: int
    parent: int
    exe: Path | None
    exe_deleted: bool
    arguments: tuple[str, ...]
    namespace_pids: tuple[int, ...]
    stack: int = 0
    is_ending: bool = False


def read_process(pid: int, proc: Path = PROC) -> Process:
    """Read one process.

    Args:
        pid: Which.
        proc: Where procfs is mounted.

    Raises:
        ProcessEndedError: There is no such process, or it ended meanwhile.
        ProcessError: It may not be read.
    """
    root = proc / str(pid)
    try:
        stat = _stat(root)
        exe, deleted = _exe(root)
        arguments = _arguments(root)
        namespace_pids = _namespace_pids(root)
        # Whatever was read between belongs to one process only if it is still the same.
        after = _stat(root)
        same = (after.start_ticks, after.stack) == (stat.start_ticks, stat.stack)
    except OSError as error:
        if error.errno in GONE:
            raise no_process(pid, str(error)) from error
        raise ProcessError(
            f"cannot read process {pid}", reason=str(error), remedy="run as root"
        ) from error
    if not same:
        raise no_process(pid, "it ended while it was looked at")
    return Process(
        pid=pid,
        start_ticks=stat.start_ticks,
        parent=stat.parent,
        exe=exe,
        exe_deleted=deleted,
        arguments=arguments,
        namespace_pids=namespace_pids,
        stack=stat.stack,
        is_ending=bool(stat.flags & _PF_EXITING),
    )


def pids(proc: Path = PROC) -> list[int]:
    """List every process of this /proc, rising.

    Raises:
        ProcessError: procfs is not readable there.
    """
    try:
        return sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdecimal())
    except OSError as error:
        raise ProcessError(
            f"cannot list the processes of {proc}",
            reason=str(error),
            remedy="mount procfs there",
        ) from error


def open_pidfd(pid: int, start_ticks: int) -> int:
    """Take hold of a process, so that another one with its pid is never taken for it.

    Returns:
        A pidfd; the caller closes it.

    Raises:
        ProcessEndedError: The process has ended, whoever has the pid now.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise no_process(pid, str(error)) from error
    try:
        # After pidfd_open: what is read now is of the process that the pidfd holds, or of none.
        if _stat(PROC / str(pid)).start_ticks == start_ticks:
            return pidfd
        reason = "another process has its pid now"
    except OSError as error:
        reason = str(error)
    os.close(pidfd)
    raise no_process(pid, reason)


def is_running(pidfd: int) -> bool:
    """Say whether the process behind a pidfd still runs."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)


def no_process(pid: int, reason: str) -> ProcessEndedError:
    """Make the error for a process that is not there, or not any more."""
    return ProcessEndedError(
        f"there is no process {pid}", reason=reason, remedy="list the VMs: aerostat vms"
    )


class _Stat(NamedTuple):
    """Fields 4, 9, 22 and 28 of proc(5) stat."""

    parent: int
    flags: int
    start_ticks: int
    stack: int


def _stat(root: Path) -> _Stat:
    # Counted after the name, which may hold spaces and parentheses.
    fields = (root / "stat").read_bytes().rpartition(b")")[2].split()
    try:
        return _Stat(*(int(fields[place]) for place in (1, 6, 19, 25)))
    except (IndexError, ValueError) as error:
        raise FileNotFoundError(errno.ENOENT, "unreadable stat", str(root / "stat")) from error


def _exe(root: Path) -> tuple[Path | None, bool]:
    try:
        text = str((root / "exe").readlink())
    except OSError:
        # A kernel thread has none; another user's may be read by root alone.
        return None, False
    return Path(text.removesuffix(_DELETED)), text.endswith(_DELETED)


def _arguments(root: Path) -> tuple[str, ...]:
    with (root / "cmdline").open("rb") as file:
        text = file.read(_ARGUMENT_BYTES)
    parts = text.split(b"\0")
    # A process may have written over its arguments, so the last need not end in a zero.
    return tuple(part.decode(errors="replace") for part in (parts if parts[-1] else parts[:-1]))


def _namespace_pids(root: Path) -> tuple[int, ...]:
    """Read NSpid of /proc/PID/status (since 4.1)."""
    for line in (root / "status").read_bytes().splitlines():
        if line.startswith(b"NSpid:"):
            return tuple(int(part) for part in line.split()[1:])
    return ()
