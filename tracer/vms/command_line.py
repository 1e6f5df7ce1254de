"""What a VMM's command line says of its VM, whichever VMM it is. All of it is hostile text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

MAX_TEXT = 1024
"""Characters of a name or path that are taken; the trace format allows 4096."""
_MAX_BYTES = 1 << 60
_MAX_VCPUS = 1 << 16
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What was said; None where nothing was.

    Attributes:
        name: What its manager or its user calls the VM.
        vm_id: The manager's own number for it, such as Proxmox's VMID.
        manager: libvirt, openstack, kubevirt or proxmox.
        memory_bytes: Guest memory it started with.
        machine: QEMU's machine type.
    """

    name: str | None = None
    vm_id: str | None = None
    uuid: str | None = None
    manager: str | None = None
    memory_bytes: int | None = None
    vcpus: int | None = None
    machine: str = ""
    accel: str | None = None


def fields(text: str, implied: str | None = None) -> dict[str, str]:
    """Read `a=1,b=2` as QEMU and others write it, or QEMU's JSON form; the last of a key wins.

    Args:
        text: The option's value. A comma within a value is doubled.
        implied: Key of a bare word; without one, a bare word is a switch that is on.
    """
    if text.startswith("{"):
        try:
            loaded = json.loads(text)
        except (ValueError, RecursionError):
            return {}
        words = {True: "on", False: "off"}
        return {
            key: words[value] if isinstance(value, bool) else str(value)
            for key, value in loaded.items()
            if isinstance(value, bool | int | float | str)
        }
    found = {}
    for part in re.findall(r"(?:[^,]|,,)+", text):
        key, equals, value = part.replace(",,", ",").partition("=")
        if equals:
            found[key] = value
        elif implied is not None:
            found[implied] = key
        else:
            found[key] = "on"
    return found


def values(arguments: tuple[str, ...], *names: str) -> list[str]:
    """Return every value of an option, given as `--name VALUE` or `--name=VALUE`, in order.

    Args:
        arguments: The argument vector.
        names: The option's spellings, with their dashes.
    """
    found = []
    for argument, following in zip(arguments, (*arguments[1:], ""), strict=True):
        name, equals, value = argument.partition("=")
        if argument in names:
            found.append(following)
        elif equals and name in names:
            found.append(value)
    return found


def last(arguments: tuple[str, ...], *names: str) -> str | None:
    """Return the last value of an option, or None where it is not given."""
    found = values(arguments, *names)
    return found[-1] if found else None


def text(value: str | None) -> str | None:
    """Bound a text; an empty one says nothing."""
    return value[:MAX_TEXT] if value else None


def size_bytes(value: str | None, unit: str = "") -> int | None:
    """Read a size such as `2G`, `1.5g`, `8388608k` or `512MiB`.

    Args:
        value: The text.
        unit: What a bare number counts: k, m, g, t, or bytes.

    Returns:
        Bytes; None where there is no such number, or one that no memory has.
    """
    match = re.fullmatch(r"(\d{1,20}(?:\.\d{1,9})?)([bkmgt]?)(?:i?b)?", (value or "").lower())
    if match is None:
        return None
    found = int(float(match.group(1)) * _UNITS[match.group(2) or unit])
    return found if 0 < found <= _MAX_BYTES else None


def vcpu_count(value: str | None) -> int | None:
    """Read a number of vCPUs; None where it is none."""
    if value is None or not re.fullmatch(r"\d{1,6}", value):
        return None
    return int(value) if 0 < int(value) <= _MAX_VCPUS else None
