"""What the command lines of Firecracker, cloud-hypervisor, crosvm and libkrun's users say.

Options as of Firecracker 1.15 (src/firecracker/src/main.rs), cloud-hypervisor 50
(cloud-hypervisor/src/main.rs), crosvm of August 2026 (src/crosvm/cmdline.rs), krunvm 0.2.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from tracer.vms.command_line import CommandLine, fields, last, size_bytes, text, vcpu_count
from tracer.vms.process import PROC, Process

_CONFIG_BYTES = 1 << 20


def describe_firecracker(process: Process, proc: Path = PROC) -> CommandLine:
    """Read Firecracker's id, and the configuration file where it was started with one.

    A VM that was configured over the API says nothing of its size here.
    """
    arguments = process.arguments
    config = last(arguments, "--config-file")
    machine = _json_file(proc / str(process.pid), config).get("machine-config") if config else None
    found: dict[str, Any] = machine if isinstance(machine, dict) else {}
    return CommandLine(
        name=text(last(arguments, "--id") or last(arguments, "--api-sock")),
        memory_bytes=size_bytes(_number(found.get("mem_size_mib")), "m"),
        vcpus=vcpu_count(_number(found.get("vcpu_count"))),
        accel="kvm",
    )


def describe_cloud_hypervisor(arguments: tuple[str, ...]) -> CommandLine:
    """Read cloud-hypervisor's options; a VM is known by the path of its API socket."""
    memory = size_bytes(fields(last(arguments, "--memory") or "").get("size"))
    zones = [size_bytes(fields(zone).get("size")) for zone in _lists(arguments, "--memory-zone")]
    if zones and None not in zones:
        memory = sum(zone for zone in zones if zone is not None)
    return CommandLine(
        name=text(fields(last(arguments, "--api-socket") or "", "path").get("path")),
        uuid=text(fields(last(arguments, "--platform") or "").get("uuid")),
        memory_bytes=memory,
        vcpus=vcpu_count(fields(last(arguments, "--cpus") or "", "boot").get("boot")),
        accel="kvm",
    )


def describe_crosvm(arguments: tuple[str, ...]) -> CommandLine:
    """Read the options of `crosvm run`; a VM without a name is known by its control socket."""
    memory = fields(last(arguments, "--mem", "-m") or "", "size").get("size")
    cpus = fields(last(arguments, "--cpus", "-c") or "", "num-cores").get("num-cores")
    return CommandLine(
        name=text(last(arguments, "--name") or last(arguments, "--socket", "-s")),
        memory_bytes=size_bytes(memory, "m"),
        vcpus=vcpu_count(cpus),
        accel="kvm",
    )


def describe_libkrun(process: Process) -> CommandLine:
    """Read krunvm's VM name; other users of libkrun configure it by its own calls."""
    arguments = process.arguments
    is_krunvm = process.exe is not None and process.exe.name == "krunvm"
    named = last(arguments, "start") if is_krunvm else None
    return CommandLine(name=text(named), accel="kvm")


def _lists(arguments: tuple[str, ...], option: str) -> list[str]:
    """Return the values of an option that takes several words after itself, in order."""
    found, is_open = [], False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == option:
            is_open = True
            found += [value] if equals else []
        elif argument.startswith("-"):
            is_open = False
        elif is_open:
            found.append(argument)
    return found


def _number(value: Any) -> str | None:
    return str(value) if isinstance(value, int) else None


def _json_file(root: Path, name: str) -> dict[str, Any]:
    """Read a file that a process named, as that process sees it: below its own root.

    Returns:
        Nothing where it is no small regular file of JSON: the process may have named any file.
    """
    path = root / "root" / name.lstrip("/") if name.startswith("/") else root / "cwd" / name
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY)
    except (OSError, ValueError):
        return {}
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return {}
        try:
            loaded = json.loads(file.read(_CONFIG_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
    return loaded if isinstance(loaded, dict) else {}
