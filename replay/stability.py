"""What may make the times of a replay vary, and what to do about each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from replay.environment import Environment
from replay.stats import MIN_SAMPLES, scatter

if TYPE_CHECKING:
    from replay.results import CalibrationPoint, Run, Settings, StrategyResult
    from replay.schedule import ReplayOptions

STOLEN_SHARE = 0.01
"""Of the CPUs' time: more than this share taken by the host is told."""
WAIT_SHARE = 0.05
"""Of stage d: more wall time than CPU time by this share is time spent waiting for a CPU."""
APART = 0.10
"""Of a calibration: where samples of one call lie further apart, a prediction means little."""
SCATTER = 0.05
"""Of b + c + d: a robust coefficient of variation above this hides a difference of 3 %."""


@dataclass(frozen=True)
class CpuTime:
    """The machine's CPU time so far, in clock ticks of all CPUs together (proc(5), /proc/stat)."""

    all_ticks: int
    stolen_ticks: int

    def stolen_share(self, later: CpuTime) -> float | None:
        """Share of the time until `later` that the host gave to others; None if none has passed."""
        passed = later.all_ticks - self.all_ticks
        return (later.stolen_ticks - self.stolen_ticks) / passed if passed > 0 else None


def read_cpu_time(root: Path = Path("/")) -> CpuTime:
    """Read CPU times; zeros where the machine does not say.

    Args:
        root: Directory that holds proc; another one in tests.
    """
    try:
        fields = (root / "proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        ticks = [int(field) for field in fields]
    except (OSError, ValueError):
        ticks = []
    return CpuTime(sum(ticks), ticks[7] if len(ticks) == 8 else 0)


def machine_warnings(environment: Environment, siblings: int) -> tuple[str, ...]:
    """What may make times on this machine vary, and what to do about it.

    Args:
        environment: The machine.
        siblings: Threads that spin beside the executing one.
    """
    found = []
    busy = environment.load_1min
    if busy > 0.5 * environment.cpus:
        found.append(
            f"load is {busy:.2f} on {environment.cpus} CPUs: stop other work, replay again"
        )
    if environment.governor not in ("", "performance"):
        found.append(
            f"the CPU governor is {environment.governor}: "
            "`cpupower frequency-set -g performance` keeps the clock steady"
        )
    if step := _boost(environment):
        found.append(f"the CPU may run above its nominal clock: {step} to keep the clock steady")
    if environment.virtualisation:
        found.append(
            f"this machine is a virtual one ({environment.virtualisation}): "
            "its host can take CPUs away unseen; use more runs and look at the intervals"
        )
    if siblings >= environment.cpus_allowed:
        found.append(
            f"{siblings} siblings and the replay share {environment.cpus_allowed} CPUs: "
            f"use --siblings {environment.cpus_allowed - 1} or fewer"
        )
    if environment.swap_bytes:
        found.append("swap is on: pages may leave while they are measured; `swapoff -a` avoids it")
    return tuple(found)


def _boost(environment: Environment) -> str:
    """How to switch turbo off where it is on; empty where it is off or the machine does not say."""
    if "intel" in environment.cpu_model.lower():
        return "write 1 to intel_pstate/no_turbo" if environment.turbo == "0" else ""
    return "write 0 to cpufreq/boost" if environment.turbo == "1" else ""


def run_stability(
    settings: Settings | ReplayOptions,
    strategies: Sequence[StrategyResult],
    stolen_share: float | None,
) -> tuple[str, ...]:
    """What was seen to vary while the runs went on, and what to do about it.

    Args:
        settings: Of the replay; its `runs` and `cpu` count.
        strategies: Its results.
        stolen_share: Share of CPU time that the host took meanwhile; None where it is not known.
    """
    found = []
    if settings.cpu is None:
        found.append("runs were free to move between CPUs: `--cpu auto` keeps them on one")
    if settings.runs < MIN_SAMPLES:
        found.append(
            f"{settings.runs} run{'s are' if settings.runs > 1 else ' is'} too few for"
            " `aerostat compare` to judge times: "
            f"use --runs {MIN_SAMPLES} or more"
        )
    if stolen_share is not None and stolen_share > STOLEN_SHARE:
        found.append(
            f"the host took {stolen_share:.1%} of this machine's CPU time meanwhile: "
            "replay when its other machines are idle, or on a machine of its own"
        )
    if waited := [each.name for each in strategies if _waited(each)]:
        found.append(
            f"{', '.join(waited)}: in half of the runs or more, stage d waited for its CPU: "
            "stop other work, or name an idle CPU with --cpu"
        )
    scattered = [(each.name, _scatter(each.runs)) for each in strategies if len(each.runs) > 2]
    if told := [f"{name} {value:.0%}" for name, value in scattered if value > SCATTER]:
        found.append(
            f"b + c + d scatters from run to run ({', '.join(told)}): quieten the machine, "
            f"or use --runs {max(15, 3 * settings.runs)} for a narrower interval"
        )
    return tuple(found)


def samples_apart(points: Sequence[CalibrationPoint]) -> float:
    """How far a calibration's own samples lie apart, as a share: the median over its calls.

    Args:
        points: The table; each sample is of another process, some seconds after the one before.
    """
    samples = [point.samples_ns for point in points if point.pages and min(point.samples_ns) > 0]
    return float(np.median([max(each) / min(each) - 1 for each in samples])) if samples else 0.0


def calibration_stability(points: Sequence[CalibrationPoint]) -> tuple[str, ...]:
    """Say how far apart its samples lie, if that is far."""
    apart = samples_apart(points)
    if apart <= APART:
        return ()
    return (
        f"samples of the calibration lie {apart:.0%} apart: a prediction of stage d may err by as "
        "much; quieten the machine and replay again",
    )


def _waited(strategy: StrategyResult) -> bool:
    """Whether another thread ran in its place; a plan of several threads waits for its own."""
    waits = [
        run.preemptions > 0 and run.discard_ns > (1 + WAIT_SHARE) * run.discard_cpu_ns
        for run in strategy.runs
    ]
    return strategy.threads == 1 and bool(waits) and sum(waits) >= len(waits) / 2


def _scatter(runs: Sequence[Run]) -> float:
    totals = np.array([run.total_ns for run in runs], np.float64)
    return scatter(totals) if np.median(totals) > 0 else 0.0
