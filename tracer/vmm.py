"""One VMM process as /proc shows it: what it runs, and where its guest's memory is mapped."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tracer.errors import ProcessError

_UNITS = {"": 1 << 20, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MAPS_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) \S+ (\d+)\s*(.*)")


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps: `start <= HVA < end`."""

    start: int
    end: int
    permissions: str
    offset_bytes: int
    inode: int
    path: str

    @property
    def length_bytes(self) -> int:
        """Size in bytes."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Vmm:
    """A running QEMU and what its command line says of the VM."""

    pid: int
    exe: Path
    arguments: tuple[str, ...]
    name: str | None
    uuid: str | None
    memory_bytes: int
    vcpus: int
    machine: str
    accel: str | None


def inspect(pid: int) -> Vmm:
    """Look at a process that should be a QEMU.

    Raises:
        ProcessError: There is no such process, it may not be read, or it is not a QEMU.
    """
    root = Path(f"/proc/{pid}")
    try:
        arguments = tuple(
            part.decode(errors="replace")
            for part in (root / "cmdline").read_bytes().split(b"\0")[:-1]
        )
        exe = (root / "exe").readlink()
    except FileNotFoundError as error:
        raise ProcessError(
            f"there is no process {pid}",
            reason=str(error),
            remedy="take the pid of the QEMU process: pgrep -a qemu",
        ) from error
    except OSError as error:
        raise ProcessError(
            f"cannot read process {pid}", reason=str(error), remedy="run as root"
        ) from error
    if not re.search(r"qemu|kvm", exe.name):
        raise ProcessError(
            f"process {pid} is not a VMM that aerostat knows",
            reason=f"it runs {exe}",
            remedy="take the pid of the QEMU process: pgrep -a qemu",
        )
    return _from_command_line(pid, exe, arguments)


def _from_command_line(pid: int, exe: Path, arguments: tuple[str, ...]) -> Vmm:
    options = _options(arguments)
    name = _pick(options.get("name"), "guest")
    machine = _pick(options.get("machine"), "type") or "pc"
    accel = _pick(options.get("accel"), "accel") or _named(options.get("machine"), "accel")
    if accel is None and "enable-kvm" in options:
        accel = "kvm"
    return Vmm(
        pid=pid,
        exe=exe,
        arguments=arguments,
        name=name,
        uuid=options.get("uuid"),
        memory_bytes=_memory_bytes(_pick(options.get("m"), "size")),
        vcpus=int(_digits(_pick(options.get("smp"), "cpus")) or 1),
        machine=machine,
        accel=accel,
    )


def _options(arguments: tuple[str, ...]) -> dict[str, str]:
    """Map `-option value` and `--option value` pairs.

    The last of an option wins, except that QEMU merges every -machine, of which -M is another name
    (softmmu/vl.c machine_merge_property, since 6.0).
    """
    found: dict[str, str] = {}
    machine: list[str] = []
    for option, value in zip(arguments[1:], (*arguments[2:], ""), strict=True):
        if option.startswith("-"):
            name = option.lstrip("-")
            found[name] = "" if value.startswith("-") else value
            if name in ("machine", "M"):
                machine.append(found[name])
    if machine:
        # A bare word is the type, wherever it stands.
        parts = [part for text in machine for part in text.split(",")]
        found["machine"] = ",".join(sorted(parts, key=lambda part: "=" in part))
    return found


def _named(text: str | None, key: str) -> str | None:
    """Return `key=` of a comma-separated option; the last one wins."""
    values = [
        part.partition("=")[2] for part in (text or "").split(",") if part.startswith(f"{key}=")
    ]
    return values[-1] if values else None


def _pick(text: str | None, key: str) -> str | None:
    """Return `key=` of a comma-separated option, or its first bare word."""
    named = _named(text, key)
    if named is not None or text is None:
        return named
    first = text.split(",")[0]
    return first if "=" not in first else None


def _digits(text: str | None) -> str:
    match = re.match(r"\d+", text or "")
    return match.group() if match else ""


def _memory_bytes(text: str | None) -> int:
    """Parse `-m`: MiB unless a suffix says otherwise; QEMU's default is 128 MiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)i?b?", (text or "128").lower())
    if match is None:
        raise ProcessError(f"cannot read the memory size {text!r} of the VMM's command line")
    return int(float(match.group(1)) * _UNITS[match.group(2)])


def mappings(pid: int) -> list[Mapping]:
    """Read a process's memory map, rising by address.

    Raises:
        ProcessError: The process is gone or may not be read.
    """
    try:
        text = Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError as error:
        raise ProcessError(
            f"cannot read the memory map of process {pid}", reason=str(error), remedy="run as root"
        ) from error
    found = []
    for line in text.splitlines():
        match = _MAPS_LINE.match(line)
        if match:
            start, end, permissions, offset, inode, path = match.groups()
            found.append(
                Mapping(
                    int(start, 16), int(end, 16), permissions, int(offset, 16), int(inode), path
                )
            )
    return found


def is_running(pidfd: int) -> bool:
    """Say whether the process behind a pidfd still runs."""
    import select

    return not select.select([pidfd], [], [], 0)[0]


def load_bias(pid: int, exe: Path) -> int:
    """Return what to add to an ELF address of the program to get its HVA.

    Raises:
        ProcessError: The program's first mapping is not found.
    """
    for mapping in mappings(pid):
        if mapping.path.removesuffix(" (deleted)") == str(exe) and mapping.offset_bytes == 0:
            return mapping.start
    raise ProcessError(f"process {pid} has no mapping of {exe}")


def below_4g_bytes(machine: str, memory_bytes: int) -> int:
    """How much guest memory lies below the PCI hole; the rest begins at GPA 4 GiB.

    The split is QEMU's: hw/i386/pc_q35.c pc_q35_init (2 GiB where memory reaches 0xb0000000, since
    2.0) and hw/i386/pc_piix.c pc_init1 (3 GiB where it reaches 0xe0000000, since 1.7).
    """
    if "q35" in machine:
        return min(memory_bytes, 0x80000000 if memory_bytes >= 0xB0000000 else 0xB0000000)
    return min(memory_bytes, 0xC0000000 if memory_bytes >= 0xE0000000 else 0xE0000000)


def guest_ram(vmm: Vmm) -> Mapping:
    """Find the mapping of the guest's memory: the one of its size that holds data and no code.

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
