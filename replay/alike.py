"""A recording of the traced VMM's own strategy, replayed, beside the recording of the VMM."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from replay.causes import ProbedQueue, ProbedTrace, QueueFidelity, TraceFidelity
from replay.lifelike import PacedJob
from replay.probed import Attach, lost_cpu_ns, recorded_ways, run_recorded
from replay.recorded import Calls
from replay.summary import spread_of
from replay.written import Case, Flags, alike_calls
from tracer.trace.schema import Queue

TIMEOUT_NS = 600_000_000_000
DEFAULT_DETAIL = "discards"
"""Of a trace that does not say: what `aerostat record` takes where it is not told."""


def record_alike(
    case: Case, found: TraceFidelity, written: Flags, jobs: Iterable[PacedJob], attach: Attach
) -> TraceFidelity:
    """Add a replay that is recorded by the trace's kinds of probes, in its detail.

    Args:
        case: The trace.
        found: Its fidelity so far.
        written: `written_operations`.
        jobs: The runs.
        attach: Attaches probes; they are detached before this returns.

    Raises:
        CaptureIncompleteError: A call of a run was lost.
        AerostatError: The probes do not attach, or a run failed.
    """
    host = case.trace.manifest.sides.get("host")
    detail = (host.detail if host is not None else None) or DEFAULT_DETAIL
    with attach(recorded_ways(case.trace), detail) as recorder:
        runs = [run_recorded(job, recorder, TIMEOUT_NS) for job in jobs]
    queues = tuple(_with_probed(case, queue, written, runs) for queue in found.queues)
    ratios = probed_ratios(queues)
    probed = ProbedTrace(
        detail=detail,
        probes=recorder.probes,
        probe_ns=recorder.probe_ns,
        same_boot=None if host is None or host.boot_id is None else host.boot_id == boot_id(),
        ratio=spread_of(ratios) if ratios else None,
    )
    return replace(found, queues=queues, probed=probed)


def boot_id() -> str | None:
    """What no other machine has, nor this one after its next start; None where it is not told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _with_probed(
    case: Case, queue: QueueFidelity, written: Flags, runs: Sequence[Calls]
) -> QueueFidelity:
    number = Queue[queue.queue.upper()]
    of_queue, alike = case.queue == number, alike_calls(case, number, written)
    recorded_ns = tuple(round(float(run.mean_ns[of_queue].sum())) for run in runs)
    lost_ns = tuple(round(ns) for ns in lost_cpu_ns(runs, of_queue, alike))
    own_ns = median(_own_ns(recorded_ns, lost_ns))
    counted_ns = round(own_ns) + queue.interrupts_ns + queue.lost_cpu_ns
    ratio = counted_ns / queue.recorded_ns if queue.recorded_ns else 0.0
    return replace(queue, probed=ProbedQueue(recorded_ns, lost_ns, counted_ns, ratio))


def _own_ns(recorded_ns: Sequence[int], lost_ns: Sequence[int]) -> list[int]:
    return [ran - lost for ran, lost in zip(recorded_ns, lost_ns, strict=True)]


def probed_ratios(queues: Sequence[QueueFidelity]) -> list[float]:
    """Every recorded run's sum over the queues, over the trace's; none where that is no time."""
    recorded_ns = sum(queue.recorded_ns for queue in queues)
    beside_ns = sum(queue.interrupts_ns + queue.lost_cpu_ns for queue in queues)
    each_ns = [
        _own_ns(queue.probed.recorded_ns, queue.probed.lost_cpu_ns)
        for queue in queues
        if queue.probed is not None
    ]
    runs = zip(*each_ns, strict=True) if recorded_ns else ()
    return [(sum(run) + beside_ns) / recorded_ns for run in runs]
