"""Draws how near replays come to their traces, cause by cause."""

from collections.abc import Sequence
from statistics import median

from aerostat import render
from replay.causes import QueueFidelity, TraceFidelity
from replay.lifelike import STEPS


def draw_fidelity(traces: Sequence[TraceFidelity]) -> None:
    """Draw one row per trace, and one per trace and queue with what each cause adds a call."""
    columns = ["<trace", "recorded calls", "replayed", "recorded time", "plain", "counted"]
    columns += ["unexplained", "<not compared"]
    rows = [_trace_row(trace) for trace in traces]
    render.draw("fidelity: replayed over recorded discard time", columns, rows)
    names = ("recorded", *(step.name for step in STEPS[:-1]))
    causes = ("+ interrupts", "+ calls", "+ lost CPU", "= counted", "unexplained")
    head = ("<trace", "<queue", "calls", *names, *causes, "interrupted", "had memory")
    render.draw("ns a call: each step adds to the last", head, _queue_rows(traces))
    for step in STEPS:
        render.say_note(f"{step.name}:", f"{step.adds}.")
    for text in _notes(traces):
        render.say_note("Note:", text)
    render.say()


def _trace_row(trace: TraceFidelity) -> tuple[str, ...]:
    recorded_ns = sum(queue.recorded_ns for queue in trace.queues)
    unexplained_ns = sum(queue.unexplained_ns for queue in trace.queues)
    return (
        trace.name,
        render.count(trace.recorded_operations),
        render.count(trace.planned_operations),
        render.ns(recorded_ns) if trace.queues else render.NOT_OBSERVED,
        render.cell(trace.ratio_plain, _ratio),
        render.cell(trace.ratio_counted, _ratio),
        render.percent(100 * unexplained_ns / recorded_ns) if recorded_ns else render.NOT_OBSERVED,
        trace.note,
    )


def _ratio(value: float) -> str:
    return f"{value:.3f}"


def _queue_rows(traces: Sequence[TraceFidelity]) -> list[tuple[str, ...]]:
    return [_queue_row(trace, queue) for trace in traces for queue in trace.queues]


def _queue_row(trace: TraceFidelity, queue: QueueFidelity) -> tuple[str, ...]:
    def each(total_ns: float | None) -> str:
        return render.cell(total_ns, lambda value: f"{value / queue.operations:,.0f}")

    steps_ns = [median(queue.steps_ns[step.name]) for step in STEPS[:-1]]
    share = queue.heights.interrupted_share if queue.heights is not None else None
    written = queue.written_share
    return (
        trace.name,
        queue.queue,
        render.count(queue.operations),
        each(queue.recorded_ns),
        *(each(step_ns) for step_ns in steps_ns),
        each(queue.interrupts_ns),
        each(queue.calls_ns),
        each(queue.lost_cpu_ns),
        each(queue.counted_ns),
        each(queue.unexplained_ns),
        render.percent(None if share is None else 100 * share),
        render.percent(None if written is None else 100 * written),
    )


def _notes(traces: Sequence[TraceFidelity]) -> list[str]:
    emulated = [trace.name for trace in traces if trace.accelerator == "tcg"]
    notes = [
        f"{trace.name} {trace.missing}: what was replayed is not all that happened."
        for trace in traces
        if trace.missing is not None
    ]
    if emulated:
        notes.append(
            f"mmu notifiers: not observed; {', '.join(emulated)} of an emulated guest (TCG), which"
            " has no nested page tables to invalidate."
        )
    if others := [trace.name for trace in traces if trace.accelerator != "tcg" and trace.queues]:
        notes.append(
            f"mmu notifiers: not observed, but part of what is unexplained in {', '.join(others)}:"
            " plain memory has no nested page tables."
        )
    return notes
