"""Where the host's probes go in one running QEMU, and how they are attached."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tracer.engine.attach import Attach, Attachment, attach_all
from tracer.engine.libbpf import Btf
from tracer.engine.loader import Program
from tracer.errors import ProbeError, SymbolError
from tracer.sites.elf import Binary
from tracer.sites.elf_bounds import odd_file
from tracer.sites.handler_sites import find_entry
from tracer.sites.probes import HOST_EVENT_POINTS, Kind, Point, Way, host_request_points
from tracer.sites.recover import HANDLERS, Handler, find_handlers, queue_index_offset

SOURCES = (
    "host_vms.bpf.c",
    "host_runs.bpf.c",
    "host_requests.bpf.c",
    "host_calls.bpf.c",
    "host_vectors.bpf.c",
    "host_events.bpf.c",
)
MAX_VMS = 256
"""VMs that one recorder takes at a time, one place kept for measuring its own cost."""
MAX_THREADS = 4096
"""Threads of all VMs that are remembered between a call's entry and its exit."""

_SYSTEM_CALLS = {"NR_MADVISE": 28, "NR_FALLOCATE": 285, "NR_PROCESS_MADVISE": 440, "NR_MMAP": 9}
"""Numbers of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl)."""
ELEMENT_LAYOUT = {
    # VirtQueueElement of QEMU 4.2 and later (include/hw/virtio/virtio.h): index, len, ndescs,
    # out_num, in_num, in_addr, out_addr, in_sg, out_sg.
    "ELEM_OUT_NUM": 12,
    "ELEM_IN_NUM": 16,
    "ELEM_IN_ADDR": 24,
    "ELEM_OUT_ADDR": 32,
    "ELEM_IN_SG": 40,
    "ELEM_OUT_SG": 48,
}


@dataclass(frozen=True, slots=True)
class QemuSites:
    """What was found in a QEMU's program file.

    Attributes:
        exe: The program, as this process can open it.
        build_id: Its GNU build id, hex.
        version: As its `-version` prints it.
        handlers: The balloon's handlers that were found, the in- and deflate handler first.
        missing: Name of each other handler (HANDLERS of tracer/sites/recover.py) to why not.
        queue_index_offset_bytes: Of VirtQueue.queue_index.
        file_offsets: Of each site, by the target of its way in tracer/sites/probes.py.
    """

    exe: Path
    build_id: str | None
    version: str | None
    handlers: tuple[Handler, ...]
    missing: Mapping[str, str]
    queue_index_offset_bytes: int
    file_offsets: Mapping[str, int]

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the handlers that were found (enum aerostat_handler)."""
        return tuple(HANDLERS.index(handler.name) for handler in self.handlers)


_KEPT_PROGRAMS = 16
"""A host has a few versions of QEMU at a time, and many VMs of each."""
_Identity = tuple[int, int, int, int]
_kept: dict[_Identity, QemuSites] = {}


def find_sites(pid: int) -> QemuSites:
    """Find the probe sites in the program that a process runs.

    Reads `/proc/PID/exe`, which is right even where an upgrade has replaced the file on disk. That
    takes a second, in which no VM is taken up, so a program is read for the first of its VMs alone.

    Raises:
        SymbolError: The handlers are not found, or the file cannot be made sense of.
    """
    exe = Path(f"/proc/{pid}/exe")
    identity = _identity(exe)
    if identity is not None and identity in _kept:
        return replace(_kept[identity], exe=exe)
    sites = _read_sites(pid, exe)
    if identity is not None and identity == _identity(exe):
        _kept[identity] = sites
        while len(_kept) > _KEPT_PROGRAMS:
            del _kept[next(iter(_kept))]
    return sites


def _identity(exe: Path) -> _Identity | None:
    """Tell a file from every other one, and from itself before it was written to."""
    try:
        status = exe.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns


def _read_sites(pid: int, exe: Path) -> QemuSites:
    with odd_file(exe), contextlib.closing(Binary(exe)) as binary:
        if "virtqueue_pop" not in binary.symbols:
            raise SymbolError(
                f"process {pid} has no virtqueue functions to probe",
                reason=f"{exe.readlink()} does not export virtqueue_pop",
            )
        handlers = find_handlers(binary)
        return QemuSites(
            exe=exe,
            build_id=binary.build_id,
            version=_qemu_version(binary),
            handlers=handlers.found,
            missing=handlers.missing,
            queue_index_offset_bytes=queue_index_offset(binary),
            file_offsets=_file_offsets(binary, handlers.found),
        )


def _file_offsets(binary: Binary, handlers: tuple[Handler, ...]) -> dict[str, int]:
    offsets = {}
    for handler in handlers:
        number = HANDLERS.index(handler.name)
        offsets[f"{number}:pop"] = binary.file_offset(handler.pop_site)
        if handler.push_site is not None:
            offsets[f"{number}:push"] = binary.file_offset(handler.push_site)
    for way in (way for point in HOST_EVENT_POINTS for way in point.ways):
        address = binary.symbols.get(way.target)
        if address is not None:
            offsets[way.target] = binary.file_offset(find_entry(binary, address))
    return offsets


def _qemu_version(binary: Binary) -> str | None:
    """Read the version from the text that `-version` prints (softmmu/vl.c, since 0.9)."""
    found = binary.section_bytes(".rodata")
    _, prefix, rest = (found[1] if found else b"").partition(b"QEMU emulator version ")
    return rest[:200].split(b"\n")[0].split(b"\0")[0].decode(errors="replace") if prefix else None


def compile_host() -> Program:
    """Compile the host's programs; VMs and their layouts are told to them later.

    Raises:
        BccError: BCC is missing or refuses.
    """
    limits = {"MAX_VMS": MAX_VMS, "MAX_THREADS": MAX_THREADS}
    return Program(SOURCES, {**limits, **_SYSTEM_CALLS, **ELEMENT_LAYOUT})


def attach_calls(program: Program, points: tuple[Point, ...]) -> list[Attachment]:
    """Attach system-call probes; they act for VMs that are known to the program alone.

    Nothing raises: what does not attach is told in the attachment.
    """
    return attach_all(program, points, host_mechanisms(None, 0))


def attach_requests(program: Program, sites: QemuSites, pid: int) -> list[Attachment]:
    """Attach the probes of one QEMU's balloon handlers, and those of what it says of itself.

    Raises:
        ProbeError: The in- and deflate handler cannot be probed.
    """
    points = (*host_request_points(sites.numbers), *HOST_EVENT_POINTS)
    attached = attach_all(program, points, host_mechanisms(sites, pid))
    for name, reason in sites.missing.items():
        points = host_request_points((HANDLERS.index(name),))
        attached += [Attachment(point, None, reason) for point in points]
    return attached


def host_mechanisms(sites: QemuSites | None, pid: int) -> Mapping[Kind, Attach]:
    """How each kind of host probe is attached, those in a program to one process.

    Args:
        sites: Probe sites of that process, or None to attach system-call probes alone.
        pid: That process; not used without sites.
    """

    def uprobe(program: Program, way: Way) -> None:
        if sites is None:
            raise ProbeError(f"cannot attach {way.target}", reason="no QEMU was named")
        offset = sites.file_offsets.get(way.target)
        if offset is None:
            raise ProbeError(f"cannot attach {way.target}", reason="this QEMU does not export it")
        program.attach_uprobe(way.program, sites.exe, offset, pid)

    def tracepoint(program: Program, way: Way) -> None:
        program.attach_tracepoint(way.program, *way.target.split(":"))

    def raw_tracepoint(program: Program, way: Way) -> None:
        program.attach_raw_tracepoint(way.program, way.target)

    def trampoline(program: Program, way: Way) -> None:
        at_return = way.kind is Kind.FEXIT
        program.attach_fentry(way.program, Btf(), way.target, at_return=at_return)

    def kprobe(program: Program, way: Way) -> None:
        program.attach_kprobe(way.program, way.target, at_return=way.kind is Kind.KRETPROBE)

    return {
        Kind.UPROBE: uprobe,
        Kind.FENTRY: trampoline,
        Kind.FEXIT: trampoline,
        Kind.KPROBE: kprobe,
        Kind.KRETPROBE: kprobe,
        Kind.TRACEPOINT: tracepoint,
        Kind.RAW_TRACEPOINT: raw_tracepoint,
    }
