"""What the files of a machine say about probes on it, before anything is tried.

All is read below one root directory, so that the tree of another machine can be judged too.
"""

from __future__ import annotations

import errno
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from tracer.engine.privilege import Needs, effective

_LINE = "0 0 4294967295"
"""uid_map of the first user namespace (kernel/user.c)."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides about probes, as far as this user may read it.

    Attributes:
        release: Major and minor number of the kernel; (0, 0) where it cannot be told.
        arch: Machine architecture, such as x86_64.
        user: Effective user id.
        held: Capabilities that may be used.
        lockdown: none, integrity or confidentiality; None where the kernel has no lockdown or
            securityfs is not mounted.
        has_btf: Whether the kernel describes its types.
        has_tracefs: Whether tracefs is mounted; None where this user may not look.
        can_patch_functions: Whether the kernel lets its functions be patched, as fentry does; None
            where this user may not look.
        pmus: Event sources of the kernel: uprobe, kprobe, tracepoint and others.
        in_user_namespace: Whether capabilities are those of a user namespace, not of the machine.
        memlock_bytes: RLIMIT_MEMLOCK; None for unlimited or unknown.
        settings: kptr_restrict, perf_event_paranoid, unprivileged_bpf_disabled; those that exist.
        root: Where it was read.
    """

    release: tuple[int, int]
    arch: str
    user: int
    held: Needs
    lockdown: str | None
    has_btf: bool
    has_tracefs: bool | None
    can_patch_functions: bool | None
    pmus: frozenset[str]
    in_user_namespace: bool
    memlock_bytes: int | None
    settings: dict[str, int]
    root: Path

    @property
    def paranoia(self) -> int:
        """perf_event_paranoid; 2, the kernel's own default, where it cannot be read."""
        return self.settings.get("perf_event_paranoid", 2)

    def has_tracepoint(self, category: str, event: str) -> bool | None:
        """Whether tracefs has an event; None where this user may not look."""
        return _exists(self.root / "sys/kernel/tracing/events" / category / event)


def read_machine(root: Path = Path("/")) -> Machine:
    """Read what decides about probes; what cannot be read counts as not there or not known.

    Args:
        root: Where proc and sys are found.
    """
    status = _fields(root / "proc/self/status")
    sysctl = root / "proc/sys/kernel"
    lockdown = _text(root / "sys/kernel/security/lockdown")
    names = ("kptr_restrict", "perf_event_paranoid", "unprivileged_bpf_disabled")
    read = {name: _text(sysctl / name) for name in names}
    uid_map = _text(root / "proc/self/uid_map")
    return Machine(
        release=_release(_text(sysctl / "osrelease")),
        arch=_text(sysctl / "arch") or platform.machine(),
        user=_effective_user(status.get("Uid", "")),
        held=effective(root / "proc/self/status"),
        lockdown=lockdown.partition("[")[2].partition("]")[0] or None,
        has_btf=(root / "sys/kernel/btf/vmlinux").exists(),
        has_tracefs=_exists(root / "sys/kernel/tracing/events"),
        can_patch_functions=_can_patch(root / "sys/kernel/tracing/available_filter_functions"),
        pmus=_names(root / "sys/bus/event_source/devices"),
        in_user_namespace=bool(uid_map) and " ".join(uid_map.split()) != _LINE,
        memlock_bytes=_memlock(root / "proc/self/limits"),
        settings={name: int(value) for name, value in read.items() if value.lstrip("-").isdigit()},
        root=root,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _exists(path: Path) -> bool | None:
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return True


def _can_patch(functions: Path) -> bool | None:
    """Whether the function tracer (CONFIG_DYNAMIC_FTRACE) is there and not forbidden.

    Its list of functions exists with it; a kernel that forbids it answers EPERM to root.
    """
    try:
        with functions.open("rb") as file:
            return bool(file.read(1))
    except OSError as error:
        return None if error.errno == errno.EACCES else False


def _names(directory: Path) -> frozenset[str]:
    try:
        return frozenset(path.name for path in directory.iterdir())
    except OSError:
        return frozenset()


def _fields(path: Path) -> dict[str, str]:
    pairs = (line.partition(":") for line in _text(path).splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _effective_user(uids: str) -> int:
    """Read the second of real, effective, saved and file system user id."""
    numbers = uids.split()
    return int(numbers[1]) if len(numbers) > 1 and numbers[1].isdigit() else os.geteuid()


def _release(text: str) -> tuple[int, int]:
    numbers = text.partition("-")[0].split(".")
    if len(numbers) < 2 or not all(number.isdigit() for number in numbers[:2]):
        return 0, 0
    return int(numbers[0]), int(numbers[1])


def _memlock(limits: Path) -> int | None:
    for line in _text(limits).splitlines():
        if line.startswith("Max locked memory"):
            soft = line.split()[3]
            return int(soft) if soft.isdigit() else None
    return None
