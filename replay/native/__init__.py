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
    check_pages,
    check_starts,
    load,
    map_struct,
    memory_struct,
    refused,
)
from replay.native.pages import (
    advise_all,
    huge_units,
    map_memory,
    populate,
    residency,
    stamp,
    touch,
    unmap_memory,
    verify,
)
from replay.native.types import (
    MAX_THREADS,
    Bytes,
    Memory,
    Operations,
    Outcome,
    Rule,
    Translation,
    Watch,
    Words,
)

__all__ = [
    "Siblings",
    "Translation",
    "advise_all",
    "execute",
    "expect",
    "huge_units",
    "lacking",
    "map_memory",
    "populate",
    "residency",
    "stamp",
    "touch",
    "translate",
    "unmap_memory",
    "verify",
]


def execute(
    memory: Memory,
    operations: Operations,
    rules: dict[int, Rule],
    watch: Watch | None = None,
    cpus: Sequence[int] = (),
) -> Outcome:
    """Carry out operations in order and time them as a whole.

    Args:
        memory: The mapping; an operation that is not wholly inside it is refused.
        operations: What to do.
        rules: Advice code -> how to carry it out. A code without a rule is refused.
        watch: Where to store the time of each system call and samples of memory. Costs two clock
            reads a call, and the samples.
        cpus: CPU of each thread, that of the calling one first; empty leaves it to the scheduler.

    Raises:
        NativeError: An operation was refused, or a thread cannot be made; then none was carried
            out.
    """
    ffi, lib = load()
    outcome = ffi.new("struct aero_outcome *")
    failed = np.zeros(len(operations), np.uint8)
    watching, held = _watching(ffi, watch, len(operations))
    threads = operations.threads
    placed = ffi.new("int[]", list(cpus[:threads])) if len(cpus) >= threads > 1 else ffi.NULL
    crew = ffi.new("struct aero_crew *", [threads, placed])
    with Arguments(memory, operations, rules) as arguments:
        error = lib.aero_execute(*arguments, crew, watching, array(ffi, failed, np.uint8), outcome)
    if watch is not None:
        watch.samples = watching.samples
    del held  # C wrote through these
    if error and outcome.first_failed >= 0:
        raise refused(operations, outcome.first_failed)
    check(error, f"cannot run a plan of {threads} threads")
    return Outcome(
        outcome.wall_ns,
        outcome.cpu_ns,
        outcome.calls,
        outcome.minor_faults,
        outcome.preemptions,
        outcome.bytes,
        outcome.failures,
        outcome.first_failed if outcome.failures else None,
        outcome.first_errno,
        failed,
    )


def _watching(ffi: Any, watch: Watch | None, operations: int) -> tuple[Any, list[Any]]:
    """A watch as C sees it, and the views that must live as long."""
    if watch is None:
        return ffi.NULL, []
    if len(watch.per_call_ns) != operations:
        raise ValueError("a watch must have one time an operation")
    columns = (watch.per_call_ns, watch.at_ns, watch.operations, watch.rss_bytes, watch.file_bytes)
    held = [array(ffi, column, np.int64) for column in columns]
    capacity = min(len(column) for column in columns[1:])
    every = max(operations // max(capacity - 2, 1), 1)
    return ffi.new("struct aero_watch *", [*held, capacity, every, 0]), held


def expect(
    memory: Memory,
    operations: Operations,
    rules: dict[int, Rule],
    failed: Bytes,
    state: Bytes,
) -> None:
    """Change `state` (one Page a byte) to what the operations must leave; touches no memory."""
    ffi, lib = load()
    check_pages(memory, state)
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
    """Threads beside the executing one while the context is open, as vCPUs are.

    Args:
        cpus: One thread on each that reads memory.
        memory: The mapping.
        pages: uint64, pages of the mapping that they read one byte of, over and over; resident ones
            that nothing changes meanwhile, or reading would change what is resident.
        resting_cpu: One thread on it that sleeps and reads nothing; None for none.
    """

    def __init__(
        self, cpus: Sequence[int], memory: Memory, pages: Words, resting_cpu: int | None = None
    ) -> None:
        self._cpus = list(cpus)
        self._resting_cpu = resting_cpu
        self._memory = memory
        self._offset_bytes = np.ascontiguousarray(pages, np.uint64) << np.uint64(12)
        self._running: Any = None
        self._resting: Any = None

    def __enter__(self) -> "Siblings":
        ffi, lib = load()
        error = ffi.new("int *")
        if self._resting_cpu is not None:
            self._resting = lib.aero_resting_start(self._resting_cpu, error)
            check(error[0], f"cannot start a thread on CPU {self._resting_cpu}")
        if self._cpus:
            self._running = lib.aero_siblings_start(
                len(self._cpus),
                self._cpus,
                memory_struct(self._memory),
                array(ffi, self._offset_bytes, np.uint64),
                len(self._offset_bytes),
                error,
            )
        if error[0]:
            self._stop()
        check(error[0], f"cannot start threads on CPUs {self._cpus}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        lib = load()[1]
        if self._running is not None:
            lib.aero_siblings_stop(self._running)
        if self._resting is not None:
            lib.aero_resting_stop(self._resting)
        self._running = self._resting = None
