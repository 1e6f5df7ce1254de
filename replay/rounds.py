"""All runs of a replay: in rounds, each strategy once a round, in seeded random order."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from replay.job import Done, Job
from replay.memory import operations_of
from replay.plan import Context
from replay.prepare import Planned
from replay.ranges import Runs
from replay.residency import Residency
from replay.watched import WatchedRun
from replay.worker import process_context, run_in_fresh_process
from tracer.trace.progress import Progress
from tracer.trace.schema import PFN_SHIFT

if TYPE_CHECKING:
    from replay.schedule import ReplayOptions


@dataclass(frozen=True, eq=False)
class Work:
    """What every run of a replay is made from. `touched` are touched again after stage d."""

    planned: list[Planned]
    context: Context
    residency: Residency
    touched: Runs


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


def run_all(
    options: ReplayOptions, work: Work, progress: Progress
) -> tuple[list[list[Done]], list[list[WatchedRun]]]:
    """All runs, by strategy; warm-up runs first in each list. Then the watched ones, after all."""
    jobs = [_job(options, each, work) for each in work.planned]
    processes = process_context()
    counted = options.warmup + options.runs
    order = run_order(len(jobs), counted + options.watched_runs, options.seed)
    # There is nothing to watch where nothing is called.
    order = [
        (turn, index) for turn, index in order if turn < counted or len(jobs[index].operations)
    ]
    done: list[list[Done]] = [[] for _ in jobs]
    watched: list[list[WatchedRun]] = [[] for _ in jobs]
    for number, (turn, index) in enumerate(order):
        progress("replay", number, len(order))
        title = f"run {turn + 1} of {jobs[index].title} on {options.trace.name}"
        job = replace(
            jobs[index],
            title=title,
            order=number,
            seed=options.seed + number,
            watched=turn >= counted,
        )
        found = run_in_fresh_process(processes, job, options.timeout_ns)
        if isinstance(found, WatchedRun):
            watched[index].append(found)
        else:
            done[index].append(found)
    progress("replay", len(order), len(order))
    return done, watched


def _job(options: ReplayOptions, planned: Planned, work: Work) -> Job:
    """What all runs of a strategy share."""
    layout = work.context.layout
    regions = tuple(
        (int(start) << PFN_SHIFT, int(end - start) << PFN_SHIFT, int(page) << PFN_SHIFT)
        for start, end, page in zip(layout.start_pfn, layout.end_pfn, layout.base_page, strict=True)
    )
    cpu = chosen_cpu(options)
    return Job(
        title=planned.plan.name,
        order=0,
        seed=options.seed,
        size_bytes=layout.memory_bytes,
        backing=work.context.backing,
        thp=options.chosen_thp,
        residency=work.residency,
        operations=operations_of(planned.plan),
        sending=planned.sending,
        merging=planned.merging,
        regions=regions,
        cpu=cpu,
        send_cpus=_send_cpus(cpu),
        crew_cpus=_crew_cpus(cpu, planned.plan.threads),
        sibling_cpus=sibling_cpus(cpu, options.siblings),
        resting_cpu=resting_cpu(cpu, options.siblings),
        touched=work.touched,
        watched=False,
    )


def chosen_cpu(options: ReplayOptions) -> int | None:
    """CPU of the executing thread; None where the scheduler is to choose."""
    return max(os.sched_getaffinity(0)) if options.cpu == "auto" else options.cpu


def _send_cpus(own: int | None) -> tuple[int, int] | None:
    """A CPU each for driver and device, the device on the executing thread's; None without two."""
    others = os.sched_getaffinity(0) - {own}
    return None if own is None or not others else (max(others), own)


def _crew_cpus(own: int | None, threads: int) -> tuple[int, ...]:
    """CPUs of a plan's threads, the executing thread's own first; none where it runs free."""
    if own is None:
        return ()
    allowed = sorted(os.sched_getaffinity(0), key=lambda cpu: (cpu != own, cpu))
    return tuple(allowed[i % len(allowed)] for i in range(threads))


def sibling_cpus(own: int | None, siblings: int) -> tuple[int, ...]:
    """CPUs in turn, the executing thread's own last."""
    allowed = sorted(os.sched_getaffinity(0), key=lambda cpu: (cpu == own, -cpu))
    return tuple(allowed[i % len(allowed)] for i in range(siblings))


def resting_cpu(own: int | None, siblings: int) -> int | None:
    """CPU of a thread that sleeps where no sibling runs; None without a second CPU or an own one.

    A VMM has threads, and has been on their CPUs; a discard costs a sixth more for that alone.
    """
    others = os.sched_getaffinity(0) - {own}
    return None if own is None or siblings or not others else max(others)
