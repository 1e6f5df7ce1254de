"""Draws every strategy of a replay beside one of them: who is faster, and why nobody is."""

from collections.abc import Sequence
from statistics import median

from aerostat import render
from aerostat.effect_tables import in_words
from replay.against import Against
from replay.prepare import FLOOR_STRATEGY
from replay.results import StrategyResult

COLUMNS = (
    "<strategy",
    "<deployable",
    "b send",
    "merge",
    "c translate",
    "d discard",
    "b+c+d",
    "times as fast",
    "95 % interval",
    "in d alone",
    "its interval",
    "freed",
    "<",
)
PROTOCOLS = {"pfns": "as it is", "range_words": "seed's protocol", "scatterlist": "new protocol"}


def draw_against(
    strategies: Sequence[StrategyResult], found: Sequence[Against], reference: str, siblings: str
) -> None:
    """Draw the table, the fastest strategy first, and say in a line what it means.

    Args:
        strategies: Of the replay.
        found: What `replay.against.against` says of them, in the same order.
        reference: What they stand against.
        siblings: How many threads ran or slept beside them, in words.
    """
    pairs = [(strategy, each) for strategy, each in zip(strategies, found, strict=True)]
    pairs = [pair for pair in pairs if pair[0].runs and pair[0].name != FLOOR_STRATEGY]
    pairs.sort(key=lambda pair: median(run.total_ns for run in pair[0].runs))
    runs = max((len(strategy.runs) for strategy, _ in pairs), default=0)
    rows = [_row(strategy, each, reference) for strategy, each in pairs]
    spare = ("its interval", "in d alone", "merge", "freed")
    title = f"against {reference}: medians of {runs} pairs, {siblings}"
    render.draw(title, COLUMNS, rows, spare=spare)
    render.say(verdict([each for _, each in pairs], reference))
    if reason := why_not(strategies, found, reference):
        render.say(reason)
    render.say()


def _row(strategy: StrategyResult, found: Against, reference: str) -> list[str]:
    runs = strategy.runs
    word = {True: "beats it", False: "", None: "too few pairs"}[found.beats]
    if found.high is not None and found.high < 1:
        word = "slower"
    return [
        in_words(strategy.name),
        PROTOCOLS.get(strategy.protocol, strategy.protocol) if found.deployable else "no",
        render.ns(median(run.send_ns for run in runs)),
        render.ns(median(run.merge_ns for run in runs)),
        render.ns(median(run.translate_ns for run in runs)),
        render.ns(median(run.discard_ns for run in runs)),
        render.ns(median(run.total_ns for run in runs)),
        render.cell(found.times, times),
        interval(found.low, found.high),
        render.cell(found.discard_times, times),
        interval(found.discard_low, found.discard_high),
        render.cell(found.freed_share, lambda share: f"{100 * share:.0f} %"),
        "" if strategy.name == reference else word,
    ]


def times(value: float) -> str:
    """Format a ratio with three digits, or whole where it is large."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def interval(low: float | None, high: float | None) -> str:
    """Format an interval of ratios."""
    return render.NOT_OBSERVED if low is None or high is None else f"{times(low)} to {times(high)}"


def verdict(found: Sequence[Against], reference: str) -> str:
    """Say which deployable strategies beat the reference, in one line."""
    winners = [each for each in found if each.beats and each.name != reference]
    if not winners:
        return f"No deployable strategy beats {reference} here with certainty."
    best = max(winners, key=lambda each: each.times or 0)
    names = ", ".join(f"{each.name} {times(each.times or 0)}" for each in winners)
    return f"{len(winners)} beat {reference}, times as fast: {names}. The best is {best.name}."


def why_not(strategies: Sequence[StrategyResult], found: Sequence[Against], reference: str) -> str:
    """Say what bounds strategies on today's protocol where none of those beats the reference."""
    by_name = {strategy.name: strategy for strategy in strategies if strategy.runs}
    if FLOOR_STRATEGY not in by_name or reference not in by_name:
        return ""
    protocol = {strategy.name: strategy.protocol for strategy in strategies}
    if any(each.beats and protocol[each.name] == "pfns" for each in found):
        return ""
    bound = median(run.total_ns for run in by_name[FLOOR_STRATEGY].runs)
    whole = median(run.total_ns for run in by_name[reference].runs)
    if bound <= whole:
        return ""
    return (
        f"None can on today's protocol: sending and translating alone (nop) takes"
        f" {render.ns(bound)}, {times(bound / whole)} times all of {reference}."
    )
