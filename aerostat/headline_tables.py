"""Draws the seed's experiment: what was measured beside what was published."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from aerostat import render
from aerostat.against_tables import draw_against, interval, times
from aerostat.effect_tables import in_words
from aerostat.headline import LATER_NS, SEED_RANGES_NS, without_allocation
from aerostat.send_tables import siblings_in_words
from replay.headline import PFNS, RANGES
from replay.prepare import FLOOR_STRATEGY
from tracer.account.stages import SEED_NS, SEED_TOTAL_NS

if TYPE_CHECKING:
    from replay.against import Against
    from replay.headline import Case, Headline
    from replay.results import StrategyResult

COLUMNS = (
    "<",
    "wire requests",
    "calls",
    "a allocate",
    "b send",
    "merge",
    "c translate",
    "d discard",
    "b+c+d",
    "with a",
    "times as fast",
    "95 % interval",
)
MEMORY = {
    "untouched": "no page touched before, as in the seed's idle guest",
    "touched": "every inflated page touched before",
}


def draw_headline(found: Headline) -> None:
    """Draw one table for each residency, with the published figures above our own."""
    part = "" if found.scale == 1 else f", 1/{round(1 / found.scale)} of the seed's size"
    siblings = siblings_in_words(found.siblings, found.resting_threads)
    render.say(
        f"The seed's experiment: {render.size(found.inflated_bytes)} of"
        f" {render.size(found.memory_bytes)} inflated{part}, anonymous memory, THP never,"
        f" {siblings}, {render.medians_of(found.runs)}."
    )
    render.say(
        f"Order: {found.trace}, {found.recorded_pages:,} pages, {found.copies:.2f} times over;"
        f" {found.holes_kept:,} of {found.holes:,} holes between pages kept."
    )
    for case in found.cases:
        _draw_case(case, siblings)
    for refused in found.refused:
        render.say(f"Refused, not timed: {refused.name}: {refused.reason}.")
    ranges, later = (SEED_TOTAL_NS / ns for ns in (SEED_RANGES_NS, LATER_NS))
    before = without_allocation(SEED_TOTAL_NS)
    render.say(
        f"Stage a is not executed: no guest allocates here. The seed's {ranges:.1f} and the later"
        f" {later:.1f} times are with it. If it stayed at {render.ns(SEED_NS['a'])}, b, c and d"
        f" alone became {before / without_allocation(SEED_RANGES_NS):.1f} and"
        f" {before / without_allocation(LATER_NS):.1f} times as fast."
    )
    render.say()


def _draw_case(case: Case, siblings: str) -> None:
    rows = [_published("seed, PFNs (2016)", SEED_TOTAL_NS, stages=SEED_NS)]
    rows.append(_published("seed, ranges (2016)", SEED_RANGES_NS))
    rows.append(_published("best later version (2017)", LATER_NS))
    rows += [
        _measured(strategy, each)
        for strategy, each in zip(case.strategies, case.against_pfns, strict=True)
        if strategy.name != FLOOR_STRATEGY
    ]
    spare = ("with a", "a allocate", "calls", "merge")
    render.draw(f"{MEMORY[case.residency]}; {siblings}", COLUMNS, rows, spare=spare)
    _say_shares(case)
    for warning in case.warnings:
        render.say(f"Warning: {warning}")
    render.say()
    draw_against(case.strategies, case.against_ranges, RANGES, siblings)


def _published(what: str, total_ns: int, stages: dict[str, int] | None = None) -> list[str]:
    letters = stages or {}
    b_to_d = sum(ns for letter, ns in letters.items() if letter != "a") or None
    return [
        what,
        render.NOT_OBSERVED,
        render.NOT_OBSERVED,
        render.ns(letters.get("a")),
        render.ns(letters.get("b")),
        render.NOT_OBSERVED,
        render.ns(letters.get("c")),
        render.ns(letters.get("d")),
        render.ns(b_to_d),
        render.ns(total_ns),
        times(SEED_TOTAL_NS / total_ns),
        render.NOT_OBSERVED,
    ]


def _measured(strategy: StrategyResult, against: Against) -> list[str]:
    runs = strategy.runs
    return [
        NAMES.get(strategy.name, in_words(strategy.name)),
        render.count(strategy.wire_requests),
        render.count(strategy.calls),
        render.NOT_OBSERVED,
        render.ns(median(run.send_ns for run in runs)),
        render.ns(median(run.merge_ns for run in runs)),
        render.ns(median(run.translate_ns for run in runs)),
        render.ns(median(run.discard_ns for run in runs)),
        render.ns(median(run.total_ns for run in runs)),
        render.NOT_OBSERVED,
        render.cell(against.times, times),
        interval(against.low, against.high),
    ]


NAMES = {PFNS: "PFNs (qemu)", RANGES: "ranges (range)"}


def _say_shares(case: Case) -> None:
    """How b, c and d share what they take together, ours and the seed's."""
    found = next(each for each in case.strategies if each.name == PFNS)
    ours = {
        "b": median(run.send_ns for run in found.runs),
        "c": median(run.translate_ns for run in found.runs),
        "d": median(run.discard_ns for run in found.runs),
    }
    seeds = {letter: SEED_NS[letter] for letter in ours}
    said = [
        " ".join(
            f"{letter} {100 * ns / sum(shares.values()):.1f} %" for letter, ns in shares.items()
        )
        for shares in (ours, seeds)
    ]
    render.say(f"Of b+c+d with PFNs: {said[0]}; the seed's {said[1]}.")
