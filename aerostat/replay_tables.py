"""Draws what a replay measured: one row per strategy, the harness's own floor, and the fidelity."""

from statistics import median

from aerostat import render
from aerostat.send_tables import draw_sending, siblings_in_words
from replay.results import Fidelity, Results, StrategyResult
from tracer.trace.schema import PAGE_BYTES

REFERENCE = "qemu"
"""Strategies are set beside this one where it was replayed: it is what most VMMs do today."""


def draw_results(results: Results) -> None:
    """Draw every strategy's medians, then what stands beside every result: fidelity and floor."""
    _say_head(results)
    columns = [
        "<strategy",
        "operations",
        "calls",
        "wire requests",
        "b send",
        "c translate",
        "d discard",
    ]
    columns += ["b+c+d", "from", "to", f"x {REFERENCE}", "resident freed", "harness in d"]
    reference = _median_total_ns(results, REFERENCE)
    rows = [_row(strategy, reference) for strategy in results.strategies]
    rows += [_refused_row(refused.name) for refused in results.refused]
    spare = ("harness in d", "resident freed", "wire requests", "to", "from")
    settings = results.settings
    title = f"replay: medians of {settings.runs} runs, {siblings_in_words(settings.siblings)}"
    render.draw(title, columns, rows, spare=spare)
    for refused in results.refused:
        render.say(f"Refused, not timed: {refused.name}: {refused.reason}.")
    if blurred := overlapping(results):
        names = ", ".join(blurred)
        render.say(f"Not told apart from {REFERENCE} by b+c+d, because runs overlap: {names}.")
    if results.fidelity is not None:
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
    siblings = siblings_in_words(settings.siblings)
    thp = f" (THP {settings.thp})" if settings.backing == "anon" else ""
    render.say(
        f"Replayed {settings.requests_replayed:,} requests on {settings.backing} memory{thp},"
        f" {siblings}, seed {settings.seed}, residency: {settings.residency},"
        f" {render.size(settings.resident_bytes)} resident"
    )
    render.say_rejected(trace.rejected)
    if settings.cut_reason:
        render.say(f"Not the whole trace: {settings.cut_reason}")


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


def _median_total_ns(results: Results, name: str) -> float | None:
    for strategy in results.strategies:
        if strategy.name == name and strategy.runs:
            return median(run.total_ns for run in strategy.runs)
    return None


def _row(strategy: StrategyResult, reference_ns: float | None) -> list[str]:
    runs = strategy.runs
    if not runs:
        counts = (strategy.operations, strategy.calls, strategy.wire_requests)
        return [_in_words(strategy.name), *map(render.count, counts), *([render.NOT_OBSERVED] * 9)]
    totals = [run.total_ns for run in runs]
    ratio = None if not reference_ns else median(totals) / reference_ns
    return [
        _in_words(strategy.name),
        render.count(strategy.operations),
        render.count(strategy.calls),
        render.count(strategy.wire_requests),
        render.ns(median(run.send_ns for run in runs)),
        render.ns(median(run.translate_ns for run in runs)),
        render.ns(median(run.discard_ns for run in runs)),
        render.ns(median(totals)),
        render.ns(min(totals)),
        render.ns(max(totals)),
        render.cell(ratio, lambda value: f"{value:.3f}"),
        render.size(round(median(run.freed_pages for run in runs)) * PAGE_BYTES),
        render.ns(median(run.floor_ns for run in runs)),
    ]


def _in_words(name: str) -> str:
    """A name with parameters, in words that a narrow column can break."""
    return name.replace(":", " ").replace(",", " ")


def _refused_row(name: str) -> list[str]:
    return [_in_words(name), "refused", *([render.NOT_OBSERVED] * 11)]


def fidelity_line(fidelity: Fidelity) -> str:
    """Say in one line how closely the replay reproduces what was recorded."""
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
