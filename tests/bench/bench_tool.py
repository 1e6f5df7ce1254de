"""Speed and memory of the tool itself, on traces of two million pages.

Loading and decoding, every strategy's plan, `whatif`, the executor over a plain C loop, sorting and
merging over the time that the kernel takes for the pages, and the memory of a replay beside the
memory that is replayed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from replay.plan import Context, context_of
from replay.ranges import pfns_from_runs
from replay.requests import Requests, load_requests, memory_map
from replay.strategies import STRATEGIES
from replay.strategies.base import Strategy
from replay.whatif import Window, what_if
from tests.bench import large_trace
from tests.bench.measure import Report, Settings, at_most, interleaved, run
from tests.bench.native_speed import measure_executor, measure_merge
from tracer.trace.reader import open_trace

LOAD_MS, PLAN_MS, WHATIF_MS = 50, 100, 1000
MEMORY_MIB = 64
"""For each million pages."""
MIB = 1 << 20
MILLION = 1_000_000
WINDOWS = [Window(hold_bytes=size * MIB) for size in (1, 16, 256)]
"""Those that `aerostat whatif` counts where none are named."""


def measure(settings: Settings, report: Report) -> None:
    """Write the traces, then measure part after part."""
    with tempfile.TemporaryDirectory(prefix="aerostat-bench-", dir="out") as work:
        paths = {order: Path(work) / f"{order}.balloon" for order in large_trace.ORDERS}
        pages = {order: large_trace.write(path, order) for order, path in paths.items()}
        measure_load(paths, settings, report)
        measure_plans(paths, settings, report)
        measure_whatif(paths, settings, report)
        for order, path in paths.items():
            measure_memory(path, pages[order], settings, report)
    measure_executor(settings, report)
    measure_merge(settings, report)


def wall_ms(work: Callable[[], object]) -> float:
    """Milliseconds that something takes by the clock on the wall."""
    begin_ns = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - begin_ns) / 1e6


def timed(
    sides: Mapping[str, Callable[[], object]], settings: Settings, report: Report, goal_ms: float
) -> None:
    """Add a row for each side."""
    found = interleaved({what: partial(wall_ms, work) for what, work in sides.items()}, settings)
    report.keep(found)
    for what, samples in found.items():
        report.figure(what, "ms", samples, at_most(goal_ms))


def measure_load(paths: Mapping[str, Path], settings: Settings, report: Report) -> None:
    """From the files to columns of requests, and to every PFN in wire order."""

    def load(path: Path) -> object:
        requests = load_requests(open_trace(path))
        return pfns_from_runs(requests.run_pfn, requests.run_pages)

    sides = {f"load and decode, {order}": partial(load, path) for order, path in paths.items()}
    timed(sides, settings, report, LOAD_MS)


def measure_plans(paths: Mapping[str, Path], settings: Settings, report: Report) -> None:
    """Each strategy by itself: nothing is shared with another, or with an earlier round."""

    def plan(strategy: Strategy, requests: Requests, context: Context) -> object:
        return strategy.plan(replace(requests, memo={}), context)

    sides = {}
    for order, path in paths.items():
        trace = open_trace(path)
        requests, regions = load_requests(trace), memory_map(trace)
        anon, memfd = context_of(regions), context_of(regions, "memfd")
        for name, strategy in STRATEGIES.items():
            context = anon if strategy.refusal(anon) is None else memfd
            sides[f"plan, {order}, {name}"] = partial(plan, strategy, requests, context)
    timed(sides, settings, report, PLAN_MS)


def measure_whatif(paths: Mapping[str, Path], settings: Settings, report: Report) -> None:
    """From the files to all counts; and the command, with its imports and its table."""

    def count(path: Path) -> object:
        trace = open_trace(path)
        return what_if(load_requests(trace), context_of(memory_map(trace)), None, WINDOWS)

    def command(path: Path) -> object:
        program = "import sys; from aerostat.cli import main; sys.exit(main())"
        arguments = [sys.executable, "-c", program, "whatif", str(path)]
        return subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)

    sides: dict[str, Callable[[], object]] = {}
    for order, path in paths.items():
        sides[f"whatif, {order}"] = partial(count, path)
        sides[f"whatif, {order}, whole command"] = partial(command, path)
    timed(sides, settings, report, WHATIF_MS)


def measure_memory(path: Path, pages: int, settings: Settings, report: Report) -> None:
    """Peak of a fresh process over what it had after a small trace, of qemu and the worst."""
    del settings  # it hardly varies: once is enough

    def peak(*arguments: str) -> float:
        command = [sys.executable, "-m", "tests.bench.peak", str(path), *arguments]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return int(done.stdout) / MIB / (pages / MILLION)

    loaded = peak("load")
    report.keep({f"memory, {path.stem}, load": [loaded]})
    what = f"memory per million pages, {path.stem}"
    report.figure(f"{what}, load", "MiB", [loaded], at_most(MEMORY_MIB))
    plans = {name: peak("plan", name) for name in STRATEGIES}
    worst = max(plans, key=plans.__getitem__)
    replays = {name: peak("replay", name) for name in dict.fromkeys(("qemu", worst))}
    for phase, peaks in (("plan", plans), ("replay", replays)):
        report.keep({f"memory, {path.stem}, {phase} {name}": [n] for name, n in peaks.items()})
        for name in replays:
            report.figure(f"{what}, {phase} {name}", "MiB", [peaks[name]], at_most(MEMORY_MIB))


if __name__ == "__main__":
    run("tool", measure)
