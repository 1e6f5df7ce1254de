"""Tells a process that runs a VM from one that merely has a VMM's name, as anybody's program may.

That is no security: who may open /dev/kvm can pass for a VM. It keeps `--all` from spending traces,
rings and places on scripts and wrappers, and a user from filling a recorder with empty processes.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from tracer.errors import ProcessError
from tracer.vms.memory_map import find_memory
from tracer.vms.process import GONE, PROC, no_process
from tracer.vms.vmm import Vmm

_VM_DESCRIPTOR = re.compile(r"anon_inode:\[?(kvm-vm|kvm-vcpu:\d+|mshv[-_]\w+)\]?")
"""A VM's own descriptor: virt/kvm/kvm_main.c (since 2.6.20), drivers/hv/mshv_root_main.c (6.15)."""
_MOST_DESCRIPTORS = 4096
"""A process may hold a million of them; a VMM opens its VM among the first."""


def runs_vm(vmm: Vmm, proc: Path = PROC) -> bool | None:
    """Say whether there is a VM in a VMM's process.

    Either it holds the descriptor of a VM, or it has mapped memory of the size that its command
    line states: a QEMU that emulates has no descriptor. The other VMMs cannot run without one, but
    what states its memory and has it may be traced as well.

    Args:
        vmm: The process.
        proc: Where procfs is mounted.

    Returns:
        None where that may not be read.

    Raises:
        ProcessEndedError: It has ended.
    """
    holds = _holds_vm(vmm.pid, proc)
    if holds:
        return True
    try:
        memory = find_memory(vmm, proc)
    except ProcessError:
        return None
    if vmm.memory_bytes is None:
        return None if holds is None else False
    mapped_bytes = sum(extent.length_bytes for extent in memory.extents)
    return bool(memory.candidates) or mapped_bytes >= vmm.memory_bytes


def _holds_vm(pid: int, proc: Path) -> bool | None:
    """Look for the descriptor of a VM; None where the process's may not be read."""
    directory = proc / str(pid) / "fd"
    try:
        with os.scandir(directory) as entries:
            for _, entry in zip(range(_MOST_DESCRIPTORS), entries, strict=False):
                if _VM_DESCRIPTOR.fullmatch(_target(Path(entry.path))):
                    return True
    except OSError as error:
        if error.errno in GONE:
            raise no_process(pid, str(error)) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            return None
        raise ProcessError(f"cannot read process {pid}", reason=str(error)) from error
    return False


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""  # Closed meanwhile, or not ours to see.
