"""What lies between a recorded discard time and a replayed one, cause by cause, and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from replay.environment import fingerprint
from replay.lifelike import STEPS
from replay.probed import ProbeUse
from replay.recorded import Heights
from replay.summary import Spread

FIDELITY_FORMAT = "aerostat-fidelity"
FIDELITY_VERSION = "1.2"


@dataclass(frozen=True)
class ProbedQueue:
    """One queue of a replay that was recorded alike.

    Args:
        recorded_ns: Sum of its calls' recorded times in each run, of the last step without
            interrupts.
        lost_cpu_ns: Of that, what single calls waited for something else; it is taken off.
        counted_ns: The middle of the runs so, with the trace's `interrupts_ns` and `lost_cpu_ns`.
        ratio: `counted_ns` over recorded.
    """

    recorded_ns: tuple[int, ...]
    lost_cpu_ns: tuple[int, ...]
    counted_ns: int
    ratio: float


@dataclass(frozen=True)
class ProbedTrace:
    """How a replay was recorded alike, and what it comes to.

    Args:
        detail: `calls`, each by itself, or `discards`, adjacent ones merged: as in the trace.
        probes: What it was recorded with.
        probe_ns: Cost of the probes on a call here, as measured when they attached; None if not.
        same_boot: The trace was recorded on this machine since it was started; else what that of
            then took more is not counted. None where the trace does not say.
        ratio: Of each run the sum of the queues, counted as theirs, over the recorded time; None
            where that is 0.
    """

    detail: str
    probes: tuple[ProbeUse, ...]
    probe_ns: float | None
    same_boot: bool | None
    ratio: Spread | None


@dataclass(frozen=True)
class QueueFidelity:
    """One queue of a trace beside its replay.

    Args:
        queue: Name of the queue.
        operations: Its discards, or pieces of advice.
        recorded_ns: Their recorded time.
        written_share: Of its discards, how many found memory, by their recorded times; None where
            they are no discards.
        heights: The two heights of its most frequent call; None where there are too few.
        steps_ns: For each step of `STEPS`, stage d of this queue in each run.
        interrupts_ns: What flush interrupts add: their price here, for the share of the recorded
            discards that met one.
        calls_ns: What every call takes more in the trace than here: the cost of probes within the
            recorded time, and of the machine of then. By the trace's cheapest calls, which neither
            free nor flush; None where it has none.
        lost_cpu_ns: Single calls that waited for something else, such as another process.
        counted_ns: The sum of the last step without interrupts and of these three.
        ratio_plain: First step over recorded.
        ratio_counted: `counted_ns` over recorded.
        probed: The same with the replay recorded alike, in place of `calls_ns`; None if not asked.
    """

    queue: str
    operations: int
    recorded_ns: int
    written_share: float | None
    heights: Heights | None
    steps_ns: dict[str, tuple[int, ...]]
    interrupts_ns: int
    calls_ns: int | None
    lost_cpu_ns: int
    counted_ns: int
    ratio_plain: float
    ratio_counted: float
    probed: ProbedQueue | None

    @property
    def unexplained_ns(self) -> int:
        """Recorded time that no measured cause accounts for; negative where they overshoot."""
        return self.recorded_ns - self.counted_ns


@dataclass(frozen=True)
class TraceFidelity:
    """One trace beside its replay.

    Args:
        name: The bundle's name.
        accelerator: How the guest ran; under tcg there are no nested page tables to invalidate.
        recorded_operations: Discards and advice recorded; None where none were.
        planned_operations: Those of the traced strategy.
        exact: The two are equal.
        probe_ns: Cost of the probes on a call, as measured when it was recorded; None if not.
        interrupt_ns: What one flush interrupt adds to a call on this machine; None if not run.
        queues: Each queue that moved pages.
        ratio_plain: A plain replay over the recorded time.
        ratio_counted: With all measured causes, over the recorded time.
        probed: The same with the replay recorded alike; None if not asked, or not run.
        note: Why times cannot be set side by side; empty where they can.
        missing: What the trace lacks, such as `misses 7 requests`; None where it is whole.
    """

    name: str
    accelerator: str | None
    recorded_operations: int | None
    planned_operations: int
    exact: bool | None
    probe_ns: float | None
    interrupt_ns: float | None
    queues: tuple[QueueFidelity, ...]
    ratio_plain: float | None
    ratio_counted: float | None
    probed: ProbedTrace | None
    note: str
    missing: str | None


def to_json(traces: Sequence[TraceFidelity]) -> dict[str, Any]:
    """One JSON document of fidelity, raw samples kept, with the machine that it was measured on."""
    return {
        "format": FIDELITY_FORMAT,
        "version": FIDELITY_VERSION,
        "environment": dataclasses.asdict(fingerprint()),
        "steps": [dataclasses.asdict(step) for step in STEPS],
        "traces": [dataclasses.asdict(trace) for trace in traces],
    }
