"""Draws how near replays come to their traces, cause by cause."""

from collections.abc import Sequence
from statistics import median

from aerostat import render
from replay.causes import ProbedQueue, ProbedTrace, QueueFidelity, TraceFidelity
from replay.lifelike import STEPS
from replay.summary import Spread


def draw_fidelity(traces: Sequence[TraceFidelity]) -> None:
    """Draw one row per trace, and one per trace and queue with what each cause adds a call."""
    columns = ["<trace", "recorded calls", "replayed", "recorded time", "plain", "counted"]
    columns += ["unexplained", "recorded alike", "<not compared"]
    rows = [_trace_row(trace) for trace in traces]
    render.draw("fidelity: replayed over recorded discard time", columns, rows)
    names = ("recorded", *(step.name for step in STEPS[:-1]))
    causes = ("+ interrupts", "+ calls", "+ lost CPU", "= counted", "unexplained")
    head = ("<trace", "<queue", "calls", *names, *causes, "interrupted", "had memory")
    render.draw("ns a call: each step adds to the last", head, _queue_rows(traces))
    for step in STEPS:
        render.say_note(f"{step.name}:", f"{step.adds}.")
    probed = [trace for trace in traces if trace.probed is not None]
    if probed:
        _draw_probed(probed)
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
        _spread(trace.probed.ratio) if trace.probed is not None else "",
        trace.note,
    )


def _ratio(value: float) -> str:
    return f"{value:.3f}"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return render.NOT_OBSERVED
    if spread.low is None or spread.high is None:
        return _ratio(spread.median)
    return f"{_ratio(spread.median)} [{_ratio(spread.low)}, {_ratio(spread.high)}]"


def _draw_probed(traces: Sequence[TraceFidelity]) -> None:
    """Draw what a replay comes to that was recorded with probes, and say with which."""
    columns = ("<trace", "<queue", "recorded", "replay, recorded", "less its lost CPU")
    causes = ("+ interrupts", "+ lost CPU", "= counted", "over recorded")
    rows = [
        _probed_row(trace.name, queue, queue.probed)
        for trace in traces
        for queue in trace.queues
        if queue.probed is not None
    ]
    render.say()
    render.draw("recorded alike, ns a call: `cold`, by the recorder", (*columns, *causes), rows)
    for trace in traces:
        assert trace.probed is not None
        render.say_note("Recorded:", f"{trace.name}, {_how(trace.probed)}.")


def _probed_row(name: str, queue: QueueFidelity, probed: ProbedQueue) -> tuple[str, ...]:
    def each(total_ns: float) -> str:
        return f"{total_ns / queue.operations:,.0f}"

    return (
        name,
        queue.queue,
        each(queue.recorded_ns),
        each(median(probed.recorded_ns)),
        each(-median(probed.lost_cpu_ns)),
        each(queue.interrupts_ns),
        each(queue.lost_cpu_ns),
        each(probed.counted_ns),
        _ratio(probed.ratio),
    )


def _how(probed: ProbedTrace) -> str:
    """Detail and kinds of probes, those that differ from the trace's with the reason."""
    merged = "every call by itself" if probed.detail == "calls" else "adjacent calls merged"
    same = [each for each in probed.probes if each.recorded_way == each.way]
    parts = [f"by {way} as it was then" for way in sorted({each.way for each in same})]
    for each in probed.probes:
        if each.recorded_way is None:
            parts.append(f"{each.point} by {each.way}; by what then is not told")
        elif each.recorded_way != each.way:
            why = f" ({each.reason})" if each.reason else ""
            parts.append(f"{each.point} by {each.way}, then by {each.recorded_way}{why}")
    return f"{merged}, {'; '.join(parts)}"


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
    notes += [
        f"{trace.name} was not recorded on this machine since it was started: what that of then"
        " took more is in no figure of what is recorded alike."
        for trace in traces
        if trace.probed is not None and not trace.probed.same_boot
    ]
    if any(trace.queues and trace.probed is None for trace in traces):
        notes.append(
            "calls: what probes add is taken from the trace's cheapest calls, which is too little"
            " for the others; --probed records the replay as well, and needs root and BCC."
        )
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
