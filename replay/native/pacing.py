"""Calls of the C extension: a run at a guest's pace, and what a plan's operations will find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from replay.native.binding import Arguments, array, check, check_pages, load, refused
from replay.native.types import Bytes, Memory, Operations, Outcome, Rule, Times

_COUNTS = ("small_pages", "split_pages", "huge_pages", "splits", "lazy_pages", "emptied_pages")
FOUND = np.dtype([(name, np.uint32) for name in (*_COUNTS, "freed_pages", "taken_pages")])
"""`struct aero_found` of core.h: what one operation finds."""
HUGE_PAGE_BYTES = 2 << 20
SMALL, HUGE, EMPTIED = 1, 2, 5
"""States of a page before a plan (`enum aero_found_page`); 0: nothing, and no page table either."""


@dataclass(frozen=True, eq=False)
class Pace:
    """What a guest does between two requests.

    Args:
        written: uint8[operations], 1: the guest writes the operation's pages just before.
        guest_cpu: CPU of the thread that writes them.
        guest_runs: It runs on while the device works; else it sleeps.
        evict_bytes: So much the device reads between the guest's writing and its own work.
    """

    written: Bytes
    guest_cpu: int
    guest_runs: bool = False
    evict_bytes: int = 0


def execute_paced(
    memory: Memory, operations: Operations, rules: dict[int, Rule], pace: Pace
) -> tuple[Outcome, Times]:
    """Carry out a plan of one thread request by request, the guest's turn before each.

    Args:
        memory: The mapping.
        operations: What to do; `Operations.request` says which belong together.
        rules: As for `replay.native.execute`.
        pace: The guest's turn, which is in no time.

    Returns:
        What it took, as sums over the requests; and int64[operations]: each request's own time in
        ns at the first of its operations, 0 elsewhere. That is the lesser of wall and CPU time:
        what it waited for a CPU is left out.

    Raises:
        NativeError: As `replay.native.execute`.
    """
    ffi, lib = load()
    failed = np.zeros(len(operations), np.uint8)
    span_ns = np.zeros(len(operations), np.int64)
    outcome = ffi.new("struct aero_outcome *")
    if len(pace.written) != len(operations):
        raise ValueError("pace.written must have one element an operation")
    turn = ffi.new("struct aero_pace *")
    held = turn.written = array(ffi, pace.written, np.uint8)
    turn.guest_cpu, turn.guest_runs = pace.guest_cpu, pace.guest_runs
    turn.evict_bytes = pace.evict_bytes
    with Arguments(memory, operations, rules) as arguments:
        columns = (array(ffi, span_ns, np.int64), array(ffi, failed, np.uint8))
        error = lib.aero_execute_paced(*arguments, turn, *columns, outcome)
    del held  # alive until here: cffi keeps no reference to what a field points at
    if error and outcome.first_failed >= 0:
        raise refused(operations, outcome.first_failed)
    check(error, f"cannot run a guest on CPU {pace.guest_cpu} beside the device")
    result = Outcome(
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
    return result, span_ns


def foresee(
    size_bytes: int,
    operations: Operations,
    rules: dict[int, Rule],
    state: Bytes,
    *,
    huge_only: bool = False,
) -> npt.NDArray[Any]:
    """Work out what each operation will find, without memory.

    Args:
        size_bytes: Of the memory that the plan is for.
        operations: The plan.
        rules: What each advice does there.
        state: uint8[pages], `NOTHING`, `SMALL` or `HUGE`; is changed to what the plan leaves.
        huge_only: Memory is whole pages of 2 MiB, as on hugetlb.

    Returns:
        One `FOUND` an operation, in pages of 4 KiB and huge pages.

    Raises:
        NativeError: The executor would refuse the plan.
    """
    if huge_only and size_bytes % HUGE_PAGE_BYTES:
        raise ValueError(f"{size_bytes} bytes are no whole huge pages")
    ffi, lib = load()
    memory = Memory(0, size_bytes, 0, False)
    check_pages(memory, state)
    found = np.zeros(len(operations), FOUND)
    with Arguments(memory, operations, rules) as arguments:
        rows = ffi.cast("struct aero_found *", ffi.from_buffer(found))
        if lib.aero_foresee(*arguments, huge_only, array(ffi, state, np.uint8), rows):
            raise refused(operations, lib.aero_check(*arguments, 256))
    return found
