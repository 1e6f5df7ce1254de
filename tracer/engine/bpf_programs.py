"""BPF programs by their instructions: loaded, attached as fentry, and how long they run."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from ctypes import c_char_p, c_uint32, c_uint64
from dataclasses import dataclass

from tracer.engine.libbpf import UNLISTED, WITH_MODULE_TYPES, Btf, LoadOptions, library
from tracer.engine.privilege import (
    LOAD,
    MODULE_TYPES,
    RUN_STATS,
    is_filtered,
    lacking,
    names,
    remedy_for,
)
from tracer.errors import REPORT, ProbeError

PROG_TYPE_KPROBE, PROG_TYPE_TRACEPOINT, PROG_TYPE_RAW_TRACEPOINT = 2, 5, 17
_PROG_TYPE_TRACING = 26
BPF_TRACE_FENTRY = 24
BPF_TRACE_FEXIT = 25
_LOG_BYTES = 8 << 20
_BPF_STATS_RUN_TIME = 0
EMPTY = bytes.fromhex("b7000000000000009500000000000000")
"""`r0 = 0; exit`: a program whose cost is that of getting there."""


class _ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info of the kernel, since 5.8 with both figures; only these are named."""

    _fields_ = (
        ("before", c_uint64 * 24),
        ("run_time_ns", c_uint64),
        ("runs", c_uint64),
    )


class _BtfInfo(ctypes.Structure):
    _fields_ = (
        ("btf", c_uint64),
        ("btf_size", c_uint32),
        ("id", c_uint32),
        ("name", c_uint64),
        ("name_len", c_uint32),
        ("kernel_btf", c_uint32),
    )


@functools.cache
def _module_btf_fd(module: str) -> int:
    """Open the kernel's BTF object of a module; fentry programs name their target through it."""
    number = c_uint32(0)
    while library().bpf_btf_get_next_id(number.value, ctypes.byref(number)) == 0:
        fd = int(library().bpf_btf_get_fd_by_id(number.value))
        if fd < 0:
            continue
        name = ctypes.create_string_buffer(64)
        info = _BtfInfo(name=ctypes.addressof(name), name_len=len(name))
        size = c_uint32(ctypes.sizeof(info))
        known = library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)) == 0
        if known and info.kernel_btf and name.value == module.encode():
            return fd
        os.close(fd)
    if ctypes.get_errno() == errno.EPERM:
        raise ProbeError(
            f"this process may not look up the type information of module {module}",
            reason="it lacks CAP_SYS_ADMIN",
            remedy=remedy_for(MODULE_TYPES),
        )
    raise ProbeError(
        f"the kernel holds no type information of module {module}", remedy=WITH_MODULE_TYPES
    )


def load_program(
    kind: int, instructions: bytes, function: str, options: LoadOptions | None = None
) -> int:
    """Load a program.

    Args:
        kind: BPF program type.
        instructions: Program text, map descriptors filled in.
        function: What it is for, to name it in an error.
        options: What more the kernel must know of it.

    Returns:
        Its file descriptor.

    Raises:
        ProbeError: The kernel refuses it; the reason is the verifier's last word where it has one.
    """
    options = options or LoadOptions(sz=ctypes.sizeof(LoadOptions))
    count = len(instructions) // 8

    def load() -> int:
        by_reference = ctypes.byref(options)
        return int(
            library().bpf_prog_load(kind, b"aerostat", b"GPL", instructions, count, by_reference)
        )

    program = load()
    if program >= 0:
        return program
    error = ctypes.get_errno()
    # Only now ask for the verifier's words: a log that does not fit fails a load that would pass.
    log = ctypes.create_string_buffer(_LOG_BYTES)
    options.log_level, options.log_size = 1, len(log)
    options.log_buf = ctypes.cast(log, c_char_p)
    program = load()
    if program >= 0:
        return program
    raise refusal(function, error, log.value.decode(errors="replace"))


def refusal(function: str, error: int, log: str) -> ProbeError:
    """Say why the kernel does not load a program.

    Args:
        function: The program.
        error: errno of the load.
        log: The verifier's words, where it got so far.
    """
    # The last lines of a log are counts: "processed 12 insns ...".
    lines = [line for line in log.strip().splitlines() if not line.startswith("processed ")]
    reason = os.strerror(error)
    if error == errno.EPERM and not lines:
        return ProbeError(
            f"the kernel does not let this process load the BPF program {function}",
            reason=denial(),
            remedy=denial_remedy(),
        )
    return ProbeError(
        f"the kernel's verifier refuses the BPF program {function}",
        reason=f"{reason}: {lines[-1].strip()}" if lines else reason,
        remedy=REPORT,
    )


def denial() -> str:
    """Say why bpf(2) answers EPERM to this process."""
    missing = lacking(LOAD)
    if missing:
        return f"this process lacks {names(missing)}"
    if is_filtered():
        return "a seccomp filter forbids bpf(2), as that of a container does"
    return "Operation not permitted, by a policy of this kernel"


def denial_remedy() -> str:
    """Say what mends that."""
    missing = lacking(LOAD)
    if missing:
        return remedy_for(missing)
    if is_filtered():
        return "run outside the container, or start it with --security-opt seccomp=unconfined"
    return "ask whoever configured its security module or lockdown"


def load_tracing(instructions: bytes, btf: Btf, function: str, attach_type: int) -> int:
    """Load a compiled program as fentry or fexit of a kernel or module function.

    Args:
        instructions: Program text as BCC compiled it, map descriptors filled in.
        btf: Where the function is described.
        function: Kernel function.
        attach_type: BPF_TRACE_FENTRY or BPF_TRACE_FEXIT.

    Returns:
        Its file descriptor.

    Raises:
        ProbeError: The kernel does not list the function or refuses the program.
    """
    number, owner = btf.function_id(function), btf.module
    if number is None:
        raise ProbeError(
            f"cannot attach fentry to {function}", reason="not in the kernel's BTF", remedy=UNLISTED
        )
    options = LoadOptions(
        sz=ctypes.sizeof(LoadOptions), expected_attach_type=attach_type, attach_btf_id=number
    )
    # A function that vmlinux defines has an id below the module's own; 0 names vmlinux.
    if owner and Btf().function_id(function) != number:
        options.attach_btf_obj_fd = _module_btf_fd(owner)
    return load_program(_PROG_TYPE_TRACING, instructions, function, options)


def link_tracing(program: int, function: str, attach_type: int) -> int:
    """Attach a program that was loaded for a function.

    Args:
        program: Its file descriptor.
        function: The function, to name it in an error.
        attach_type: As it was loaded.

    Returns:
        File descriptor of the link; closing it detaches.

    Raises:
        ProbeError: The kernel does not attach it.
    """
    link = int(library().bpf_link_create(program, 0, attach_type, None))
    if link < 0:
        reason = os.strerror(ctypes.get_errno())
        raise ProbeError(f"cannot attach fentry to {function}", reason=reason)
    return link


@dataclass(frozen=True, slots=True)
class Runs:
    """How often a program ran while statistics were kept, and how long that took in all."""

    count: int
    total_ns: int

    @property
    def mean_ns(self) -> float | None:
        """Nanoseconds a run, without what leads to the program; None where it never ran."""
        return self.total_ns / self.count if self.count else None

    def since(self, before: Runs) -> Runs:
        """What was added after an earlier reading."""
        return Runs(self.count - before.count, self.total_ns - before.total_ns)


def program_runs(program: int) -> Runs:
    """Read a loaded program's own statistics; none are kept but between `RunStats` and its close.

    Args:
        program: Its file descriptor.
    """
    info = _ProgramInfo()
    size = c_uint32(ctypes.sizeof(info))
    if library().bpf_obj_get_info_by_fd(program, ctypes.byref(info), ctypes.byref(size)) < 0:
        return Runs(0, 0)
    return Runs(int(info.runs), int(info.run_time_ns))


class RunStats:
    """Has the kernel time every run of every BPF program, two clock reads a run, until closed.

    BPF_ENABLE_STATS, since 5.8.

    Raises:
        ProbeError: This process may not (CAP_SYS_ADMIN).
    """

    def __init__(self) -> None:
        self._fd = int(library().bpf_enable_stats(_BPF_STATS_RUN_TIME))
        if self._fd < 0:
            raise ProbeError(
                "the kernel does not time BPF programs for this process",
                reason=os.strerror(ctypes.get_errno()),
                remedy=remedy_for(RUN_STATS),
            )

    def __enter__(self) -> RunStats:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; what was counted stays readable."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
