"""How near a replay comes to what was recorded, cause by cause: the fidelity table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from replay.alike import TIMEOUT_NS, record_alike
from replay.budget import named_pages
from replay.causes import QueueFidelity, TraceFidelity
from replay.fidelity import TRACED_STRATEGY, captured_discards
from replay.lifelike import COLD, STEPS, Paced, PacedJob, Step, run_paced, two_cpus
from replay.memory import operations_of
from replay.plan import Context, context_of
from replay.prepare import fit_to_machine, plan_all
from replay.probed import Attach
from replay.ranges import merge_sorted, subtract
from replay.recorded import calls_of, heights
from replay.requests import Requests, load_requests, memory_map
from replay.residency import Residency, load_residency
from replay.rounds import run_order
from replay.schedule import refuse_loss
from replay.worker import call_in_fresh_process, process_context
from replay.written import Case, alike_calls, written_operations
from tracer.trace.errors import AerostatError
from tracer.trace.missing import missing_events, require_requests
from tracer.trace.progress import Progress, silent
from tracer.trace.reader import open_trace
from tracer.trace.schema import Queue

if TYPE_CHECKING:
    from tracer.trace.reader import Trace

Flags = npt.NDArray[np.bool_]
LEAST_INTERRUPTS = 50
"""Of fewer no price can be told."""


@dataclass(frozen=True)
class _Turns:
    """Runs of each step that count, and the seed of their order."""

    runs: int
    seed: int


def measure_fidelity(  # noqa: PLR0913  how it is run, and three that not every caller has
    path: Path,
    runs: int = 3,
    seed: int = 1,
    progress: Progress = silent,
    *,
    allow_loss: bool = False,
    attach: Attach | None = None,
) -> TraceFidelity:
    """Replay the traced VMM's own strategy step by step nearer to the live VM.

    Args:
        path: The bundle.
        runs: Runs of each step, each in a fresh process.
        seed: Of the order of runs.
        progress: Told of phases `calibrate`, `replay` and `record`.
        allow_loss: Take a trace that is known to miss events.
        attach: Also record as many runs with the probes that this attaches. They come last and
            apart, since probes make system calls of every process dearer, those of other runs too.

    Raises:
        CaptureIncompleteError: The trace misses events, and that is not allowed; or a recording of
            the replay does.
        AerostatError: The trace or the machine does not allow it.
    """
    case = prepare_case(path, allow_loss=allow_loss)
    if case.note:
        return _describe(case, (), case.note)
    cpu, guest_cpu = two_cpus()
    progress("calibrate", 0, 1)
    written = written_operations(case, cpu)
    turns = _Turns(runs, seed)
    done = _run_steps(case, written, (cpu, guest_cpu), turns, progress)
    per_interrupt_ns = interrupt_ns(done["cold"], done["running"], int(case.frees.sum()))
    queues = tuple(
        _judge_queue(case, Queue(q), written, done, per_interrupt_ns)
        for q in np.unique(case.queue).tolist()
    )
    found = replace(_describe(case, _with_calls(queues), ""), interrupt_ns=per_interrupt_ns)
    if attach is None:
        return found
    jobs = _jobs_to_record(case, written, (cpu, guest_cpu), turns, progress)
    return record_alike(case, found, written, jobs, attach)


def prepare_case(path: Path, *, allow_loss: bool = False) -> Case:
    """Make a trace ready to be run as its VMM did; `note` says why it cannot be.

    Args:
        path: The bundle.
        allow_loss: Take a trace that is known to miss events.

    Raises:
        CaptureIncompleteError: The trace misses events, and that is not allowed.
        AerostatError: It is no trace, or one without requests.
    """
    trace = open_trace(path)
    require_requests(trace)
    refuse_loss(trace, allow_loss=allow_loss)
    context = context_of(memory_map(trace))
    requests = load_requests(trace)
    planned, _ = plan_all((TRACED_STRATEGY,), requests, context, silent)
    plan = planned[-1].plan
    residency = load_residency(trace, context.layout, "trace", "madvise")
    fitted = fit_to_machine(requests, _filled(requests, context, residency), context, planned, None)
    calls = calls_of(trace, plan)
    note = "this machine has not the memory to replay all of the trace" if fitted.reason else ""
    if calls is None:
        note = note or "the trace does not hold the calls of this strategy, one by one"
    return Case(trace, requests, context, plan, residency, calls, note)


def _filled(requests: Requests, context: Context, residency: Residency) -> Residency:
    """What may be resident at one time, if every page was written: for the memory it takes."""
    named = named_pages(requests, context.layout)
    more = subtract(named, merge_sorted(residency.small, residency.huge))
    return Residency(merge_sorted(residency.small, more), residency.huge, residency.source)


def _run_steps(
    case: Case, written: Flags, cpus: tuple[int, int], turns: _Turns, progress: Progress
) -> dict[str, list[Paced]]:
    """Runs of every step, interleaved in seeded order."""
    processes = process_context()
    done: dict[str, list[Paced]] = {step.name: [] for step in STEPS}
    order = run_order(len(STEPS), turns.runs, turns.seed)
    for number, (_, index) in enumerate(order):
        progress("replay", number, len(order))
        job = paced_job(case, written, STEPS[index], cpus, turns.seed + number)
        answer = call_in_fresh_process(processes, run_paced, job, TIMEOUT_NS)
        if answer.failures:
            raise AerostatError(f"{answer.failures} calls failed in {job.title}")
        done[STEPS[index].name].append(answer)
    progress("replay", len(order), len(order))
    return done


def _jobs_to_record(
    case: Case, written: Flags, cpus: tuple[int, int], turns: _Turns, progress: Progress
) -> Iterator[PacedJob]:
    """Runs of the step that has every cause but interrupts, each made when the last has ended."""
    first_seed = turns.seed + len(STEPS) * turns.runs
    for number in range(turns.runs):
        progress("record", number, turns.runs)
        yield paced_job(case, written, COLD, cpus, first_seed + number)
    progress("record", turns.runs, turns.runs)


def paced_job(case: Case, written: Flags, step: Step, cpus: tuple[int, int], seed: int) -> PacedJob:
    """One run of one step.

    Args:
        case: The trace.
        written: `written_operations`.
        step: What the run has of a live VM.
        cpus: Those of the device and of the guest.
        seed: Of what memory is stamped with.
    """
    return PacedJob(
        title=f"step {step.name} of {case.trace.path.name}",
        seed=seed,
        size_bytes=case.context.layout.memory_bytes,
        backing=case.context.backing,
        thp="madvise",
        residency=case.residency,
        operations=operations_of(case.plan),
        queue=case.queue,
        written=written.astype(np.uint8),
        step=step,
        cpu=cpus[0],
        guest_cpu=cpus[1],
    )


def interrupt_ns(still: Sequence[Paced], running: Sequence[Paced], discards: int) -> float:
    """What one flush interrupt adds to the call that causes it.

    Args:
        still: Runs in which the guest slept.
        running: Runs in which its CPU was busy. On a machine with other work it was not always,
            so the interrupts that it took are counted; where the kernel does not count them, every
            discard is taken to have made one.
        discards: Calls that may cause one.
    """
    more_ns = median(sum(run.discard_ns.values()) for run in running)
    more_ns -= median(sum(run.discard_ns.values()) for run in still)
    seen = [run.interrupts for run in running if run.interrupts is not None]
    base = [run.interrupts for run in still if run.interrupts is not None]
    count = median(seen) - median(base) if seen and base else discards
    return max(more_ns, 0.0) / count if count >= LEAST_INTERRUPTS else 0.0


def _judge_queue(
    case: Case,
    queue: Queue,
    written: Flags,
    done: dict[str, list[Paced]],
    per_interrupt_ns: float,
) -> QueueFidelity:
    assert case.calls is not None
    of_queue = case.queue == queue
    recorded_ns = float(case.calls.mean_ns[of_queue].sum())
    steps_ns = {
        name: tuple(run.discard_ns[int(queue)] for run in runs) for name, runs in done.items()
    }
    discards = of_queue & case.frees
    plain_ns, still_ns = (median(steps_ns[name]) for name in ("attach", "cold"))
    alike = alike_calls(case, queue, written)
    found = heights(case.calls, alike, per_interrupt_ns if discards.any() else 0.0)
    share = found.interrupted_share if found is not None and discards.any() else 0.0
    interrupts_ns = share * discards.sum() * per_interrupt_ns
    lost_ns = found.lost_cpu_ns if found is not None else 0.0
    counted_ns = still_ns + interrupts_ns + lost_ns
    return QueueFidelity(
        queue=queue.name.lower(),
        operations=int(of_queue.sum()),
        recorded_ns=round(recorded_ns),
        written_share=float(written[discards].mean()) if discards.any() else None,
        heights=found,
        steps_ns=steps_ns,
        interrupts_ns=round(interrupts_ns),
        calls_ns=None,
        lost_cpu_ns=round(lost_ns),
        counted_ns=round(counted_ns),
        ratio_plain=plain_ns / recorded_ns if recorded_ns else 0.0,
        ratio_counted=counted_ns / recorded_ns if recorded_ns else 0.0,
        probed=None,
    )


def _with_calls(queues: Sequence[QueueFidelity]) -> tuple[QueueFidelity, ...]:
    """Add what every call takes more in the trace, by the calls that are nothing but calls."""
    advice = [each for each in queues if each.written_share is None and each.heights is not None]
    if not advice:
        return tuple(queues)
    cheapest = max(advice, key=lambda each: each.operations)
    assert cheapest.heights is not None
    here_ns = median(cheapest.steps_ns["cold"]) / cheapest.operations
    more_ns = max(cheapest.heights.low_ns - here_ns, 0.0)
    return tuple(_with_surplus(each, round(more_ns * each.operations)) for each in queues)


def _with_surplus(queue: QueueFidelity, calls_ns: int) -> QueueFidelity:
    counted_ns = queue.counted_ns + calls_ns
    ratio = counted_ns / queue.recorded_ns if queue.recorded_ns else 0.0
    return replace(queue, calls_ns=calls_ns, counted_ns=counted_ns, ratio_counted=ratio)


def _describe(
    case: Case,
    queues: tuple[QueueFidelity, ...],
    note: str,
) -> TraceFidelity:
    operations, _ = captured_discards(case.trace)
    manifest = case.trace.manifest
    recorded_ns = sum(queue.recorded_ns for queue in queues)
    plain_ns = sum(median(queue.steps_ns["attach"]) for queue in queues)
    counted_ns = sum(queue.counted_ns for queue in queues)
    return TraceFidelity(
        name=case.trace.path.name,
        accelerator=manifest.vm.accel if manifest.vm is not None else None,
        recorded_operations=operations,
        planned_operations=len(case.plan),
        exact=None if operations is None else operations == len(case.plan),
        probe_ns=_probe_ns(case.trace),
        interrupt_ns=None,
        queues=queues,
        ratio_plain=plain_ns / recorded_ns if recorded_ns else None,
        ratio_counted=counted_ns / recorded_ns if recorded_ns else None,
        probed=None,
        note=note,
        missing=missing_events(case.trace),
    )


def _probe_ns(trace: Trace) -> float | None:
    """What the two probes of a madvise cost, as measured at attach; None where they were not."""
    host = trace.manifest.sides.get("host")
    costs = [p.cost_ns for p in host.probes if p.point.startswith("madvise-")] if host else []
    measured = [cost for cost in costs if cost is not None]
    return sum(measured) if len(measured) == 2 else None
