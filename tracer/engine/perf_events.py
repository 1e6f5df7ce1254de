"""Attaches loaded programs to perf events: uprobes, kprobes, classic tracepoints; and raw ones.

perf_event_open(2), and PERF_EVENT_IOC_SET_BPF on what it opens. The PMUs `kprobe` and `uprobe` are
there since Linux 4.17.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from ctypes import c_char_p, c_uint32, c_uint64
from pathlib import Path

from tracer.engine.libbpf import library

_NR_PERF_EVENT_OPEN = 298
_FLAG_FD_CLOEXEC = 8
_IOC_ENABLE, _IOC_SET_BPF = 0x2400, 0x40042408
"""_IO('$', 0) and _IOW('$', 8, __u32) of include/uapi/linux/perf_event.h."""
_TYPE_TRACEPOINT = 2
_AT_RETURN = 1
"""Bit 0 of config, as `format/retprobe` of both PMUs has it since they exist."""
_PMUS = Path("/sys/bus/event_source/devices")


class _Attributes(ctypes.Structure):
    """struct perf_event_attr as of PERF_ATTR_SIZE_VER1; what comes after that is zero."""

    _fields_ = (
        ("type", c_uint32),
        ("size", c_uint32),
        ("config", c_uint64),
        ("sample_period", c_uint64),
        ("sample_type", c_uint64),
        ("read_format", c_uint64),
        ("flags", c_uint64),
        ("wakeup_events", c_uint32),
        ("bp_type", c_uint32),
        ("place", c_char_p),  # config1: path of a program, or a kernel function
        ("offset", c_uint64),  # config2: in it, or an address where it is empty
    )


def attach_to_file(program: int, path: Path, file_offset: int, pid: int) -> int:
    """Run a program at an instruction of a program file, in one process's memory.

    Args:
        program: Its descriptor; type kprobe.
        path: The file.
        file_offset: Of the instruction.
        pid: The process.

    Returns:
        A descriptor; closing it detaches. So do the others.

    Raises:
        OSError: The kernel refuses it.
    """
    made = _Attributes(type=_pmu("uprobe"), place=bytes(path), offset=file_offset)
    return _attached(program, made, pid)


def attach_to_function(program: int, name: str, address: int | None, *, at_return: bool) -> int:
    """Run a program at the entry or the return of a kernel function.

    Args:
        program: Its descriptor; type kprobe.
        name: The function, `MODULE:FUNCTION` where others have that name.
        address: Where it is, in place of the name.
        at_return: At its return.

    Raises:
        OSError: The kernel refuses it.
    """
    place, offset = (name.encode(), 0) if address is None else (b"", address)
    config = _AT_RETURN if at_return else 0
    made = _Attributes(type=_pmu("kprobe"), config=config, place=place, offset=offset)
    return _attached(program, made, -1)


def attach_to_tracepoint(program: int, number: int) -> int:
    """Run a program at a classic tracepoint.

    Args:
        program: Its descriptor; type tracepoint.
        number: The tracepoint's `id` in tracefs.

    Raises:
        OSError: The kernel refuses it.
    """
    return _attached(program, _Attributes(type=_TYPE_TRACEPOINT, config=number), -1)


def attach_to_raw_tracepoint(program: int, event: str) -> int:
    """Run a program at a raw tracepoint (BPF_RAW_TRACEPOINT_OPEN, since 4.17).

    Raises:
        OSError: The kernel refuses it.
    """
    return _checked(library().bpf_raw_tracepoint_open(event.encode(), program))


def _pmu(name: str) -> int:
    try:
        return int((_PMUS / name / "type").read_text())
    except FileNotFoundError as error:
        raise OSError(errno.ENODEV, f"the kernel was built without {name}s") from error


def _attached(program: int, attributes: _Attributes, pid: int) -> int:
    attributes.size = ctypes.sizeof(attributes)
    # Of all processes, a CPU has to be named; the probe is hit on every one nevertheless.
    cpu = 0 if pid == -1 else -1
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    event = _checked(
        syscall(_NR_PERF_EVENT_OPEN, ctypes.byref(attributes), pid, cpu, -1, _FLAG_FD_CLOEXEC)
    )
    try:
        fcntl.ioctl(event, _IOC_SET_BPF, program)
        fcntl.ioctl(event, _IOC_ENABLE, 0)
    except OSError:
        os.close(event)
        raise
    return event


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
