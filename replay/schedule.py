"""A whole replay: plan once, then run every strategy several times in seeded random order."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from replay.against import MIN_PAIRS
from replay.assemble import Replay, assemble
from replay.backings import BACKINGS
from replay.budget import require_account
from replay.environment import fingerprint
from replay.foretell import Foretold, Session, foretell
from replay.plan import context_of
from replay.prepare import fit_to_machine, plan_all
from replay.requests import load_requests, memory_map
from replay.residency import Thp, check_residency, load_residency
from replay.results import Results
from replay.results_file import ResultsFile
from replay.reuse import handed_back
from replay.rounds import Work, chosen_cpu, resting_cpu, run_all, sibling_cpus
from replay.stability import read_cpu_time
from tracer.trace.errors import AerostatError, CaptureIncompleteError
from tracer.trace.missing import missing_events, require_requests
from tracer.trace.progress import Progress, silent
from tracer.trace.reader import open_trace

if TYPE_CHECKING:
    from tracer.trace.reader import Trace

DEFAULT_STRATEGIES = ("qemu", "adjacent", "request", "range", "oracle")
DEFAULT_RUNS = 6
"""The fewest whose medians have an interval of 95 %."""
MAX_RUNS = 10_000
MAX_SEED = 1 << 63


@dataclass(frozen=True)
class ReplayOptions:
    """What to replay and how.

    Args:
        trace: The bundle.
        strategies: Names that `replay.strategies.load_strategy` knows, or `all`; nop is always
            added.
        against: One of them, or one more, that all are set beside; wants 6 runs or more.
        runs: Measured runs of each strategy; a comparison needs at least 4.
        warmup: Runs of each before those; kept in the results, never counted.
        watched_runs: Runs of each after those, in which every call is timed and memory sampled:
            they show the worst pause, and count in no total.
        seed: Of the order of runs and of the stamps in memory, below 2**63.
        backing: What guest memory is mapped from, a name in `BACKINGS`; None: as in the trace.
        thp: Where anonymous memory is in transparent huge pages; None is `madvise`, and no other
            memory takes another.
        siblings: Threads that read the memory on other CPUs while stage d runs, as vCPUs do.
        cpu: CPU of the executing thread: a number, `auto` for the last that this process may use,
            which takes fewer interrupts than the first; None leaves it to the scheduler.
        residency: Which pages have memory at first: `trace`, `touched`, `untouched`, `1/N` or
            `huge` (`replay.residency.RESIDENCY`).
        predict: Calibrate before the first run, and foretell stage d of each strategy.
        memory_limit_bytes: Most memory a run may take; never more than the machine has left.
        timeout_ns: Longest time one run may take.
        allow_loss: Replay a trace that is known to miss events.
        output: File to write the results to; None writes none.
        force: Replace that file.
    """

    trace: Path
    strategies: tuple[str, ...] = DEFAULT_STRATEGIES
    against: str | None = None
    runs: int = DEFAULT_RUNS
    warmup: int = 1
    watched_runs: int = 1
    seed: int = 1
    backing: str | None = None
    thp: Thp | None = None
    siblings: int = 0
    cpu: int | Literal["auto"] | None = "auto"
    residency: str = "trace"
    predict: bool = False
    memory_limit_bytes: int | None = None
    timeout_ns: int = 600_000_000_000
    allow_loss: bool = False
    output: Path | None = None
    force: bool = False

    @property
    def chosen_thp(self) -> Thp:
        """Where memory is in transparent huge pages, if it can be."""
        return "madvise" if self.thp is None else self.thp


def replay_trace(options: ReplayOptions, progress: Progress = silent) -> Results:
    """Replay a trace under several strategies on mapped memory and measure each.

    Every run is a fresh process. Runs of all strategies are interleaved in a seeded random order,
    so a drift of the machine falls on all of them alike.

    Args:
        options: What and how.
        progress: Told of phases `plan`, `calibrate` and `replay`.

    Raises:
        UnsavedError: All is done, and the results could not be written; it holds them.
        AerostatError: The trace, a strategy or the machine does not allow it; a worker died; or
            memory was not as it must be afterwards.
    """
    check_options(options)
    if options.output is None:
        return _replay(options, progress)
    with ResultsFile(options.output, force=options.force) as file:
        results = _replay(options, progress)
        file.save(results)
    return results


def _replay(options: ReplayOptions, progress: Progress) -> Results:
    trace = open_trace(options.trace)
    require_requests(trace)
    refuse_loss(trace, allow_loss=options.allow_loss)
    context = context_of(memory_map(trace), options.backing)
    require_account(context.layout, options.memory_limit_bytes)
    _refuse_vain_thp(options, context.backing)
    check_residency(options.residency, context.backing, options.chosen_thp)
    requests = load_requests(trace)
    residency = load_residency(trace, context.layout, options.residency, options.chosen_thp)
    names = options.strategies + (() if options.against is None else (options.against,))
    planned, refused = plan_all(names, requests, context, progress)
    limit_bytes = options.memory_limit_bytes
    fitted = fit_to_machine(requests, residency, context, planned, limit_bytes)
    if fitted.reason:
        planned.clear()  # before there are others
        planned, refused = plan_all(names, fitted.requests, context, progress)
    environment, cpu_time = fingerprint(), read_cpu_time()
    touched = handed_back(fitted.requests, context.layout, fitted.residency)
    work = Work(planned, context, fitted.residency, touched)
    foretold = _foretell(options, work, progress)
    done, watched = run_all(options, work, progress)
    return assemble(
        Replay(
            options,
            trace,
            requests,
            fitted,
            context,
            tuple(planned),
            tuple(refused),
            done,
            watched,
            touched.total_pages,
            environment,
            cpu_time.stolen_share(read_cpu_time()),
            foretold,
        )
    )


def _foretell(options: ReplayOptions, work: Work, progress: Progress) -> Foretold:
    plans = [planned.plan for planned in work.planned]
    if not options.predict:
        return Foretold(tuple(None for _ in plans), (), notes=tuple("" for _ in plans))
    cpu = chosen_cpu(options)
    session = Session(
        options.chosen_thp,
        cpu,
        sibling_cpus(cpu, options.siblings),
        options.seed,
        resting_cpu(cpu, options.siblings),
    )
    return foretell(plans, work.context, work.residency, session, progress)


def _refuse_vain_thp(options: ReplayOptions, backing: str) -> None:
    if options.thp is not None and backing != "anon":
        raise AerostatError(
            f"--thp {options.thp} has no effect on {backing} memory",
            reason="transparent huge pages are asked for in anonymous memory alone",
            remedy="leave --thp out, or --backing anon",
        )


def check_options(options: ReplayOptions) -> None:
    """Refuse before any work what could only fail after it."""
    others = (options.warmup, options.watched_runs)
    if not 1 <= options.runs <= MAX_RUNS or not all(0 <= count <= MAX_RUNS for count in others):
        raise AerostatError(
            f"cannot replay {options.runs} times after {options.warmup} warm-up runs"
            f" and before {options.watched_runs} watched ones",
            remedy=f"choose 1 to {MAX_RUNS} runs and 0 to {MAX_RUNS} of the others",
        )
    if options.against is not None and options.runs < MIN_PAIRS:
        raise AerostatError(
            f"nothing can be set against {options.against!r} with {options.runs} runs",
            reason=f"fewer than {MIN_PAIRS} pairs of runs have no interval of 95 %",
            remedy=f"choose {MIN_PAIRS} runs or more",
        )
    if options.backing is not None and options.backing not in BACKINGS:
        raise AerostatError(
            f"memory of backing {options.backing!r} cannot be replayed",
            remedy=f"choose one of {', '.join(BACKINGS)}",
        )
    if not 0 <= options.seed < MAX_SEED:
        raise AerostatError(
            f"cannot replay with the seed {options.seed}",
            reason="results hold no number below 0 or of more than 63 bits",
            remedy="choose another --seed",
        )
    if not 0 <= options.siblings <= 1024:
        raise AerostatError(f"cannot run {options.siblings} sibling threads")
    allowed = os.sched_getaffinity(0)
    if options.cpu not in (None, "auto", *allowed):
        raise AerostatError(
            f"cannot run on CPU {options.cpu}",
            reason=f"this process may use {sorted(allowed)}",
            remedy="name one of these with --cpu",
        )


def refuse_loss(trace: Trace, *, allow_loss: bool) -> None:
    """Raise CaptureIncompleteError for a trace that misses events, unless that is allowed."""
    if allow_loss:
        return
    missing = missing_events(trace)
    if missing is not None:
        raise CaptureIncompleteError(
            f"{trace.path} is not whole, so its replay would be of something else",
            reason=f"it {missing}",
            remedy="record again, or --allow-loss to replay what there is",
        )
