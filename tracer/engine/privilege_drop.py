"""Gives privileges up once the probes are attached: in every thread, for good.

capset(2) changes the calling thread alone, and libraries (jemalloc's, OpenBLAS's, Arrow's) have
threads of their own that run no code of ours. So each is made to call it from a signal handler, as
glibc does for setuid(2), with the signal that glibc keeps for that: no thread can block it.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path

from tracer.cost.machine_code import MachineCode
from tracer.engine.privilege import SAMPLE, Capability, Needs, effective
from tracer.errors import ProbeError

_TASKS = Path("/proc/self/task")
_VERSION_3 = 0x20080522
_SIGNAL = 33
"""glibc's SIGSETXID (sysdeps/nptl/internal-signals.h): its sigprocmask never blocks it."""
_NR_RT_SIGACTION, _NR_TGKILL = 13, 234
_NR_CAPSET, _NR_PRCTL = 126, 157
_PR_SET_NO_NEW_PRIVS = 38
_SA_RESTORER, _SA_RESTART = 0x04000000, 0x10000000
_RESTORER = bytes.fromhex("b80f0000000f05")
"""mov $15, %eax; syscall: rt_sigreturn."""
_PATIENCE_S = 2.0
_BOTH_HALVES = 2


def recording_needs(output: Path, *, from_host: bool) -> Needs:
    """Say what a recorder must keep once its probes are attached.

    Args:
        output: The bundle, or the directory of bundles; it need not exist yet.
        from_host: Whether it samples a VMM's process; a guest's recorder samples its own kernel.
    """
    return writing_needs(output) | reading_needs() | (SAMPLE if from_host else frozenset())


def writing_needs(output: Path) -> Needs:
    """Say what a recorder must keep to go on writing below a directory that it made itself.

    Root loses its way through other users' directories with CAP_DAC_OVERRIDE; a trace in the home
    of the user who called sudo is the usual case.

    Args:
        output: The bundle, or another file or directory that is written; it need not exist yet.
    """
    user, groups = os.geteuid(), {os.getegid(), *os.getgroups()}
    places = output.resolve(), *output.resolve().parents
    directories = [place for place in places if place.is_dir()]
    for place in directories:
        status = place.stat()
        wanted = 0o3 if place == directories[0] else 0o1
        shift = 6 if status.st_uid == user else 3 if status.st_gid in groups else 0
        if status.st_mode >> shift & wanted != wanted:
            return frozenset({Capability.CAP_DAC_OVERRIDE})
    return frozenset()


def reading_needs() -> Needs:
    """Say what a recorder must keep to read its maps: CAP_BPF before 5.19, else nothing.

    Until then unprivileged_bpf_disabled refused every bpf(2), on one's own descriptors too.
    """
    major, minor = (int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    return frozenset() if (major, minor) >= (5, 19) else frozenset({Capability.CAP_BPF})


def drop_privileges(keep: Iterable[Capability] = ()) -> Needs:
    """Give up every capability but some, in every thread, and the way back through exec.

    What is attached stays attached, and descriptors stay usable.

    Args:
        keep: What is still needed; what this process does not have is not gained.

    Returns:
        What is left.

    Raises:
        ProbeError: A thread has kept more, or this system lets no process map code of its own.
    """
    left = effective() & frozenset(keep)
    bits = sum(1 << capability for capability in left)
    halves = [bits >> 32 * half & 0xFFFFFFFF for half in range(_BOTH_HALVES)]
    header = ctypes.create_string_buffer(struct.pack("<Ii", _VERSION_3, 0))
    sets = ctypes.create_string_buffer(
        b"".join(struct.pack("<III", half, half, 0) for half in halves)
    )
    code = MachineCode(
        {
            "drop": _drop_code(ctypes.addressof(header), ctypes.addressof(sets)),
            "restore": _RESTORER,
        }
    )
    code.call("drop")
    _in_other_threads(code, bits)
    # A handler may still be on its last instruction, so the page and what it reads stay.
    _kept.append((code, header, sets))
    return left


_kept: list[object] = []


def _drop_code(header: int, sets: int) -> bytes:
    """Return `prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); capset(header, sets)`."""
    return (
        b"\xbf" + struct.pack("<I", _PR_SET_NO_NEW_PRIVS)  # mov $38, %edi
        + b"\xbe\x01\0\0\0"  # mov $1, %esi
        + b"\x31\xd2\x4d\x31\xd2\x4d\x31\xc0"  # xor %edx, %edx; xor %r10, %r10; xor %r8, %r8
        + b"\xb8" + struct.pack("<I", _NR_PRCTL) + b"\x0f\x05"
        + b"\x48\xbf" + struct.pack("<Q", header)  # movabs header, %rdi
        + b"\x48\xbe" + struct.pack("<Q", sets)  # movabs sets, %rsi
        + b"\xb8" + struct.pack("<I", _NR_CAPSET) + b"\x0f\x05"
        + b"\xc3"
    )  # fmt: skip


def _in_other_threads(code: MachineCode, bits: int) -> None:
    """Have every thread whose capabilities are not these run the handler, and see that it did."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    flags = _SA_RESTORER | _SA_RESTART
    action = struct.pack("<QQQQ", code.address("drop"), flags, code.address("restore"), 2**64 - 1)
    before = ctypes.create_string_buffer(len(action))
    syscall(_NR_RT_SIGACTION, _SIGNAL, action, before, 8)
    try:
        asked: set[str] = set()
        deadline_s = time.monotonic() + _PATIENCE_S
        while waiting := [task.name for task in _TASKS.iterdir() if not _has_only(task, bits)]:
            for task in set(waiting) - asked:
                syscall(_NR_TGKILL, os.getpid(), int(task), _SIGNAL)
            asked |= set(waiting)
            if time.monotonic() > deadline_s:
                raise ProbeError(
                    "cannot give up the privileges of every thread",
                    reason=f"threads {', '.join(waiting)} do not answer",
                )
            time.sleep(0.001)
    finally:
        syscall(_NR_RT_SIGACTION, _SIGNAL, before, None, 8)


def _has_only(task: Path, bits: int) -> bool:
    try:
        lines = (task / "status").read_text(errors="replace").splitlines()
    except OSError:
        return True  # It has ended.
    found = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith("Cap")}
    return int(found["CapPrm"], 16) == bits == int(found["CapEff"], 16)
