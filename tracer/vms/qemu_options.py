"""QEMU's options: name, manager, size, and the order in which it lays out its memory backends."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tracer.vms.command_line import CommandLine, fields, last, size_bytes, text, values, vcpu_count

_DEFAULT_BYTES = 128 << 20
"""`-m` where it is not given (include/hw/boards.h default_ram_size, since 2.7)."""
_TOPOLOGY = ("sockets", "dies", "clusters", "modules", "cores", "threads")


@dataclass(frozen=True, slots=True)
class Backend:
    """One piece of the VM's main memory.

    Attributes:
        kind: ram, memfd, file or another; ram for memory that QEMU makes by itself.
        object_id: The id of the backend, which is in the name of a file that QEMU makes for it.
        length_bytes: Its size, or None where it is not said.
        path: `mem-path`, a file or a directory.
    """

    kind: str
    object_id: str
    length_bytes: int | None
    path: str | None = None


def machine_fields(arguments: tuple[str, ...]) -> dict[str, str]:
    """Read every -machine, of which -M is another name, merged.

    QEMU merges them since 6.0 (softmmu/vl.c machine_merge_property).
    """
    found: dict[str, str] = {}
    for option in values(arguments, "-machine", "--machine", "-M"):
        found |= fields(option, "type")
    return found


def describe_qemu(arguments: tuple[str, ...]) -> CommandLine:
    """Read what QEMU's command line says of the VM."""
    machine = machine_fields(arguments)
    name = text(fields(last(arguments, "-name", "--name") or "", "guest").get("guest"))
    smbios = [fields(option) for option in values(arguments, "-smbios", "--smbios")]
    uuid = last(arguments, "-uuid", "--uuid") or _last_of(smbios, "uuid")
    vm_id = text(last(arguments, "-id"))
    return CommandLine(
        name=name,
        vm_id=vm_id,
        uuid=text(uuid),
        manager=_manager(arguments, name, vm_id, smbios),
        memory_bytes=memory_bytes(arguments),
        vcpus=_vcpus(arguments),
        machine=machine.get("type", "pc")[:64],
        accel=_accel(arguments, machine),
    )


def memory_bytes(arguments: tuple[str, ...]) -> int | None:
    """Return the memory that the machine starts with; None where it cannot be told."""
    option = last(arguments, "-m", "--m")
    if option is not None:
        return size_bytes(fields(option, "size").get("size"), "m")
    # A configuration file may have said it.
    return None if values(arguments, "-readconfig", "--readconfig") else _DEFAULT_BYTES


def ram_backends(arguments: tuple[str, ...]) -> list[Backend]:
    """List the pieces of main memory in the order of guest-physical addresses.

    NUMA nodes come one after the other by number (hw/core/numa.c numa_init_memdev_container,
    since 5.0); otherwise -machine names one backend, or QEMU makes one.
    """
    objects = {}
    for option in values(arguments, "-object", "--object"):
        found = fields(option, "qom-type")
        if found.get("qom-type", "").startswith("memory-backend-") and "id" in found:
            objects[found["id"]] = found
    nodes: list[tuple[int, str]] = []
    for option in values(arguments, "-numa", "--numa"):
        node = fields(option, "type")
        if node.get("type") == "node" and node.get("memdev") in objects:
            number = re.fullmatch(r"\d{1,6}", node.get("nodeid", ""))
            nodes.append((int(number.group()) if number else len(nodes), node["memdev"]))
    if nodes:
        return [_backend(objects[name]) for _, name in sorted(nodes, key=lambda node: node[0])]
    named = machine_fields(arguments).get("memory-backend")
    if named in objects:
        return [_backend(objects[named])]
    path = text(last(arguments, "-mem-path", "--mem-path"))
    return [Backend("file" if path else "ram", "pc.ram", memory_bytes(arguments), path)]


def _backend(found: dict[str, str]) -> Backend:
    return Backend(
        kind=found["qom-type"].removeprefix("memory-backend-"),
        object_id=found["id"],
        length_bytes=size_bytes(found.get("size")),
        path=text(found.get("mem-path")),
    )


def _last_of(options: list[dict[str, str]], key: str) -> str | None:
    found = [option[key] for option in options if key in option]
    return found[-1] if found else None


def _manager(
    arguments: tuple[str, ...], name: str | None, vm_id: str | None, smbios: list[dict[str, str]]
) -> str | None:
    """Tell who started this QEMU by what each manager always writes.

    KubeVirt and OpenStack start theirs through libvirt, whose master key has a fixed id.
    """
    line = "\0".join(arguments)
    if "kubevirt" in line.lower():
        return "kubevirt"
    if re.fullmatch(r"instance-[0-9a-f]{8}", name or "") or any(
        "OpenStack" in option.get("product", "") for option in smbios
    ):
        return "openstack"
    if "masterKey0" in line or "libvirt/qemu" in line:
        return "libvirt"
    if "qemu-server/" in line or (vm_id or "").isdecimal():
        return "proxmox"
    return None


def _vcpus(arguments: tuple[str, ...]) -> int | None:
    option = last(arguments, "-smp", "--smp")
    if option is None:
        return 1
    found = fields(option, "cpus")
    if "cpus" in found:
        return vcpu_count(found["cpus"])
    counts = [vcpu_count(found.get(key, "1")) or 1 for key in _TOPOLOGY]
    return vcpu_count(str(math.prod(counts)))


def _accel(arguments: tuple[str, ...], machine: dict[str, str]) -> str | None:
    option = last(arguments, "-accel", "--accel")
    if option is not None:
        return text(fields(option, "accel").get("accel"))
    if "accel" in machine:
        return text(machine["accel"].split(":")[0])
    return "kvm" if "-enable-kvm" in arguments else None
