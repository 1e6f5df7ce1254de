"""Finds the virtual machines of this host from /proc alone, picks one, watches them come and go.

Needs no VMM's socket and no manager. Without root, other users' programs show by the name they
gave themselves alone, and a program that merely links libkrun does not show at all.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from tracer.errors import ProcessError
from tracer.vms.evidence import runs_vm
from tracer.vms.process import PROC, Process, pids, read_process
from tracer.vms.vmm import Vmm, inspect, recognise

_SETTLE_S = 5.0
"""How long a VMM may take to make its VM before it is doubted."""
_LATEST_LOOK_S = 10.0
"""A VMM may wait long for its configuration: one that is doubted is looked at so often."""
_YOUNG_S = 60.0
"""How long a process is looked at again: it may load libkrun after it started."""
_LISTED = 20


def find_vms(proc: Path = PROC) -> list[Vmm]:
    """List the VMs that run now, by pid.

    Args:
        proc: Where procfs is mounted.

    Raises:
        ProcessError: procfs cannot be read at all.
    """
    return _only_main(
        vmm for process in _processes(proc) if (vmm := recognise(process, proc)) is not None
    )


def find_vm(
    *, pid: int | None = None, name: str | None = None, uuid: str | None = None, proc: Path = PROC
) -> Vmm:
    """Find one VM by whatever it is known by; what is None does not matter.

    Args:
        pid: Process id of the VMM.
        name: The VM's name, the path of its API socket, or its manager's number for it.
        uuid: Its UUID, with or without dashes.
        proc: Where procfs is mounted.

    Raises:
        ProcessError: None fits, or more than one; the reason lists what there is.
    """
    vms = [inspect(pid, proc)] if pid is not None else find_vms(proc)
    fitting = [vm for vm in vms if _has_name(vm, name) and _has_uuid(vm, uuid)]
    if len(fitting) == 1:
        return fitting[0]
    wanted = " and ".join(
        f"{key} {value}"
        for key, value in (("pid", pid), ("name", name), ("uuid", uuid))
        if value is not None
    )
    if fitting:
        raise ProcessError(
            f"more than one VM has {wanted}" if wanted else "more than one VM runs here",
            reason=_listed(fitting),
            remedy="pick one by its pid",
        )
    root = "" if os.geteuid() == 0 else ", or run as root to see every VM"
    raise ProcessError(
        f"no VM has {wanted}" if wanted else "no VM runs here",
        reason=_listed(vms) if vms else "no process here is a VMM that aerostat knows",
        remedy=f"list the VMs: aerostat vms{root}",
    )


@dataclass(frozen=True, slots=True)
class Changes:
    """What became of the VMs since the last look.

    Attributes:
        appeared: VMs that are there now.
        ended: VMs that are gone, as they were.
        doubted: Processes with a VMM's name that show no VM (tracer/vms/evidence.py); each once.
            One that makes a VM later appears then.
    """

    appeared: tuple[Vmm, ...]
    ended: tuple[Vmm, ...]
    doubted: tuple[Vmm, ...] = ()


@dataclass(slots=True)
class _Waiting:
    """A VMM that shows no VM: since when it is known, when to look again, whether that was told."""

    since_s: float
    next_s: float
    is_doubted: bool = False


class Watch:
    """Tells which VMs start and end.

    A VM is its process and what that runs: another process with the pid, and a VMM that executes
    another in its place, end one VM and start another. A VM is told of once it shows in its
    process, or after five seconds where that may not be read.

    Args:
        proc: Where procfs is mounted.
    """

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._known: dict[tuple[int, int], Vmm] = {}
        self._waiting: dict[tuple[int, int], _Waiting] = {}
        self._others: dict[tuple[int, int], tuple[Path | None, float]] = {}

    @property
    def vms(self) -> list[Vmm]:
        """The VMs that were there at the last look, by pid."""
        return sorted(self._known.values(), key=lambda vm: vm.pid)

    def poll(self) -> Changes:
        """Look again.

        Raises:
            ProcessError: procfs cannot be read at all.
        """
        now_s = time.monotonic()
        found = {(vm.pid, vm.start_ticks): vm for vm in self._scan(now_s)}
        ended = [vm for key, vm in self._known.items() if not _is_same(vm, found.get(key))]
        for vm in ended:
            del self._known[vm.pid, vm.start_ticks]
        self._waiting = {key: wait for key, wait in self._waiting.items() if key in found}
        appeared, doubted = [], []
        for key, vm in found.items():
            if key in self._known:
                continue
            wait = self._waiting.setdefault(key, _Waiting(now_s, now_s))
            if now_s < wait.next_s:
                continue
            age_s = now_s - wait.since_s
            wait.next_s = now_s + min(age_s / 10, _LATEST_LOOK_S)
            evident = self._runs_vm(vm)
            if evident or (evident is None and age_s >= _SETTLE_S):
                self._known[key] = vm
                del self._waiting[key]
                appeared.append(vm)
            elif evident is False and age_s >= _SETTLE_S and not wait.is_doubted:
                wait.is_doubted = True
                doubted.append(vm)
        return Changes(tuple(appeared), tuple(ended), tuple(doubted))

    def _scan(self, now_s: float) -> list[Vmm]:
        """Look at every process, but not again at those that are known to be something else."""
        others: dict[tuple[int, int], tuple[Path | None, float]] = {}
        found = []
        for process in _processes(self._proc):
            key = (process.pid, process.start_ticks)
            exe, since = self._others.get(key, (None, now_s))
            if key in self._others and exe == process.exe and now_s - since >= _YOUNG_S:
                others[key] = (exe, since)
                continue
            vmm = recognise(process, self._proc)
            if vmm is None:
                others[key] = (process.exe, since if exe == process.exe else now_s)
            else:
                found.append(vmm)
        self._others = others
        return _only_main(iter(found))

    def _runs_vm(self, vm: Vmm) -> bool | None:
        try:
            return runs_vm(vm, self._proc)
        except ProcessError:
            return False  # It has ended: the next look does not find it.


def _processes(proc: Path) -> Iterator[Process]:
    for pid in pids(proc):
        # It ended meanwhile, or is not ours to see: not a VM that could be recorded.
        with contextlib.suppress(ProcessError):
            yield read_process(pid, proc)


def _only_main(vms: Iterator[Vmm]) -> list[Vmm]:
    """Drop the helpers that a VMM forks off: crosvm has one process for each device."""
    found = {vm.pid: vm for vm in vms}
    return [
        vm
        for vm in found.values()
        if (parent := found.get(vm.parent)) is None
        or (parent.exe, parent.arguments) != (vm.exe, vm.arguments)
    ]


def is_replaced(vmm: Vmm, proc: Path = PROC) -> bool:
    """Say whether a VM's process runs another program now, as after QEMU's cpr-exec (since 10.2).

    Args:
        vmm: The VM, as it was found.
        proc: Where procfs is mounted.

    Returns:
        False too where the process has ended, is about to, or may not be read.
    """
    try:
        process = read_process(vmm.pid, proc)
    except ProcessError:
        return False
    if process.is_ending or process.start_ticks != vmm.start_ticks:
        return False
    exe, arguments, stack = process.exe or vmm.exe, process.arguments, process.stack
    return not _is_same(vmm, replace(vmm, exe=exe, arguments=arguments, stack=stack))


def _is_same(before: Vmm, after: Vmm | None) -> bool:
    if after is None or before.arguments != after.arguments:
        return False
    # A recorder that gives up its privileges may read only the earlier of the two.
    if 0 in (before.stack, after.stack):
        return before.exe == after.exe
    return before.stack == after.stack  # whatever the program's file is called by now


def _has_name(vm: Vmm, name: str | None) -> bool:
    return name is None or name in (vm.name, vm.vm_id)


def _has_uuid(vm: Vmm, uuid: str | None) -> bool:
    if uuid is None:
        return True
    try:
        return vm.uuid is not None and UUID(uuid) == UUID(vm.uuid)
    except ValueError:
        return uuid == vm.uuid


def _listed(vms: list[Vmm]) -> str:
    texts = [
        f"{(vm.label or 'without a name')[:80]} (pid {vm.pid}, {vm.manager or vm.kind}"
        + (f", uuid {vm.uuid[:36]})" if vm.uuid else ")")
        for vm in vms[:_LISTED]
    ]
    more = len(vms) - _LISTED
    return "there are: " + "; ".join(texts) + (f"; and {more} more" if more > 0 else "")
