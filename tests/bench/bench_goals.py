"""The goals of bulk discards: ratios of pairs, on a recorded order stretched to the seed's 7 GiB.

Each sample maps the memory anew, populates it outside of the time, and checks afterwards that the
pages are gone. Bulk is all that a device must do with PFN arrays: decode every PFN, sort, merge and
discard. What it is held against is discards alone, so decoding weighs on one side only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from aerostat.headline import default_trace, without_allocation
from replay import native
from replay.backings import Advice
from replay.budget import available_bytes
from replay.headline import (
    MEMORY_PAGES,
    PAGES,
    HeadlineOptions,
    context_of_pages,
    measure_headline,
)
from replay.memory import SIBLING_PAGES, GuestMemory, operations_of
from replay.merging import Merging, merging
from replay.native.types import Operations
from replay.plan import Context, context_of
from replay.ranges import Runs, align_in, empty, intersect, merge, merge_sorted
from replay.requests import load_requests, memory_map
from replay.residency import Residency
from replay.sending import sending
from replay.strategies import load_strategy
from replay.stretch import Stretched, recorded_order, stretch
from tests.bench.measure import Goal, Report, Settings, at_least, at_most, interleaved, run
from tracer.account.stages import SEED_TOTAL_NS
from tracer.trace.reader import open_trace
from tracer.trace.schema import PFN_SHIFT

HUGE_PAGES = 512
SPARE_BYTES = 1 << 30
SEED_TIMES, LATER_TIMES = 7.0, 9.4
WAIT_FOR_EVER = "deferred:hold_bytes=none,hold_ns=none"


@dataclass(frozen=True, eq=False)
class Bench:
    """What all parts share.

    Attributes:
        context: Memory of 8 GiB, or of the part that fits.
        plans: Operations by what they are.
        merging: Decoding and merging before the ranges.
    """

    context: Context
    stretched: Stretched
    plans: Mapping[str, Operations]
    merging: Merging
    regions: tuple[tuple[int, int, int], ...]


def measure(settings: Settings, report: Report) -> None:
    """Measure part after part; within each, all sides take turns."""
    bench = prepare(settings, report)
    touched(bench, settings, report)
    with_sibling(bench, settings, report)
    huge(bench, settings, report)
    end_to_end(bench, settings, report)


def prepare(settings: Settings, report: Report) -> Bench:
    """Stretch the order, plan, and say what is not as the goals ask."""
    trace = open_trace(default_trace())
    order = recorded_order(load_requests(trace), context_of(memory_map(trace), "anon"))
    pages = settings.pages
    if (room := available_bytes() - SPARE_BYTES >> PFN_SHIFT) < pages * 9 // 8:
        pages = room * 8 // 9
        report.notes.append(f"only {pages:,} of {PAGES:,} pages fit this machine")
    memory_pages = -(-pages * MEMORY_PAGES // PAGES // HUGE_PAGES) * HUGE_PAGES
    stretched = stretch(order, pages, memory_pages)
    context, requests = context_of_pages(memory_pages), stretched.requests

    def plan_of(name: str) -> Operations:
        return operations_of(load_strategy(name).plan(requests, context))

    waits = load_strategy(WAIT_FOR_EVER)
    plan = waits.plan(requests, context)
    recorded = sending(requests, load_strategy("nop").plan(requests, context))
    merged = merging(waits, requests, recorded, memory_pages)
    assert merged is not None
    plans = {
        "page by page": plan_of("qemu"),
        "vectored, unmerged": plan_of("vectored"),
        "ranges": operations_of(plan),
    }
    plans["one call"] = one_call(plans["ranges"])
    ranges = runs_of(plans["ranges"])
    report.notes.append(
        f"order of {trace.path.name}, {stretched.copies:.2f} times over: {pages:,} pages in"
        f" {len(requests):,} requests, {len(ranges.start):,} ranges once merged"
    )
    return Bench(context, stretched, plans, merged, ((0, memory_pages << PFN_SHIFT, 0),))


def runs_of(operations: Operations) -> Runs:
    """Pages that operations cover."""
    shift = np.uint64(PFN_SHIFT)
    page, pages = operations.offset_bytes >> shift, operations.length_bytes >> shift
    return merge(page.astype(np.int64), pages.astype(np.int64))


def operations_on(runs: Runs) -> Operations:
    """One discard a run."""
    return Operations(
        np.full(len(runs.start), Advice.DONTNEED, np.uint8),
        (runs.start << PFN_SHIFT).astype(np.uint64),
        (runs.pages << PFN_SHIFT).astype(np.uint64),
        np.zeros(len(runs.start), np.int64),
    )


def one_call(operations: Operations) -> Operations:
    """The floor: all that the operations cover and what lies between, in one call."""
    found = runs_of(operations)
    low, high = found.start[:1], found.end[-1:]
    return operations_on(Runs(low, high - low))


def only(operations: Operations, pages: Runs) -> Operations:
    """Those operations on single pages that lie in some runs, in their order."""
    page = (operations.offset_bytes >> np.uint64(PFN_SHIFT)).astype(np.int64)
    run = np.searchsorted(pages.start, page, side="right") - 1
    kept = (run >= 0) & (page < pages.end[run])
    return Operations(*(column[kept] for column in plain_columns(operations)))


def plain_columns(operations: Operations) -> tuple[np.ndarray, ...]:
    """The four columns that every operation has."""
    return (
        operations.advice,
        operations.offset_bytes,
        operations.length_bytes,
        operations.request,
    )


@contextmanager
def pinned():
    """Run this thread on the first CPU that it may use; gives one for a sibling, None without."""
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cpus[:1])
    try:
        yield cpus[-1] if len(cpus) > 1 else None
    finally:
        os.sched_setaffinity(0, cpus)


class Sides:
    """Samples of wall and CPU time, in ms, of whatever is discarded on fresh memory."""

    def __init__(
        self,
        bench: Bench,
        residency: Residency,
        siblings: tuple[int, ...] = (),
        resting_cpu: int | None = None,
    ) -> None:
        self.bench = bench
        self.residency = residency
        self.siblings = siblings
        self.resting_cpu = resting_cpu
        self.cpu_ms: dict[str, list[float]] = {}

    def discard(self, name: str, operations: Operations, *, decoded: bool = False) -> float:
        """Take one sample; `decoded` adds decoding and merging, done for this very sample."""
        memory_bytes = self.bench.context.layout.memory_bytes
        wall_ns = cpu_ns = 0
        if decoded:
            gathered = self.bench.merging.run(self.bench.regions)
            wall_ns, cpu_ns = gathered.wall_ns, gathered.cpu_ns
        with GuestMemory(memory_bytes, "anon", seed=1, thp="madvise") as memory:
            memory.restore(self.residency)
            before = memory.resident_pages()
            read = memory.kept_pages(operations, SIBLING_PAGES if self.siblings else 0)
            with native.Siblings(self.siblings, memory.mapping, read, self.resting_cpu):
                outcome = memory.execute(operations)
            freed = before - memory.resident_pages()
            held = merge_sorted(self.residency.small, self.residency.huge)
            expected = intersect(runs_of(operations), held).total_pages
        assert not outcome.failures, f"{name}: {outcome.failures} operations failed"
        assert freed >= expected, f"{name}: {freed} of {expected} pages were freed"
        self.cpu_ms.setdefault(name, []).append((cpu_ns + outcome.cpu_ns) / 1e6)
        return (wall_ns + outcome.wall_ns) / 1e6

    def run(
        self, sides: Mapping[str, Callable[[], float]], settings: Settings
    ) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Wall and CPU samples of every side; the first round is thrown away."""
        wall = interleaved(sides, settings)
        return wall, {name: values[1:] for name, values in self.cpu_ms.items()}


def compare(
    part: str,
    samples: tuple[dict[str, list[float]], dict[str, list[float]]],
    wanted: Mapping[tuple[str, str], Goal | None],
    report: Report,
) -> None:
    """Add every side's time, and the ratios; goals are those of the wall clock."""
    wall, cpu = samples
    report.keep({f"{part}, {name}, wall ms": values for name, values in wall.items()})
    report.keep({f"{part}, {name}, CPU ms": values for name, values in cpu.items()})
    for name, values in wall.items():
        report.figure(f"{part}: {name}", "ms", values)
    for (slow, fast), goal in wanted.items():
        report.ratio(f"{part}: {slow} over {fast}", (wall[fast], wall[slow]), goal)
        report.ratio(f"{part}: the same, CPU time", (cpu[fast], cpu[slow]))


def touched(bench: Bench, settings: Settings, report: Report) -> None:
    """Touched pages of 4 KiB, nobody else running."""
    plans = bench.plans
    with pinned() as other:
        sides = Sides(bench, Residency(runs_of(plans["ranges"]), empty(), ""), resting_cpu=other)
        found = sides.run(
            {
                "page by page": partial(sides.discard, "page by page", plans["page by page"]),
                "bulk": partial(sides.discard, "bulk", plans["ranges"], decoded=True),
                "one call": partial(sides.discard, "one call", plans["one call"]),
                "vectored": partial(sides.discard, "vectored", plans["vectored, unmerged"]),
            },
            settings,
        )
    compare(
        "touched",
        found,
        {
            ("page by page", "bulk"): at_least(3.4),
            ("bulk", "one call"): at_most(1.05),
            ("page by page", "vectored"): at_least(1.8),
        },
        report,
    )


def with_sibling(bench: Bench, settings: Settings, report: Report) -> None:
    """The same, with one thread of this process spinning on another CPU."""
    plans = bench.plans
    with pinned() as other:
        if other is None:
            report.notes.append("one sibling: not measured, since there is one CPU")
            return
        sides = Sides(bench, Residency(runs_of(plans["ranges"]), empty(), ""), (other,))
        found = sides.run(
            {
                "page by page": partial(sides.discard, "page by page", plans["page by page"]),
                "bulk": partial(sides.discard, "bulk", plans["ranges"], decoded=True),
                "vectored": partial(sides.discard, "vectored", plans["vectored, unmerged"]),
            },
            settings,
        )
    compare(
        "one sibling",
        found,
        {("page by page", "bulk"): at_least(25), ("page by page", "vectored"): at_least(14)},
        report,
    )


def huge(bench: Bench, settings: Settings, report: Report) -> None:
    """Transparent huge pages, discarded whole: both sides are given the same whole ones."""
    whole = align_in(runs_of(bench.plans["ranges"]), HUGE_PAGES)
    units = np.concatenate(
        [
            np.arange(start, end, HUGE_PAGES)
            for start, end in zip(whole.start, whole.end, strict=True)
        ]
    )
    each = Runs(units, np.full(len(units), HUGE_PAGES))
    single = only(bench.plans["page by page"], whole)
    with pinned() as other:
        sides = Sides(bench, Residency(empty(), whole, ""), resting_cpu=other)
        found = sides.run(
            {
                "page by page": partial(sides.discard, "page by page", single),
                "bulk, 2 MiB aligned": partial(
                    sides.discard, "bulk, 2 MiB aligned", operations_on(whole), decoded=True
                ),
                "2 MiB a call": partial(sides.discard, "2 MiB a call", operations_on(each)),
                "one call": partial(sides.discard, "one call", one_call(operations_on(whole))),
            },
            settings,
        )
    compare(
        "huge pages",
        found,
        {
            ("page by page", "bulk, 2 MiB aligned"): at_least(40),
            ("page by page", "2 MiB a call"): None,
            ("page by page", "one call"): None,
        },
        report,
    )


def end_to_end(bench: Bench, settings: Settings, report: Report) -> None:
    """Stages b, c and d and merging, on memory that nobody touched, as in the seed's idle guest."""
    limit = None if bench.stretched.pages == PAGES else bench.context.layout.memory_bytes
    options = HeadlineOptions(
        default_trace(),
        ("bulk",),
        runs=settings.pairs,
        seed=settings.seed,
        residency=("untouched",),
        memory_limit_bytes=limit,
    )
    goals = [(f"the seed's {SEED_TIMES}", SEED_TIMES), (f"the later {LATER_TIMES}", LATER_TIMES)]
    left_ns = without_allocation(round(SEED_TOTAL_NS / LATER_TIMES))
    without = without_allocation(SEED_TOTAL_NS) / left_ns
    goals.append((f"the later {LATER_TIMES} had stage a stayed and been left out", without))
    part = "end to end, untouched"
    for case in measure_headline(options).cases:
        times = {
            strategy.name: [float(run.total_ns) for run in strategy.runs]
            for strategy in case.strategies
        }
        report.keep({f"{part}, {name}, ns": values for name, values in times.items()})
        for name, values in times.items():
            report.figure(f"{part}: {name}", "ms", [value / 1e6 for value in values])
        for what, bound in goals:
            pair = (times["range"], times["qemu"])
            report.ratio(f"{part}: PFNs over ranges, {what}", pair, at_least(bound))
        report.ratio(f"{part}: PFNs over bulk", (times["bulk"], times["qemu"]))


if __name__ == "__main__":
    run("goals", measure)
