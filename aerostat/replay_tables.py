"""Draws what a replay measured: times by stage, the work they paid for, and the fidelity."""

from __future__ import annotations

from statistics import median

from aerostat import render
from aerostat.effect_tables import draw_effects, in_words
from aerostat.send_tables import draw_sending, siblings_in_words
from replay.fidelity import TRACED_STRATEGY
from replay.results import Fidelity, Results, StrategyResult
from replay.stats import widest_coverage
from replay.summary import Beside, Spread, Summary

REFERENCE = "qemu"
"""Strategies are set beside this one where it was replayed: it is what most VMMs do today."""


TIMES = 11
"""Columns of the table of times."""


def draw_results(results: Results) -> None:
    """Draw medians with their intervals, the work, pauses and memory; then what to know of them."""
    _say_head(results)
    _draw_times(results)
    _draw_work(results)
    draw_effects(results)
    for refused in results.refused:
        render.say(f"Refused, not timed: {refused.name}: {refused.reason}.")
    if blurred := overlapping(results):
        names = ", ".join(blurred)
        render.say(f"Not told apart from {REFERENCE} by b+c+d, because runs overlap: {names}.")
    render.say(fidelity_line(results.fidelity))
    draw_sending(results)
    for warning in results.warnings:
        render.say(f"Warning: {warning}")
    render.say()


def _say_head(results: Results) -> None:
    trace, settings = results.trace, results.settings
    render.say(
        f"{trace.name}: {trace.requests:,} requests, {trace.pages:,} pages,"
        f" {render.size(trace.memory_bytes)} of guest memory"
    )
    siblings = siblings_in_words(settings.siblings, settings.resting_threads)
    cpu = "on any CPU" if settings.cpu is None else f"on CPU {settings.cpu}"
    thp = f" (THP {settings.thp})" if settings.backing == "anon" else ""
    render.say(
        f"Replayed {settings.requests_replayed:,} requests on {settings.backing} memory{thp},"
        f" {siblings}, {cpu}, seed {settings.seed}, residency: {settings.residency},"
        f" {render.size(settings.resident_bytes)} resident"
    )
    render.say_rejected(trace.rejected)
    if settings.cut_reason:
        is_whole = settings.requests_replayed == trace.requests
        part = "all of its memory" if is_whole else "the whole trace"
        render.say(f"Not {part}: {settings.cut_reason}")


def overlapping(results: Results) -> list[str]:
    """Name the strategies whose slowest and fastest runs reach into the reference's.

    Args:
        results: Of a replay; times are stages b, c and d together.
    """
    spans = {
        strategy.name: (min(totals), max(totals))
        for strategy in results.strategies
        if (totals := [run.total_ns for run in strategy.runs])
    }
    if REFERENCE not in spans:
        return []
    low, high = spans.pop(REFERENCE)
    return [name for name, (first, last) in spans.items() if first <= high and last >= low]


def _draw_times(results: Results) -> None:
    columns = ["<strategy", "b send", "merge", "c translate", "d discard", "d predicted", "b+c+d"]
    columns += [f"x {REFERENCE}", "x oracle", "over nop", "harness in d"]
    rows = [_times(strategy) for strategy in results.strategies]
    rows += [_refused_row(refused.name, len(columns)) for refused in results.refused]
    spare = ("harness in d", "over nop", "x oracle", "merge", "c translate", "b send")
    settings = results.settings
    title = "times: 1 run, no interval"
    if settings.runs > 1:
        title = f"times: {render.medians_of(settings.runs)} with their"
        title += f" {interval_percent(settings.runs)} % intervals in percent"
    title += f", {siblings_in_words(settings.siblings)}"
    render.draw(title, columns, rows, spare=spare)
    if line := prediction_line(results):
        render.say(line)
    names = {strategy.name for strategy in results.strategies}
    if "oracle" not in names:
        render.say("How far from the bound: not observed; replay the oracle as well (-s oracle).")


def interval_percent(runs: int) -> int:
    """What an interval of so many runs covers: 95 %, or what the widest does where that is less."""
    return int(100 * min(0.95, widest_coverage(runs)))


def _times(strategy: StrategyResult) -> list[str]:
    summary = strategy.summary
    if summary is None:
        return [in_words(strategy.name), *([render.NOT_OBSERVED] * (TIMES - 1))]
    stages = (summary.send_ns, summary.merge_ns, summary.translate_ns, summary.discard_ns)
    over_nop = _beside(summary, "nop")
    return [
        in_words(strategy.name),
        *map(spread, stages),
        _predicted(strategy, summary),
        spread(summary.total_ns),
        _ratio(_beside(summary, REFERENCE), strategy.name == REFERENCE),
        _ratio(_beside(summary, "oracle"), strategy.name == "oracle"),
        render.NOT_OBSERVED if over_nop is None else render.ns(over_nop.excess_ns.median),
        render.ns(median(run.floor_ns for run in strategy.runs)),
    ]


def _predicted(strategy: StrategyResult, summary: Summary) -> str:
    """What was foretold before the first run, and how far it is from what was measured."""
    foretold_ns, measured_ns = strategy.predicted_discard_ns, summary.discard_ns.median
    if foretold_ns is None or not strategy.operations:
        return render.NOT_OBSERVED
    if not measured_ns:
        return render.ns(foretold_ns)
    return f"{render.ns(foretold_ns)} {100 * (foretold_ns / measured_ns - 1):+.0f} %"


def _beside(summary: Summary, reference: str) -> Beside | None:
    return next((each for each in summary.beside if each.reference == reference), None)


def _ratio(beside: Beside | None, is_itself: bool) -> str:
    if is_itself:
        return "1.000"
    return render.NOT_OBSERVED if beside is None else render.cell(beside.ratio, "{:.3f}".format)


def spread(found: Spread) -> str:
    """A median in ns, and how far its interval reaches on either side: `305 ms -5 +9 %`."""
    if found.low is None or found.high is None or not found.median:
        return render.ns(found.median)
    low, high = (100 * (end / found.median - 1) for end in (found.low, found.high))
    return f"{render.ns(found.median)} {low:+.0f} {high:+.0f} %"


def _draw_work(results: Results) -> None:
    columns = ["<strategy", "operations", "calls", "threads", "bytes", "pages"]
    columns += ["wire requests", "wire bytes"]
    rows = [_work(strategy) for strategy in results.strategies]
    render.draw("work: of every run alike", columns, rows, spare=("wire bytes", "threads", "pages"))


def _work(strategy: StrategyResult) -> list[str]:
    return [
        in_words(strategy.name),
        render.count(strategy.operations),
        render.count(strategy.calls),
        render.count(strategy.threads),
        render.size(strategy.bytes),
        render.count(strategy.pages),
        render.count(strategy.wire_requests),
        render.size(strategy.wire_bytes),
    ]


def _refused_row(name: str, columns: int) -> list[str]:
    return [in_words(name), "refused", *([render.NOT_OBSERVED] * (columns - 2))]


def prediction_line(results: Results) -> str:
    """Say how far predictions were off, at the median and at worst; empty where there were none."""
    errors = [
        abs(each.predicted_discard_ns / each.summary.discard_ns.median - 1)
        for each in results.strategies
        if each.operations and each.predicted_discard_ns is not None
        if each.summary is not None and each.summary.discard_ns.median
    ]
    if not errors:
        return ""
    return (
        f"Stage d was predicted from {len(results.calibration)} calibrated calls: off by"
        f" {100 * median(errors):.1f} % at the median, {100 * max(errors):.1f} % at worst."
    )


def fidelity_line(fidelity: Fidelity | None) -> str:
    """Say in one line how closely the replay reproduces what was recorded, or why that is open."""
    if fidelity is None:
        return (
            f"Fidelity: not observed; what the traced VMM did is {TRACED_STRATEGY}:"
            f" replay it as well (-s {TRACED_STRATEGY})."
        )
    if fidelity.exact is None:
        count = "operations not observed in the trace"
    else:
        same = "the same" if fidelity.exact else "NOT the same"
        captured = render.count(fidelity.captured_operations)
        count = f"{same} operations ({captured} recorded, {fidelity.planned_operations:,} planned)"
    if fidelity.ratio is None:
        time = "time not comparable"
    else:
        replayed_ns = render.ns(fidelity.replayed_discard_ns)
        times = f"{replayed_ns} of {render.ns(fidelity.captured_discard_ns)}"
        time = f"{fidelity.ratio:.2f} of the recorded discard time ({times})"
    note = f"; {fidelity.note}" if fidelity.note else ""
    return f"Fidelity of {fidelity.strategy}: {count}, {time}{note}."
