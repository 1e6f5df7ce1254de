"""What recording costs a balloon's moves in the lab, by detail, and with the guest recorded too.

All on one boot, interleaved. The wall of an emulated guest is mostly the guest's own and scatters
by more than a probe costs. Beside it stand the CPU time of QEMU's main thread, which serves the
balloon and takes the probes' hits, and what the probes took by their own account: hits times the
cost of one, measured when they were attached, over the rest of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lab.overhead import UNTRACED, Moves, Traced, measure_overhead
from lab.session import LabOptions
from tests.bench.measure import Report, Settings, at_most, run

AGAIN = Traced("nothing (noise)")
HOST = (
    Traced("requests, host", "requests"),
    Traced("discards, host", "discards"),
    Traced("calls, host", "calls"),
)
BOTH = Traced("discards, both sides", "discards", guest=True)
GOALS = {"requests, host": at_most(1.01), "discards, host": at_most(1.05), BOTH.name: at_most(1.05)}
OPTIONS = LabOptions(output=Path("unused.balloon"), memory_bytes=1 << 30)
FIGURES = {
    "inflate_ns": "inflate, wall",
    "inflate_cpu_ns": "inflate, CPU of QEMU's main thread",
    "deflate_ns": "deflate, wall",
}


def measure(settings: Settings, report: Report) -> None:
    """Inflate half of a GiB under every side, and give it back."""
    sides = (UNTRACED, AGAIN, *HOST, BOTH)
    found = measure_overhead(OPTIONS, sides, settings.pairs, settings.seed)
    for figure, name in FIGURES.items():
        samples = {
            side.name: [float(getattr(moves, figure)) for moves in found[side.name]]
            for side in sides
        }
        report.keep({f"{name}, {side}, ns": values for side, values in samples.items()})
        plain = samples[UNTRACED.name]
        report.figure(f"{name}, untraced", "ms", [value / 1e6 for value in plain])
        for side in (AGAIN, *HOST, BOTH):
            goal = None if figure == "deflate_ns" else GOALS.get(side.name)
            report.ratio(f"{name}, over untraced: {side.name}", (plain, samples[side.name]), goal)
    for side in HOST:
        account(report, side.name, found[side.name])


def account(report: Report, name: str, moves: Sequence[Moves]) -> None:
    """Both moves over both moves without the probes' hits times cost; none without all costs."""
    probes = [move.probes_ns for move in moves]
    wall = [float(move.inflate_ns + move.deflate_ns) for move in moves]
    known = [ns for ns in probes if ns is not None]
    if len(known) < len(moves):
        report.notes.append(f"{name}: a probe that fired has no measured cost")
        return
    report.keep({f"both moves, {name}, probes, ns": known})
    without = [time - ns for time, ns in zip(wall, known, strict=True)]
    report.ratio(
        f"both moves, with the probes' hits x cost: {name}", (without, wall), GOALS.get(name)
    )


if __name__ == "__main__":
    run("lab", measure)
