"""A whole replay: plan once, then run every strategy several times in seeded random order."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from replay.assemble import Replay, assemble
from replay.backings import BACKINGS
from replay.budget import require_account
from replay.environment import fingerprint
from replay.memory import operations_of
from replay.plan import Context, context_of
from replay.prepare import Planned, fit_to_machine, plan_all
from replay.requests import load_requests, memory_map
from replay.residency import Assumption, Residency, Thp, load_residency
from replay.results import Results, refuse_overwrite
from replay.worker import Done, Job, process_context, run_in_fresh_process
from tracer.trace.errors import AerostatError, CaptureIncompleteError
from tracer.trace.missing import missing_events, require_requests
from tracer.trace.progress import Progress, silent
from tracer.trace.reader import open_trace
from tracer.trace.schema import PFN_SHIFT

if TYPE_CHECKING:
    from tracer.trace.reader import Trace

DEFAULT_STRATEGIES = ("qemu", "adjacent", "request", "range", "oracle")
MAX_RUNS = 10_000


@dataclass(frozen=True)
class ReplayOptions:
    """What to replay and how.

    Args:
        trace: The bundle.
        strategies: Names that `replay.strategies.load_strategy` knows, or `all`; nop is always
            added.
        runs: Measured runs of each strategy; a comparison needs at least 4.
        warmup: Runs of each before those; kept in the results, never counted.
        seed: Of the order of runs and of the stamps in memory.
        backing: What guest memory is mapped from, a name in `BACKINGS`; None: as in the trace.
        thp: Where anonymous memory is in transparent huge pages.
        siblings: Threads that spin on other CPUs while stage d runs, as vCPUs do.
        cpu: CPU of the executing thread; None leaves it to the scheduler.
        residency: Which pages have memory: as in the trace, all or none.
        per_operation: Time every operation; adds two clock reads to each.
        memory_limit_bytes: Most memory a run may take; never more than the machine has left.
        timeout_ns: Longest time one run may take.
        allow_loss: Replay a trace that is known to miss events.
        output: File to write the results to; None writes none.
        force: Replace that file.
    """

    trace: Path
    strategies: tuple[str, ...] = DEFAULT_STRATEGIES
    runs: int = 5
    warmup: int = 1
    seed: int = 1
    backing: str | None = None
    thp: Thp = "madvise"
    siblings: int = 0
    cpu: int | None = None
    residency: Assumption = "trace"
    per_operation: bool = False
    memory_limit_bytes: int | None = None
    timeout_ns: int = 600_000_000_000
    allow_loss: bool = False
    output: Path | None = None
    force: bool = False


def replay_trace(options: ReplayOptions, progress: Progress = silent) -> Results:
    """Replay a trace under several strategies on mapped memory and measure each.

    Every run is a fresh process. Runs of all strategies are interleaved in a seeded random order,
    so a drift of the machine falls on all of them alike.

    Args:
        options: What and how.
        progress: Told of phases `plan` and `replay`.

    Raises:
        AerostatError: The trace, a strategy or the machine does not allow it; a worker died; or
            memory was not as it must be afterwards.
    """
    _check_options(options)
    trace = open_trace(options.trace)
    require_requests(trace)
    _refuse_loss(trace, options)
    context = context_of(memory_map(trace), options.backing)
    require_account(context.layout, options.memory_limit_bytes)
    requests = load_requests(trace)
    residency = load_residency(trace, context.layout, options.residency, options.thp)
    planned, refused = plan_all(options.strategies, requests, context, progress)
    limit_bytes = options.memory_limit_bytes
    fitted = fit_to_machine(requests, residency, context, planned, limit_bytes)
    if fitted.reason:
        planned, refused = plan_all(options.strategies, fitted.requests, context, progress)
    environment = fingerprint()
    done = _run_all(options, planned, context, fitted.residency, progress)
    results = assemble(
        Replay(
            options,
            trace,
            requests,
            fitted,
            context,
            tuple(planned),
            tuple(refused),
            done,
            environment,
        )
    )
    if options.output is not None:
        results.save(options.output, force=options.force)
    return results


def _check_options(options: ReplayOptions) -> None:
    """Refuse before any work what could only fail after it."""
    if not 1 <= options.runs <= MAX_RUNS or not 0 <= options.warmup <= MAX_RUNS:
        raise AerostatError(
            f"cannot replay {options.runs} times after {options.warmup} warm-up runs",
            remedy=f"choose 1 to {MAX_RUNS} runs and 0 to {MAX_RUNS} warm-up runs",
        )
    if options.backing is not None and options.backing not in BACKINGS:
        raise AerostatError(
            f"memory of backing {options.backing!r} cannot be replayed",
            remedy=f"choose one of {', '.join(BACKINGS)}",
        )
    if not 0 <= options.siblings <= 1024:
        raise AerostatError(f"cannot run {options.siblings} sibling threads")
    allowed = os.sched_getaffinity(0)
    if options.cpu is not None and options.cpu not in allowed:
        raise AerostatError(
            f"cannot run on CPU {options.cpu}",
            reason=f"this process may use {sorted(allowed)}",
            remedy="name one of these with --cpu",
        )
    if options.output is not None:
        refuse_overwrite(options.output, options.force)


def _refuse_loss(trace: Trace, options: ReplayOptions) -> None:
    if options.allow_loss:
        return
    missing = missing_events(trace)
    if missing is not None:
        raise CaptureIncompleteError(
            f"{options.trace} is not whole, so its replay would be of something else",
            reason=f"it {missing}",
            remedy="record again, or --allow-loss to replay what there is",
        )


def run_order(strategies: int, rounds: int, seed: int) -> list[tuple[int, int]]:
    """Say in which order runs happen: every strategy once a round, shuffled in each.

    Returns:
        (round, index of the strategy), in order; the same for the same seed.
    """
    generator = random.Random(seed)
    order = []
    for turn in range(rounds):
        indices = list(range(strategies))
        generator.shuffle(indices)
        order += [(turn, index) for index in indices]
    return order


def _run_all(
    options: ReplayOptions,
    planned: list[Planned],
    context: Context,
    residency: Residency,
    progress: Progress,
) -> list[list[Done]]:
    """All runs, by strategy; warm-up runs first in each list."""
    jobs = [_job(options, each, context, residency) for each in planned]
    processes = process_context()
    order = run_order(len(planned), options.warmup + options.runs, options.seed)
    done: list[list[Done]] = [[] for _ in planned]
    for number, (turn, index) in enumerate(order):
        progress("replay", number, len(order))
        title = f"run {turn + 1} of {planned[index].plan.name} on {options.trace.name}"
        job = replace(jobs[index], title=title, order=number, seed=options.seed + number)
        done[index].append(run_in_fresh_process(processes, job, options.timeout_ns))
    progress("replay", len(order), len(order))
    return done


def _job(options: ReplayOptions, planned: Planned, context: Context, residency: Residency) -> Job:
    """What all runs of a strategy share."""
    layout = context.layout
    regions = tuple(
        (int(start) << PFN_SHIFT, int(end - start) << PFN_SHIFT, int(page) << PFN_SHIFT)
        for start, end, page in zip(layout.start_pfn, layout.end_pfn, layout.base_page, strict=True)
    )
    return Job(
        title=planned.plan.name,
        order=0,
        seed=options.seed,
        size_bytes=layout.memory_bytes,
        backing=context.backing,
        thp=options.thp,
        residency=residency,
        operations=operations_of(planned.plan),
        sending=planned.sending,
        regions=regions,
        cpu=options.cpu,
        crew_cpus=_crew_cpus(options, planned.plan.threads),
        sibling_cpus=_sibling_cpus(options),
        per_operation=options.per_operation,
    )


def _crew_cpus(options: ReplayOptions, threads: int) -> tuple[int, ...]:
    """CPUs of a plan's threads, the executing thread's own first; none where it runs free."""
    if options.cpu is None:
        return ()
    allowed = sorted(os.sched_getaffinity(0), key=lambda cpu: (cpu != options.cpu, cpu))
    return tuple(allowed[i % len(allowed)] for i in range(threads))


def _sibling_cpus(options: ReplayOptions) -> tuple[int, ...]:
    """CPUs in turn, the executing thread's own last."""
    allowed = sorted(os.sched_getaffinity(0), key=lambda cpu: (cpu == options.cpu, -cpu))
    return tuple(allowed[i % len(allowed)] for i in range(options.siblings))
