"""Typed face of the C extension: what must not be paced or distorted by the interpreter.

Arrays are passed as they lie; their dtypes are checked here, their contents in C.
"""

import errno as errno_names
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from replay.native.types import (
    MAX_THREADS,
    Bytes,
    Findings,
    Memory,
    NativeError,
    Operations,
    Outcome,
    Rule,
    Times,
    Translation,
    Words,
)


def map_memory(size_bytes: int, fd: int, shared: bool) -> Memory:
    """Map memory at a 2 MiB boundary, without reserving any.

    Raises:
        NativeError: The kernel refused.
    """
    ffi, lib = _load()
    error = ffi.new("int *")
    base = lib.aero_map_memory(size_bytes, fd, shared, error)
    _check(error[0], f"cannot map {size_bytes} bytes of guest memory")
    return Memory(int(ffi.cast("uintptr_t", base)), size_bytes, fd, shared)


def unmap_memory(memory: Memory) -> None:
    """Give a mapping back."""
    ffi, lib = _load()
    error = lib.aero_unmap_memory(ffi.cast("uint8_t *", memory.base), memory.size_bytes)
    _check(error, "cannot unmap guest memory")


def advise_all(memory: Memory, advice: int) -> None:
    """Give the whole mapping one madvise value."""
    lib = _load()[1]
    _check(lib.aero_advise_all(_memory(memory), advice), f"madvise {advice} on guest memory failed")


def populate(memory: Memory, first_page: Words, pages: Words) -> None:
    """Give every page of the runs memory of its own; runs in pages from the mapping's start."""
    ffi, lib = _load()
    error = lib.aero_populate(
        _memory(memory),
        _array(ffi, first_page, np.uint64),
        _array(ffi, pages, np.uint64),
        len(first_page),
    )
    _check(error, "cannot populate guest memory", "choose a smaller memory limit or trace")


def stamp(memory: Memory, state: Bytes, seed: int) -> None:
    """Write a word made of page number and seed at both ends of each page `state` calls STAMPED."""
    ffi, lib = _load()
    _check_pages(memory, state)
    lib.aero_stamp(_memory(memory), _array(ffi, state, np.uint8), seed)


def residency(memory: Memory) -> Bytes:
    """Read which pages have memory behind them (mincore): uint8[pages], 0 or 1."""
    ffi, lib = _load()
    resident = np.zeros(memory.size_bytes >> 12, np.uint8)
    error = lib.aero_residency(_memory(memory), _array(ffi, resident, np.uint8))
    _check(error, "cannot read which pages are resident")
    return resident


def verify(memory: Memory, state: Bytes, resident: Bytes, seed: int) -> Findings:
    """Read every page that was ever populated and compare it with `state`.

    Args:
        memory: The mapping.
        state: What each page must hold (`Page`).
        resident: What `residency` says now.
        seed: Of the stamps.
    """
    ffi, lib = _load()
    _check_pages(memory, state)
    _check_pages(memory, resident)
    found = ffi.new("struct aero_findings *")
    columns = (_array(ffi, column, np.uint8) for column in (state, resident))
    lib.aero_verify(_memory(memory), *columns, seed, found)
    return Findings(
        found.stamped_checked,
        found.gone_checked,
        found.lazy_checked,
        found.lazy_freed,
        found.wrong,
        found.first_wrong_page if found.first_wrong_page >= 0 else None,
    )


def execute(
    memory: Memory,
    operations: Operations,
    rules: dict[int, Rule],
    per_call_ns: Times | None = None,
    cpus: Sequence[int] = (),
) -> Outcome:
    """Carry out operations in order and time them as a whole.

    Args:
        memory: The mapping; an operation that is not wholly inside it is refused.
        operations: What to do.
        rules: Advice code -> how to carry it out. A code without a rule is refused.
        per_call_ns: Where to store the time of each system call, with the first operation that
            shares it; others are left alone. Costs two clock reads a call.
        cpus: CPU of each thread, that of the calling one first; empty leaves it to the scheduler.

    Raises:
        NativeError: An operation was refused, or a thread cannot be made; then none was carried
            out.
    """
    ffi, lib = _load()
    outcome = ffi.new("struct aero_outcome *")
    failed = np.zeros(len(operations), np.uint8)
    if per_call_ns is not None and len(per_call_ns) != len(operations):
        raise ValueError("per_call_ns must have one element an operation")
    times = ffi.NULL if per_call_ns is None else _array(ffi, per_call_ns, np.int64)
    threads = operations.threads
    placed = ffi.new("int[]", list(cpus[:threads])) if len(cpus) >= threads > 1 else ffi.NULL
    crew = ffi.new("struct aero_crew *", [threads, placed])
    with _Arguments(memory, operations, rules) as arguments:
        error = lib.aero_execute(*arguments, crew, times, _array(ffi, failed, np.uint8), outcome)
    if error and outcome.first_failed >= 0:
        raise _refused(operations, outcome.first_failed)
    _check(error, f"cannot run a plan of {threads} threads")
    return Outcome(
        outcome.wall_ns,
        outcome.cpu_ns,
        outcome.calls,
        outcome.minor_faults,
        outcome.bytes,
        outcome.failures,
        outcome.first_failed if outcome.failures else None,
        outcome.first_errno,
        failed,
    )


def expect(
    memory: Memory,
    operations: Operations,
    rules: dict[int, Rule],
    failed: Bytes,
    state: Bytes,
) -> None:
    """Change `state` (one Page a byte) to what the operations must leave; touches no memory."""
    ffi, lib = _load()
    _check_pages(memory, state)
    columns = (_array(ffi, column, np.uint8) for column in (failed, state))
    with _Arguments(memory, operations, rules) as arguments:
        if lib.aero_expect(*arguments, *columns):
            raise _refused(operations, lib.aero_check(*arguments, MAX_THREADS))


def lacking(advice: int, *, vector: bool = False) -> str | None:
    """Try an advice on one page of this process.

    Args:
        advice: A madvise value.
        vector: Through process_madvise on the process itself.

    Returns:
        None where the kernel carries it out, else the name of the errno.
    """
    error = _load()[1].aero_probe(advice, vector)
    return errno_names.errorcode.get(error, str(error)) if error else None


def translate(
    wire: Bytes, start: Words, form: Bytes, regions: Sequence[tuple[int, int, int]]
) -> Translation:
    """Decode requests and look up every address they name.

    Args:
        wire: The content of all requests, one after the other.
        start: uint64[n + 1]; request i is `wire[start[i]:start[i + 1]]`.
        form: uint8[n], a tracer.trace.schema.Wire code each. A scatterlist is le64 gpa, le64 length
            in bytes for each entry.
        regions: (gpa, length_bytes, offset_bytes) of each region of guest memory.
    """
    ffi, lib = _load()
    _check_starts(wire, start, len(form))
    columns = np.array(sorted(regions), np.uint64).reshape(-1, 3).T.copy()
    held = [_array(ffi, column, np.uint64) for column in columns]
    table = ffi.new("struct aero_map *", [*held, columns.shape[1]])
    out = ffi.new("struct aero_translation *")
    error = lib.aero_translate(
        _array(ffi, wire, np.uint8),
        _array(ffi, start, np.uint64),
        _array(ffi, form, np.uint8),
        len(form),
        table,
        out,
    )
    _check(error, "cannot decode requests")
    return Translation(out.wall_ns, out.cpu_ns, out.entries, out.pages, out.rejected, out.checksum)


def handoff(wire: Bytes, start: Words) -> tuple[int, int]:
    """Pass each request from a driver thread to a device thread and wait for its answer.

    Returns:
        Wall time and CPU time of both threads, in ns.
    """
    ffi, lib = _load()
    _check_starts(wire, start, len(start) - 1)
    wall, cpu = ffi.new("int64_t *"), ffi.new("int64_t *")
    error = lib.aero_handoff(
        _array(ffi, wire, np.uint8), _array(ffi, start, np.uint64), len(start) - 1, wall, cpu
    )
    _check(error, "cannot hand requests to a device thread")
    return wall[0], cpu[0]


class Siblings(AbstractContextManager["Siblings"]):
    """Threads that spin, one on each of `cpus`, while the context is open."""

    def __init__(self, cpus: Sequence[int]) -> None:
        self._cpus = list(cpus)
        self._running: Any = None

    def __enter__(self) -> "Siblings":
        ffi, lib = _load()
        error = ffi.new("int *")
        if self._cpus:
            self._running = lib.aero_siblings_start(len(self._cpus), self._cpus, error)
        _check(error[0], f"cannot start threads on CPUs {self._cpus}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._running is not None:
            _load()[1].aero_siblings_stop(self._running)
            self._running = None


class _Arguments(AbstractContextManager[tuple[Any, Any, Any]]):
    """Keeps the C views of memory, operations and rules alive during a call."""

    def __init__(self, memory: Memory, operations: Operations, rules: dict[int, Rule]) -> None:
        ffi = _load()[0]
        size = len(operations.advice)
        optional = (operations.joined, operations.thread)
        columns = (operations.offset_bytes, operations.length_bytes, operations.request, *optional)
        if any(column is not None and len(column) != size for column in columns):
            raise ValueError("the arrays of operations differ in length")
        self._held = [
            _array(ffi, operations.advice, np.uint8),
            _array(ffi, operations.offset_bytes, np.uint64),
            _array(ffi, operations.length_bytes, np.uint64),
            size,
            *(ffi.NULL if c is None else _array(ffi, c, np.uint8) for c in optional),
            _array(ffi, operations.request, np.int64),
        ]
        table = ffi.new("struct aero_rules *")
        for code, rule in rules.items():
            table.call[code], table.value[code] = rule.call, rule.value
            table.effect[code] = rule.effect
        self._all = (_memory(memory), ffi.new("struct aero_ops *", self._held), table)

    def __enter__(self) -> tuple[Any, Any, Any]:
        return self._all

    def __exit__(self, *_: object) -> None:
        return None


def _load() -> tuple[Any, Any]:
    try:
        from replay.native._core import ffi, lib
    except ImportError as error:
        raise NativeError(
            "the C extension replay.native._core is not built",
            reason=str(error),
            remedy="install a C compiler and run `make setup`, or `pip install -e .`",
        ) from error
    return ffi, lib


def _memory(memory: Memory) -> Any:
    ffi = _load()[0]
    return ffi.new(
        "struct aero_memory *",
        [ffi.cast("uint8_t *", memory.base), memory.size_bytes, memory.fd, memory.shared],
    )


def _array(ffi: Any, array: npt.NDArray[Any], dtype: type[np.generic]) -> Any:
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(f"need contiguous {np.dtype(dtype)}, got {array.dtype}")
    # require_writable is left off: inputs may be read-only views of a file.
    return ffi.from_buffer(f"{np.dtype(dtype)}_t[]", array)


def _check_pages(memory: Memory, state: Bytes) -> None:
    if len(state) != memory.size_bytes >> 12:
        raise ValueError(f"need one state a page, got {len(state)} for {memory.size_bytes} bytes")


def _check_starts(wire: Bytes, start: Words, count: int) -> None:
    rises = len(start) == count + 1 and bool(np.all(start[1:] >= start[:-1]))
    if not rises or int(start[-1]) > len(wire):
        raise ValueError("request starts must rise and stay within the wire bytes")


def _check(error: int, what: str, remedy: str = "") -> None:
    if error:
        name = errno_names.errorcode.get(error, str(error))
        raise NativeError(what, reason=f"{name}: {os.strerror(error)}", remedy=remedy)


def _refused(operations: Operations, index: int) -> NativeError:
    return NativeError(
        f"operation {index} of {len(operations.advice)} was refused, and none was carried out",
        reason=f"advice {operations.advice[index]} on offset {operations.offset_bytes[index]}, "
        f"length {operations.length_bytes[index]} is outside the memory, not whole pages, "
        "not possible on this backing, or in a call that it cannot share",
        remedy="check the strategy's plan with `aerostat whatif`",
    )
