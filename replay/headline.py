"""The seed's experiment on a recorded order: 7 GiB of an 8 GiB memory, stages b, c and d executed.

The seed patch (2016) inflated 7 GiB of an idle 8 GiB guest in 4126 ms with PFNs, and in 590 ms with
ranges. Here the order of a trace is stretched to that size (`replay.stretch`) and replayed under
both protocols, on memory that nobody touched before, as the idle guest's was on its host, and on
memory that is all there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Literal

from replay.against import Against, against
from replay.assemble import strategy_results
from replay.budget import MARGIN_BYTES, PAGE_TABLE_SHARE, available_bytes, named_pages, within
from replay.caveats import failure_warnings, floor_warnings, sibling_warnings, thread_warnings
from replay.environment import Environment, fingerprint
from replay.plan import Context, context_of
from replay.planning import Refused
from replay.prepare import Planned, plan_all
from replay.ranges import empty
from replay.requests import Requests, load_requests, memory_map
from replay.residency import Residency
from replay.results import StrategyResult
from replay.rounds import Work, chosen_cpu, resting_cpu, run_all
from replay.schedule import ReplayOptions, check_options, refuse_loss
from replay.stability import machine_warnings, read_cpu_time, run_stability
from replay.stretch import Stretched, recorded_order, stretch
from tracer.trace.errors import AerostatError
from tracer.trace.manifest import Region
from tracer.trace.missing import require_requests
from tracer.trace.progress import Progress, silent
from tracer.trace.reader import open_trace
from tracer.trace.schema import PAGE_BYTES, PFN_SHIFT

PAGES, MEMORY_PAGES = 7 << 18, 8 << 18
"""7 GiB of 8 GiB."""
PFNS, RANGES = "qemu", "range"
"""The strategies that stand for the seed's two sides."""
STRATEGIES = (PFNS, RANGES, "bulk", "bulk:threads=2", "oracle")
SMALLEST_SCALE = 1 / 256
"""28 MiB of 32 MiB: below that a machine's noise is all there is to see."""

PLAN_BYTES = 256
"""For each inflated page: a plan of one operation a page, here, on its way, and in the worker."""

Touched = Literal["untouched", "touched"]
ASSUMPTIONS: tuple[Touched, ...] = ("untouched", "touched")


@dataclass(frozen=True)
class HeadlineOptions:
    """What to stretch and how to measure.

    Args:
        trace: Whose order is stretched.
        strategies: Names that `load_strategy` knows; `qemu`, `range` and nop are always added.
        runs: Rounds that count; each runs every strategy once.
        warmup: Rounds before those.
        seed: Of the order of runs and of the stamps in memory.
        residency: Whether no page of the memory was touched before, or all were; one replay each.
        siblings: Threads that spin on other CPUs meanwhile.
        cpu: CPU of the executing thread, as for `ReplayOptions`.
        memory_limit_bytes: Most memory that a run may take; the experiment is scaled down to it by
            halves. None: all that the machine has, and never scaled.
        allow_loss: Take the order of a trace that is known to miss events.
    """

    trace: Path
    strategies: tuple[str, ...] = STRATEGIES
    runs: int = 7
    warmup: int = 1
    seed: int = 1
    residency: tuple[Touched, ...] = ASSUMPTIONS
    siblings: int = 0
    cpu: int | Literal["auto"] | None = "auto"
    memory_limit_bytes: int | None = None
    allow_loss: bool = False


@dataclass(frozen=True)
class Case:
    """One replay of the stretched order.

    Args:
        residency: untouched or touched: which pages had memory behind them.
        against_pfns: Every strategy beside the PFN protocol, page by page.
        against_ranges: Every strategy beside the seed's ranges.
    """

    residency: Touched
    resident_bytes: int
    warnings: tuple[str, ...]
    strategies: tuple[StrategyResult, ...]
    against_pfns: tuple[Against, ...]
    against_ranges: tuple[Against, ...]


@dataclass(frozen=True)
class Headline:
    """What came out.

    Args:
        scale: 1 for the seed's size; else the part of it that the memory limit left.
        recorded_pages: Pages of the order that was stretched, and `copies` of it.
        holes: Between pages of the stretched order; `holes_kept` of them had room.
        inflated_bytes: What is inflated of `memory_bytes`.
        siblings: Threads that ran beside stage d; `resting_threads` slept on another CPU instead.
    """

    created_utc: str
    aerostat_version: str
    trace: str
    scale: float
    inflated_bytes: int
    memory_bytes: int
    recorded_pages: int
    copies: float
    holes: int
    holes_kept: int
    runs: int
    warmup: int
    seed: int
    siblings: int
    resting_threads: int
    cpu: int | None
    environment: Environment
    refused: tuple[Refused, ...]
    cases: tuple[Case, ...]


def measure_headline(options: HeadlineOptions, progress: Progress = silent) -> Headline:
    """Stretch, plan once, and replay every strategy so many times for each residency.

    Raises:
        AerostatError: The trace has no inflate, or the machine has not the memory.
    """
    replay = _replay_options(options)
    check_options(replay)
    trace = open_trace(options.trace)
    require_requests(trace)
    refuse_loss(trace, allow_loss=options.allow_loss)
    order = recorded_order(load_requests(trace), context_of(memory_map(trace), "anon"))
    scale = fitting_scale(options, available_bytes() - MARGIN_BYTES)
    stretched = stretch(order, int(PAGES * scale), int(MEMORY_PAGES * scale))
    context = context_of_pages(stretched.memory_pages)
    names = tuple(dict.fromkeys((PFNS, RANGES, *options.strategies)))
    planned, refused = plan_all(names, stretched.requests, context, progress)
    environment = fingerprint()
    cases = tuple(
        _case(replay, each, planned, (stretched, context, environment), progress)
        for each in options.residency
    )
    return Headline(
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        aerostat_version=metadata.version("aerostat"),
        trace=options.trace.name,
        scale=scale,
        inflated_bytes=stretched.pages << PFN_SHIFT,
        memory_bytes=context.layout.memory_bytes,
        recorded_pages=stretched.recorded_pages,
        copies=stretched.copies,
        holes=stretched.holes,
        holes_kept=stretched.holes_kept,
        runs=options.runs,
        warmup=options.warmup,
        seed=options.seed,
        siblings=options.siblings,
        resting_threads=int(resting_cpu(chosen_cpu(replay), options.siblings) is not None),
        cpu=chosen_cpu(replay),
        environment=environment,
        refused=tuple(refused),
        cases=cases,
    )


def context_of_pages(memory_pages: int) -> Context:
    """Anonymous memory in one region from guest physical address 0."""
    return Context((Region("ram", 0, None, memory_pages * PAGE_BYTES, "anon", PAGE_BYTES),))


def assumed(residency: Touched, requests: Requests, context: Context) -> Residency:
    """No page has memory, or all that will be inflated have, as pages of 4 KiB."""
    if residency == "untouched":
        return Residency(empty(), empty(), "assumed: no page was touched")
    named = named_pages(requests, context.layout)
    return Residency(named, empty(), "assumed: every inflated page was touched")


def fitting_scale(options: HeadlineOptions, spare_bytes: int) -> float:
    """Find the part of the seed's size that the memory holds: 1, 1/2, 1/4 and so on.

    Args:
        options: Of them the residency and the user's limit count.
        spare_bytes: What the machine has.

    Raises:
        AerostatError: The whole does not fit and no limit was given, or nothing fits.
    """
    limit = options.memory_limit_bytes
    allowed = within(spare_bytes, limit)
    needed = _needed_bytes(options, 1)
    if needed <= allowed:
        return 1
    if limit is None:
        half = _largest(options, allowed)
        remedy = "use a machine with more memory"
        if half:
            limit_text = f"{-(-_needed_bytes(options, half) >> 20)}M"
            remedy = f"--memory-limit {limit_text} runs it at 1/{round(1 / half)} of the size"
        raise AerostatError(
            f"the seed's experiment needs {needed >> 20} MiB of memory",
            reason=f"{max(allowed, 0) >> 20} MiB may be used: the rest is taken, or kept free",
            remedy=remedy,
        )
    scale = _largest(options, allowed)
    if not scale:
        raise AerostatError(
            f"{max(allowed, 0)} bytes of memory are too few for any part of the seed's experiment",
            reason=f"1/{round(1 / SMALLEST_SCALE)} of it needs"
            f" {_needed_bytes(options, SMALLEST_SCALE)} bytes",
            remedy="raise --memory-limit, or free memory",
        )
    return scale


def _largest(options: HeadlineOptions, allowed: int) -> float:
    scale = 0.5
    while scale >= SMALLEST_SCALE:
        if _needed_bytes(options, scale) <= allowed:
            return scale
        scale /= 2
    return 0


def _needed_bytes(options: HeadlineOptions, scale: float) -> int:
    """Memory of one run: resident pages and their page tables, plans, the state of each page."""
    page_bytes = PLAN_BYTES + PAGE_BYTES // PAGE_TABLE_SHARE
    page_bytes += PAGE_BYTES if "touched" in options.residency else 0
    return int(PAGES * scale) * page_bytes + 2 * int(MEMORY_PAGES * scale)


def _replay_options(options: HeadlineOptions) -> ReplayOptions:
    return ReplayOptions(
        trace=options.trace,
        strategies=options.strategies,
        runs=options.runs,
        warmup=options.warmup,
        seed=options.seed,
        backing="anon",
        thp="never",
        siblings=options.siblings,
        cpu=options.cpu,
        watched_runs=0,
        allow_loss=options.allow_loss,
    )


def _case(
    replay: ReplayOptions,
    residency: Touched,
    planned: Sequence[Planned],
    where: tuple[Stretched, Context, Environment],
    progress: Progress,
) -> Case:
    stretched, context, environment = where
    resident = assumed(residency, stretched.requests, context)
    work = Work(list(planned), context, resident, empty())
    cpu_time = read_cpu_time()
    made = zip(planned, *run_all(replay, work, progress), strict=True)
    stolen_share = cpu_time.stolen_share(read_cpu_time())
    strategies = strategy_results(list(made), replay.warmup)
    plans = [each.plan for each in planned]
    return Case(
        residency=residency,
        resident_bytes=resident.resident_pages << PFN_SHIFT,
        warnings=(
            *machine_warnings(environment, replay.siblings),
            *run_stability(replay, strategies, stolen_share),
            *thread_warnings(plans, replay.siblings, environment.cpus_allowed),
            *sibling_warnings(strategies, replay.siblings),
            *failure_warnings(strategies),
            *floor_warnings(strategies),
        ),
        strategies=strategies,
        against_pfns=against(strategies, PFNS),
        against_ranges=against(strategies, RANGES),
    )
