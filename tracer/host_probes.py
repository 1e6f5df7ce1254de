"""Where the host's probes go in one running QEMU, and how they are attached."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tracer.attach import Attach, Attachment, attach_all
from tracer.elf import Binary
from tracer.errors import ProbeError, SymbolError
from tracer.loader import Program
from tracer.probes import HOST_CALL_POINTS, Kind, Way, host_request_points
from tracer.recover import HANDLERS, Handler, find_handlers, queue_index_offset

REQUEST_RING_BYTES = 4 << 20
CALL_RING_BYTES = 4 << 20
LOST_REQUESTS, LOST_CALLS, HIT_POP, HIT_PUSH, HIT_CALL = range(5)
"""Indices of the map `counters` of bpf/host.bpf.c."""

_PAGE_BYTES = 4096
_NR_MADVISE = 28
_NR_FALLOCATE = 285
_ELEMENT_LAYOUT = {
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
    """What was found in a QEMU's program file."""

    exe: Path
    build_id: str | None
    version: str | None
    handlers: tuple[Handler, ...]
    queue_index_offset_bytes: int
    file_offsets: tuple[tuple[int, int], ...]
    """For each handler the file offsets of its pop and push sites."""


def find_sites(pid: int) -> QemuSites:
    """Find the probe sites in the program that a process runs.

    Reads `/proc/PID/exe`, which is right even where an upgrade has replaced the file on disk.

    Raises:
        SymbolError: The handlers are not found.
    """
    exe = Path(f"/proc/{pid}/exe")
    with contextlib.closing(Binary(exe)) as binary:
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
            handlers=handlers,
            queue_index_offset_bytes=queue_index_offset(binary),
            file_offsets=tuple(
                (binary.file_offset(handler.pop_site), binary.file_offset(handler.push_site))
                for handler in handlers
            ),
        )


def _qemu_version(binary: Binary) -> str | None:
    """Read the version from the text that `-version` prints (softmmu/vl.c, since 0.9)."""
    found = binary.section_bytes(".rodata")
    _, prefix, rest = (found[1] if found else b"").partition(b"QEMU emulator version ")
    return rest[:200].split(b"\n")[0].split(b"\0")[0].decode(errors="replace") if prefix else None


def compile_host(sites: QemuSites | None, *, calls: bool, merge: bool) -> Program:
    """Compile bpf/host.bpf.c for one QEMU.

    Args:
        sites: Its probe sites and layouts; None where only system calls are to be probed.
        calls: Whether system calls are recorded.
        merge: Whether adjacent calls are merged in the kernel.

    Raises:
        BccError: BCC is missing or refuses.
    """
    defines = {
        "REQUESTS_PAGES": REQUEST_RING_BYTES // _PAGE_BYTES,
        "CALLS_PAGES": CALL_RING_BYTES // _PAGE_BYTES,
        "VQ_QUEUE_INDEX": sites.queue_index_offset_bytes if sites else 0,
        "NR_MADVISE": _NR_MADVISE,
        "NR_FALLOCATE": _NR_FALLOCATE,
        "MERGE_CALLS": int(merge),
        **_ELEMENT_LAYOUT,
    }
    if calls:
        defines["TRACE_CALLS"] = 1
    return Program("host.bpf.c", defines)


def attach_calls(program: Program) -> list[Attachment]:
    """Attach the system-call probes; no call is recorded before a request probe names its thread.

    Nothing raises: what does not attach is told in the attachment.
    """
    return attach_all(program, HOST_CALL_POINTS, host_mechanisms(None, 0))


def attach_requests(program: Program, sites: QemuSites, pid: int) -> list[Attachment]:
    """Attach the probes of one QEMU's balloon handlers.

    Raises:
        ProbeError: The in- and deflate handler cannot be probed.
    """
    points = host_request_points(len(sites.handlers))
    attached = attach_all(program, points, host_mechanisms(sites, pid))
    reason = "no handler of free page reports was found in this QEMU"
    missing = host_request_points(len(HANDLERS))[len(points) :]
    return attached + [Attachment(point, None, reason) for point in missing]


def host_mechanisms(sites: QemuSites | None, pid: int) -> Mapping[Kind, Attach]:
    """How each kind of host probe is attached, those in a program to one process.

    Args:
        sites: Probe sites of that process, or None to attach system-call probes alone.
        pid: That process; not used without sites.
    """

    def uprobe(program: Program, way: Way) -> None:
        if sites is None:
            raise ProbeError(f"cannot attach {way.target}", reason="no QEMU was named")
        handler, site = way.target.split(":")
        offset = sites.file_offsets[int(handler)][0 if site == "pop" else 1]
        program.attach_uprobe(way.program, sites.exe, offset, pid)

    def tracepoint(program: Program, way: Way) -> None:
        program.attach_tracepoint(way.program, *way.target.split(":"))

    def raw_tracepoint(program: Program, way: Way) -> None:
        program.attach_raw_tracepoint(way.program, way.target)

    return {
        Kind.UPROBE: uprobe,
        Kind.TRACEPOINT: tracepoint,
        Kind.RAW_TRACEPOINT: raw_tracepoint,
    }
