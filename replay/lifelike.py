"""Runs of the traced strategy that come nearer to a live VM step by step; each step is one cause.

A plain replay makes its calls back to back on what was resident when the capture began. A live
guest writes the pages that it gives, its huge pages form, its own work empties the caches between
two requests, and its CPUs may run while the device discards. Each step adds one of these.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from replay.memory import GuestMemory, rules_for
from replay.native import pacing
from replay.native.types import Bytes, Memory, Operations
from replay.residency import Residency, Thp

EVICT_BYTES = 16 << 20
"""Read between two requests: many times the nearest caches, and more pages than a TLB holds."""


@dataclass(frozen=True)
class Step:
    """One step towards a live VM.

    Args:
        name: For tables.
        adds: What it has that the step before lacks.
        writes: The guest writes the pages that were resident when they were given.
        huge: Huge pages form where it writes.
        evicts: Caches are emptied between requests.
        runs: The guest's CPU runs on while the device works.
    """

    name: str
    adds: str
    writes: bool = False
    huge: bool = False
    evicts: bool = False
    runs: bool = False


STEPS = (
    Step("attach", "memory as it was when the capture began"),
    Step("written", "the guest writes pages before it gives them", writes=True),
    Step("huge", "huge pages form where it writes", writes=True, huge=True),
    Step(
        "cold", "caches are empty after the guest's own work", writes=True, huge=True, evicts=True
    ),
    Step(
        "running",
        "the guest's CPU runs during every call, and is interrupted by every flush",
        writes=True,
        huge=True,
        evicts=True,
        runs=True,
    ),
)

COLD = next(step for step in STEPS if step.name == "cold")
"""It has every cause but interrupts."""


@dataclass(frozen=True, eq=False)
class PacedJob:
    """One run of one step; it is pickled into a fresh process.

    `queue` and `written` have an element an operation: its request's queue, and 1 where the guest
    wrote its pages just before.
    """

    title: str
    seed: int
    size_bytes: int
    backing: str
    thp: Thp
    residency: Residency
    operations: Operations
    queue: Bytes
    written: Bytes
    step: Step
    cpu: int
    guest_cpu: int


@dataclass(frozen=True)
class Paced:
    """What a run took.

    Args:
        discard_ns: Stage d by queue, the sum of the requests' own times, waits for a CPU left out.
        interrupts: TLB shootdowns that the guest's CPU took meanwhile; None
            where the kernel does not count them.
        failures: Operations that failed.
    """

    discard_ns: dict[int, int]
    interrupts: int | None
    failures: int


def run_paced(job: PacedJob, mapped: Callable[[Memory], None] = lambda _: None) -> Paced:
    """Carry out one step in this process.

    Args:
        job: What to do.
        mapped: Called when memory is as it was when the capture began, before the first operation.

    Raises:
        AerostatError: Memory could not be had, or an operation was refused.
    """
    os.sched_setaffinity(0, {job.cpu})
    written = job.written if job.step.writes else np.zeros_like(job.written)
    may_form: Thp = "always" if job.step.huge and job.thp != "never" else "madvise"
    pace = pacing.Pace(written, job.guest_cpu, job.step.runs, EVICT_BYTES if job.step.evicts else 0)
    with GuestMemory(job.size_bytes, job.backing, job.seed, may_form) as memory:
        memory.restore(job.residency)
        mapped(memory.mapping)
        before = flush_interrupts(job.guest_cpu)
        rules = rules_for(job.backing)
        outcome, span_ns = pacing.execute_paced(memory.mapping, job.operations, rules, pace)
        after = flush_interrupts(job.guest_cpu)
    interrupts = None if before is None or after is None else after - before
    by_queue = {int(q): int(span_ns[job.queue == q].sum()) for q in np.unique(job.queue)}
    return Paced(by_queue, interrupts, outcome.failures)


def flush_interrupts(cpu: int, root: Path = Path("/")) -> int | None:
    """Read how many TLB shootdowns a CPU has taken since boot (x86); None where none are counted.

    Args:
        cpu: Its number.
        root: Directory that holds proc; another one in tests.
    """
    try:
        lines = (root / "proc/interrupts").read_text().splitlines()
    except OSError:
        return None
    columns = lines[0].split() if lines else []
    for line in lines:
        name, *counts = line.split()
        if name == "TLB:" and f"CPU{cpu}" in columns:
            return int(counts[columns.index(f"CPU{cpu}")])
    return None


def two_cpus() -> tuple[int, int]:
    """CPUs of the device and of the guest: two where this process may use two, else one twice."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]
