"""One virtual machine's process: which VMM it is, and what is known of the VM from outside."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tracer.errors import ProcessError
from tracer.vms.command_line import CommandLine
from tracer.vms.mappings import Mapping, mappings
from tracer.vms.microvms import (
    describe_cloud_hypervisor,
    describe_crosvm,
    describe_firecracker,
    describe_libkrun,
)
from tracer.vms.process import PROC, Process, is_running, open_pidfd, read_process
from tracer.vms.qemu_options import describe_qemu, machine_fields

__all__ = ["Mapping", "Vmm", "guest_ram", "inspect", "is_running", "load_bias", "mappings"]

_PROGRAMS = {
    # Also RHEL's qemu-kvm, NixOS's wrapper, and builds named after what they can do.
    "qemu": re.compile(r"\.?(qemu-system-\w[\w-]*|qemu-kvm(-[\w-]+)?|kvm)"),
    "firecracker": re.compile(r"firecracker(-?v?\d[\w.-]*)?"),
    "cloud-hypervisor": re.compile(r"cloud-hypervisor(-static|-?v?\d[\w.-]*)?"),
    "crosvm": re.compile(r"crosvm"),
    "libkrun": re.compile(r"krunvm|muvm"),
}
_LIBKRUN = re.compile(r".*/libkrun(-\w+)?\.so[.\d]*( \(deleted\))?")


@dataclass(frozen=True, slots=True)
class Vmm:
    """A running virtual machine, seen from the host.

    Attributes:
        pid: The VMM's process id in this namespace.
        exe: Its program file as the process names it; argv[0] where that may not be read. Read the
            file itself through `program`, which also holds after an upgrade or in a container.
        arguments: Its argument vector: hostile text.
        name: What the VM is called, or the path of its API socket; None if nothing says.
        uuid: The VM's UUID, as given.
        memory_bytes: Guest memory it started with; None if not known.
        vcpus: Number of vCPUs it started with; None if not known.
        machine: QEMU's machine type; empty for other VMMs.
        accel: kvm, tcg or another; None if not known.
        kind: qemu, firecracker, cloud-hypervisor, crosvm or libkrun.
        manager: libvirt, openstack, kubevirt or proxmox; None for none or an unknown one.
        start_ticks: When the process started: tells it from a later one with the same pid.
        vm_id: The manager's own number for the VM (Proxmox's VMID).
        container: Whether it runs in a pid namespace of its own; None if not known.
        exe_deleted: Its program file was removed or replaced, as by an upgrade.
        parent: Its parent's pid.
        stack: Where its stack begins: tells it from a program that its process executes later; 0
            where that may not be read.
    """

    pid: int
    exe: Path
    arguments: tuple[str, ...]
    name: str | None
    uuid: str | None
    memory_bytes: int | None
    vcpus: int | None
    machine: str
    accel: str | None
    kind: str
    manager: str | None
    start_ticks: int
    vm_id: str | None = None
    container: bool | None = None
    exe_deleted: bool = False
    parent: int = 0
    stack: int = 0

    @property
    def label(self) -> str | None:
        """The name on one line and without control characters, for a terminal or a log."""
        if self.name is None:
            return None
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in self.name)

    @property
    def program(self) -> Path:
        """A path that opens the program this process runs, whatever became of the file."""
        return PROC / str(self.pid) / "exe"

    def hold(self) -> int:
        """Take hold of the process.

        Returns:
            A pidfd; the caller closes it.

        Raises:
            ProcessError: It has ended, even where another process has its pid now.
        """
        return open_pidfd(self.pid, self.start_ticks)


def inspect(pid: int, proc: Path = PROC) -> Vmm:
    """Look at a process that should be a VMM.

    Args:
        pid: Which.
        proc: Where procfs is mounted.

    Raises:
        ProcessError: There is no such process, it may not be read, or it is not a VMM.
    """
    process = read_process(pid, proc)
    found = recognise(process, proc)
    if found is None:
        hidden = f"a program that /proc/{pid}/exe does not tell this process"
        raise ProcessError(
            f"process {pid} is not a VMM that aerostat knows",
            reason=f"it runs {process.exe or hidden}",
            remedy="list the VMs: aerostat vms",
        )
    return found


def recognise(process: Process, proc: Path = PROC) -> Vmm | None:
    """Describe a process if it runs a VM; None if it does not."""
    exe = process.exe or Path(process.arguments[0] if process.arguments else "")
    kind = _kind(process, exe.name, proc)
    if kind is None:
        return None
    said = _describe(kind, process, proc)
    depth = len(process.namespace_pids)
    return Vmm(
        pid=process.pid,
        exe=exe,
        arguments=process.arguments,
        name=said.name,
        uuid=said.uuid,
        memory_bytes=said.memory_bytes,
        vcpus=said.vcpus,
        machine=said.machine,
        accel=said.accel,
        kind=kind,
        manager=said.manager,
        start_ticks=process.start_ticks,
        vm_id=said.vm_id,
        container=depth > 1 if depth else None,
        exe_deleted=process.exe_deleted,
        parent=process.parent,
        stack=process.stack,
    )


def _kind(process: Process, program: str, proc: Path) -> str | None:
    kind = next((kind for kind, name in _PROGRAMS.items() if name.fullmatch(program)), None)
    if kind == "qemu":
        # libvirt asks a QEMU without a machine what it can do.
        return None if machine_fields(process.arguments).get("type") == "none" else kind
    if kind == "crosvm":
        return kind if {"run", "run-mp"} & set(process.arguments[1:]) else None
    if program == "krunvm":
        return kind if "start" in process.arguments[1:] else None
    if kind is None and process.exe is not None and _maps_libkrun(process.pid, proc):
        return "libkrun"
    return kind


def _maps_libkrun(pid: int, proc: Path) -> bool:
    try:
        return any(_LIBKRUN.fullmatch(mapping.path) for mapping in mappings(pid, proc))
    except ProcessError:
        return False


def _describe(kind: str, process: Process, proc: Path) -> CommandLine:
    if kind == "qemu":
        return describe_qemu(process.arguments)
    if kind == "firecracker":
        return describe_firecracker(process, proc)
    if kind == "cloud-hypervisor":
        return describe_cloud_hypervisor(process.arguments)
    if kind == "crosvm":
        return describe_crosvm(process.arguments)
    return describe_libkrun(process)


def load_bias(pid: int, exe: Path) -> int:
    """Return what to add to an ELF address of the program to get its HVA.

    Raises:
        ProcessError: The program's first mapping is not found.
    """
    for mapping in mappings(pid):
        if mapping.path.removesuffix(" (deleted)") == str(exe) and mapping.offset_bytes == 0:
            return mapping.start
    raise ProcessError(f"process {pid} has no mapping of {exe}")


def guest_ram(vmm: Vmm) -> Mapping:
    """Find the one mapping of a QEMU's memory: the one of its size that holds data and no code.

    Raises:
        ProcessError: None or several fit (memory in several backends or NUMA nodes).
    """
    fitting = [
        mapping
        for mapping in mappings(vmm.pid)
        if mapping.permissions.startswith("rw-") and mapping.length_bytes == vmm.memory_bytes
    ]
    if len(fitting) != 1:
        raise ProcessError(
            f"cannot find the guest memory of process {vmm.pid}",
            reason=f"{len(fitting)} mappings hold {vmm.memory_bytes} bytes in one piece",
        )
    return fitting[0]
