"""Fidelity against a live VM: what the lab records now, replayed on this machine minutes later.

Twice: as `replay --fidelity` counts it, which must take what probes add from the trace's cheapest
calls; and as `--probed` does, with the replay recorded too, which needs root, as this bench does.
The reference traces are of another day's machine, so theirs stands beside it without a goal.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

from aerostat.probed import attached
from lab.session import LabOptions, run_lab
from replay.alike import probed_ratios
from replay.causes import TraceFidelity
from replay.faithful import measure_fidelity
from replay.lifelike import STEPS
from tests.bench.measure import Report, Settings, at_least, at_most, run

TRACES = sorted(Path("traces").glob("*.balloon"))
LIVE = {
    "inflate-deflate": 1 << 30,
    "stepwise": 1 << 30,
    "fragmented": 576 << 20,
    "reporting": 1 << 30,
}
"""Scenario and guest memory of the live VMs."""
DETAIL = "calls"
"""Every call by itself, so that those which met an interrupt are counted and not estimated."""
NEAR = 0.15


def measure(settings: Settings, report: Report) -> None:
    """Record every scenario and set its replay beside it; then the reference traces."""
    with tempfile.TemporaryDirectory(prefix="aerostat-bench-", dir="out") as work:
        for scenario, memory_bytes in LIVE.items():
            path = Path(work) / f"{scenario}.balloon"
            run_lab(LabOptions(path, scenario=scenario, memory_bytes=memory_bytes, detail=DETAIL))
            _measure(report, f"live {scenario}", path, settings, live=True)
    for path in TRACES:
        _measure(report, path.stem, path, settings, live=False)


def _measure(report: Report, name: str, path: Path, settings: Settings, *, live: bool) -> None:
    found = measure_fidelity(path, settings.pairs, settings.seed, attach=attached)
    _add(report, name, found, live=live)
    if found.probed is not None:
        _add_probed(report, name, found, live=live)


def _add_probed(report: Report, name: str, found: TraceFidelity, *, live: bool) -> None:
    """The same with what was recorded of the replay, in place of its own clock and `calls`."""
    for queue in found.queues:
        assert queue.probed is not None
        own_ns = {
            "replay as recorded": queue.probed.recorded_ns,
            "of that, lost CPU": queue.probed.lost_cpu_ns,
        }
        for what, times in own_ns.items():
            per_call = [ns / queue.operations for ns in times]
            report.keep({f"{name}, {queue.queue}, {what}, ns a call": per_call})
            report.figure(f"{name}, {queue.queue}: {what}", "ns a call", per_call)
    ratios = probed_ratios(found.queues)
    report.figure(f"{name}: counted, recorded alike, over recorded", "x", ratios)
    gaps = [abs(ratio - 1) for ratio in ratios]
    report.figure(f"{name}: gap, recorded alike", "x", gaps, at_most(NEAR) if live else None)


def _add(report: Report, name: str, found: TraceFidelity, *, live: bool) -> None:
    """One trace: operations, the two ratios, and each queue's causes in ns a call."""
    report.figure(
        f"{name}: operations as recorded", "1 is yes", [float(bool(found.exact))], at_least(1)
    )
    if found.note:
        report.notes.append(f"{name}: times not compared: {found.note}")
    for queue in found.queues:
        what = f"{name}, {queue.queue}"
        per_call = {
            step: [ns / queue.operations for ns in times] for step, times in queue.steps_ns.items()
        }
        report.keep({f"{what}, {step}, ns a call": times for step, times in per_call.items()})
        report.figure(f"{what}: recorded", "ns a call", [queue.recorded_ns / queue.operations])
        for step in STEPS[:-1]:
            report.figure(f"{what}: {step.name}", "ns a call", per_call[step.name])
        for cause in ("interrupts_ns", "calls_ns", "lost_cpu_ns", "unexplained_ns"):
            value = getattr(queue, cause)
            if value is not None:
                report.figure(f"{what}: {cause[:-3]}", "ns a call", [value / queue.operations])
    if found.queues:
        recorded_ns = sum(queue.recorded_ns for queue in found.queues)
        counted = [
            sum(
                queue.counted_ns + queue.steps_ns["cold"][i] - median(queue.steps_ns["cold"])
                for queue in found.queues
            )
            / recorded_ns
            for i in range(len(found.queues[0].steps_ns["cold"]))
        ]
        plain = [
            sum(queue.steps_ns["attach"][i] for queue in found.queues) / recorded_ns
            for i in range(len(counted))
        ]
        report.figure(f"{name}: plain over recorded", "x", plain)
        report.figure(f"{name}: counted over recorded", "x", counted)
        gap = [abs(ratio - 1) for ratio in counted]
        report.figure(f"{name}: gap once counted", "x", gap, at_most(NEAR) if live else None)


if __name__ == "__main__":
    run("fidelity", measure)
