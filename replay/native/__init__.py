"""Typed face of the C extension: what must not be paced or distorted by the interpreter.

Arrays are passed as they lie; their dtypes are checked here, their contents in C.
"""

import errno as errno_names
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import numpy as np

from replay.native.binding import (
    Arguments,
    array,
    check,
    check_starts,
    load,
    map_struct,
    memory_struct,
    refused,
)
from replay.native.types import (
    MAX_THREADS,
    Bytes,
    Findings,
    Memory,
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
    ffi, lib = load()
    error = ffi.new("int *")
    base = lib.aero_map_memory(size_bytes, fd, shared, error)
    check(error[0], f"cannot map {size_bytes} bytes of guest memory")
    return Memory(int(ffi.cast("uintptr_t", base)), size_bytes, fd, shared)


def unmap_memory(memory: Memory) -> None:
    """Give a mapping back."""
    ffi, lib = load()
    error = lib.aero_unmap_memory(ffi.cast("uint8_t *", memory.base), memory.size_bytes)
    check(error, "cannot unmap guest memory")


def advise_all(memory: Memory, advice: int) -> None:
    """Give the whole mapping one madvise value."""
    lib = load()[1]
    check(
        lib.aero_advise_all(memory_struct(memory), advice),
        f"madvise {advice} on guest memory failed",
    )


def populate(memory: Memory, first_page: Words, pages: Words) -> None:
    """Give every page of the runs memory of its own; runs in pages from the mapping's start."""
    ffi, lib = load()
    error = lib.aero_populate(
        memory_struct(memory),
        array(ffi, first_page, np.uint64),
        array(ffi, pages, np.uint64),
        len(first_page),
    )
    check(error, "cannot populate guest memory", "choose a smaller memory limit or trace")


def stamp(memory: Memory, state: Bytes, seed: int) -> None:
    """Write a word made of page number and seed at both ends of each page `state` calls STAMPED."""
    ffi, lib = load()
    _check_pages(memory, state)
    lib.aero_stamp(memory_struct(memory), array(ffi, state, np.uint8), seed)


def residency(memory: Memory) -> Bytes:
    """Read which pages have memory behind them (mincore): uint8[pages], 0 or 1."""
    ffi, lib = load()
    resident = np.zeros(memory.size_bytes >> 12, np.uint8)
    error = lib.aero_residency(memory_struct(memory), array(ffi, resident, np.uint8))
    check(error, "cannot read which pages are resident")
    return resident


def verify(memory: Memory, state: Bytes, resident: Bytes, seed: int) -> Findings:
    """Read every page that was ever populated and compare it with `state`.

    Args:
        memory: The mapping.
        state: What each page must hold (`Page`).
        resident: What `residency` says now.
        seed: Of the stamps.
    """
    ffi, lib = load()
    _check_pages(memory, state)
    _check_pages(memory, resident)
    found = ffi.new("struct aero_findings *")
    columns = (array(ffi, column, np.uint8) for column in (state, resident))
    lib.aero_verify(memory_struct(memory), *columns, seed, found)
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
    ffi, lib = load()
    outcome = ffi.new("struct aero_outcome *")
    failed = np.zeros(len(operations), np.uint8)
    if per_call_ns is not None and len(per_call_ns) != len(operations):
        raise ValueError("per_call_ns must have one element an operation")
    times = ffi.NULL if per_call_ns is None else array(ffi, per_call_ns, np.int64)
    threads = operations.threads
    placed = ffi.new("int[]", list(cpus[:threads])) if len(cpus) >= threads > 1 else ffi.NULL
    crew = ffi.new("struct aero_crew *", [threads, placed])
    with Arguments(memory, operations, rules) as arguments:
        error = lib.aero_execute(*arguments, crew, times, array(ffi, failed, np.uint8), outcome)
    if error and outcome.first_failed >= 0:
        raise refused(operations, outcome.first_failed)
    check(error, f"cannot run a plan of {threads} threads")
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
    ffi, lib = load()
    _check_pages(memory, state)
    columns = (array(ffi, column, np.uint8) for column in (failed, state))
    with Arguments(memory, operations, rules) as arguments:
        if lib.aero_expect(*arguments, *columns):
            raise refused(operations, lib.aero_check(*arguments, MAX_THREADS))


def lacking(advice: int, *, vector: bool = False) -> str | None:
    """Try an advice on one page of this process.

    Args:
        advice: A madvise value.
        vector: Through process_madvise on the process itself.

    Returns:
        None where the kernel carries it out, else the name of the errno.
    """
    error = load()[1].aero_probe(advice, vector)
    return errno_names.errorcode.get(error, str(error)) if error else None


def translate(
    wire: Bytes, start: Words, form: Bytes, regions: Sequence[tuple[int, int, int]]
) -> Translation:
    """Decode requests and look up every address they name.

    Args:
        wire: The content of all requests, one after the other.
        start: uint64[n + 1]; request i is `wire[start[i]:start[i + 1]]`.
        form: uint8[n], a tracer.trace.schema.Wire code each. A scatterlist is descriptors as in the
            ring, 16 bytes each.
        regions: (gpa, length_bytes, offset_bytes) of each region of guest memory.
    """
    ffi, lib = load()
    check_starts(wire, start, len(form))
    _held, table = map_struct(regions)
    out = ffi.new("struct aero_translation *")
    error = lib.aero_translate(
        array(ffi, wire, np.uint8),
        array(ffi, start, np.uint64),
        array(ffi, form, np.uint8),
        len(form),
        table,
        out,
    )
    check(error, "cannot decode requests")
    return Translation(out.wall_ns, out.cpu_ns, out.entries, out.pages, out.rejected, out.checksum)


class Siblings(AbstractContextManager["Siblings"]):
    """Threads that spin, one on each of `cpus`, while the context is open."""

    def __init__(self, cpus: Sequence[int]) -> None:
        self._cpus = list(cpus)
        self._running: Any = None

    def __enter__(self) -> "Siblings":
        ffi, lib = load()
        error = ffi.new("int *")
        if self._cpus:
            self._running = lib.aero_siblings_start(len(self._cpus), self._cpus, error)
        check(error[0], f"cannot start threads on CPUs {self._cpus}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._running is not None:
            load()[1].aero_siblings_stop(self._running)
            self._running = None


def _check_pages(memory: Memory, state: Bytes) -> None:
    if len(state) != memory.size_bytes >> 12:
        raise ValueError(f"need one state a page, got {len(state)} for {memory.size_bytes} bytes")
