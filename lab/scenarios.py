"""What can be done to a booted lab VM's memory; each scenario ends with the balloon empty again."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from lab.balloon import Move
from lab.balloon_scenarios import fragmented, inflate_deflate, out_of_puff, reporting, stepwise
from lab.queue_scenarios import flood, hinting, migration, oom, stats
from lab.vm import LabVm
from tracer.trace.errors import AerostatError
from tracer.trace.progress import Progress, silent


@dataclass(frozen=True)
class ScenarioOutcome:
    """What a scenario did, and how long the balloon took.

    Attributes:
        name: The scenario.
        moves: Every change of the target, in order.
        start_ns: CLOCK_MONOTONIC when it began.
        end_ns: CLOCK_MONOTONIC when it ended.
    """

    name: str
    moves: tuple[Move, ...]
    start_ns: int
    end_ns: int

    @property
    def targets(self) -> tuple[int, ...]:
        """The targets in bytes of guest memory, in order."""
        return tuple(done.target_bytes for done in self.moves)

    @property
    def inflate_wall_ns(self) -> int:
        """Time the balloon took to grow, over all moves."""
        return sum(done.wall_ns for done in self.moves if done.is_inflate)

    @property
    def deflate_wall_ns(self) -> int:
        """Time the balloon took to shrink, over all moves."""
        return sum(done.wall_ns for done in self.moves if not done.is_inflate)


SCENARIOS: dict[str, Callable[[LabVm, Progress], list[Move]]] = {
    "inflate-deflate": inflate_deflate,
    "stepwise": stepwise,
    "reporting": reporting,
    "fragmented": fragmented,
    "out-of-puff": out_of_puff,
    "hinting": hinting,
    "stats": stats,
    "oom": oom,
    "migration": migration,
    "flood": flood,
}
DEFLATES_ON_OOM = ("out-of-puff", "oom")
"""Scenarios whose guest must take memory back when it runs out, lest the kernel kills in it."""


def check_scenario(name: str) -> None:
    """Refuse an unknown name before anything expensive is done.

    Raises:
        AerostatError: There is no such scenario.
    """
    if name not in SCENARIOS:
        known = ", ".join(SCENARIOS)
        raise AerostatError(f"there is no scenario named {name!r}", remedy=f"use one of: {known}")


def run_scenario(name: str, vm: LabVm, progress: Progress = silent) -> ScenarioOutcome:
    """Run one scenario on a booted VM; it may be run again on the same VM.

    Args:
        name: A key of `SCENARIOS`.
        vm: A booted VM whose balloon is empty.
        progress: Told about each phase; balloon phases count bytes.

    Raises:
        AerostatError: No such scenario, or the guest, the balloon or the monitor failed.
    """
    check_scenario(name)
    start_ns = time.monotonic_ns()
    moves = SCENARIOS[name](vm, progress)
    return ScenarioOutcome(name, tuple(moves), start_ns, time.monotonic_ns())
