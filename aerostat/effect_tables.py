"""Draws what strategies do to guest and host beside the time: pauses, memory, faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import TypeVar

from aerostat import render
from aerostat.send_tables import siblings_in_words
from replay.results import Results, StrategyResult
from replay.watched import HugePages, MemorySamples
from tracer.trace.schema import PAGE_BYTES

LEVELS = "▁▂▃▄▅▆▇█"
CURVE = 10
"""Places of a curve; each is the last sample of a tenth of the time."""

Each = TypeVar("Each")


def draw_effects(results: Results) -> None:
    """Draw pauses and memory: one row a strategy that makes a call."""
    moved = [each for each in results.strategies if each.operations]
    if not moved:
        return
    columns = ["<strategy", "worst pause", "its pages", "p99 pause", "p50 pause"]
    columns += ["resident freed", "<memory during d", "faults in d"]
    columns += ["huge freed", "huge split", "touch again", "faults then"]
    spare = ("p50 pause", "its pages", "faults in d", "huge freed", "faults then")
    settings = results.settings
    watched = f"{settings.watched_runs} watched run{'s' if settings.watched_runs != 1 else ''}"
    title = f"pauses of {watched}; memory: {render.medians_of(settings.runs)}"
    title += f"; {siblings_in_words(settings.siblings)}"
    render.draw(title, columns, map(_row, moved), spare=spare)
    if notes := _notes(results, moved):
        render.say(" ".join(notes))


def _notes(results: Results, moved: Sequence[StrategyResult]) -> list[str]:
    if not results.settings.watched_runs:
        return ["Pauses were not observed: --watched-runs 1 times each call, in runs of its own."]
    found = ["A watched run times each call and samples memory; it counts in no total."]
    clock = [run.pauses.harness_ns for each in moved for run in each.watched if run.pauses]
    if clock:
        found.append(f"Reading the clock is {render.ns(median(clock))} of each pause.")
    if results.settings.touched_pages:
        pages = results.settings.touched_pages
        found.append(f"Touched again: {pages:,} pages that the guest got back.")
    return found


def _row(strategy: StrategyResult) -> list[str]:
    pauses = [run.pauses for run in strategy.watched if run.pauses is not None]
    worst = max(pauses, key=lambda each: each.max_ns, default=None)
    huge = [run.huge for run in strategy.watched if run.huge is not None]
    return [
        in_words(strategy.name),
        render.ns(None if worst is None else worst.max_ns),
        render.count(None if worst is None else worst.worst_pages),
        render.ns(_middle(pauses, lambda each: each.p99_ns)),
        render.ns(_middle(pauses, lambda each: each.p50_ns)),
        render.size(_pages(_middle(strategy.runs, lambda run: run.freed_pages))),
        curve(strategy),
        render.cell(_middle(strategy.runs, lambda run: run.minor_faults), "{:,.0f}".format),
        render.size(_huge(huge, lambda each: each.freed_pages)),
        render.size(_huge(huge, lambda each: each.split_pages)),
        render.ns(_middle(strategy.runs, lambda run: run.touch_ns)),
        render.cell(_middle(strategy.runs, lambda run: run.touch_faults), "{:,.0f}".format),
    ]


def in_words(name: str) -> str:
    """A name with parameters, in words that a narrow column can break."""
    return name.replace(":", " ").replace(",", " ")


def _middle(items: Sequence[Each], value: Callable[[Each], int | None]) -> float | None:
    """Median of what was observed."""
    seen = [found for item in items if (found := value(item)) is not None]
    return median(seen) if seen else None


def _huge(found: Sequence[HugePages], pages: Callable[[HugePages], int]) -> int | None:
    """Bytes; not observed where no huge page was there that could go or be split."""
    if not found or not max(each.before_pages for each in found):
        return None
    return _pages(_middle(found, pages))


def _pages(pages: float | None) -> int | None:
    return None if pages is None else round(pages) * PAGE_BYTES


def curve(strategy: StrategyResult) -> str:
    """Memory of the guest from the begin of stage d to its end, as a share of that at the begin."""
    resident_bytes = _middle(strategy.runs, lambda run: run.resident_before_pages * PAGE_BYTES)
    if not strategy.watched or not resident_bytes:
        return render.NOT_OBSERVED
    shares = _shares(strategy.watched[0].memory, resident_bytes)
    top = len(LEVELS) - 1
    return "".join(LEVELS[min(max(round(share * top), 0), top)] for share in shares)


def _shares(samples: MemorySamples, resident_bytes: float) -> list[float]:
    """Share of the guest's memory that is left at `CURVE` times."""
    used = samples.file_bytes or samples.rss_bytes
    if len(used) != len(samples.at_ns) or not used:
        return []
    whole = max(samples.at_ns[-1], 1)
    shares = []
    at = 0
    for place in range(CURVE):
        until_ns = whole * (place + 1) / CURVE
        while at + 1 < len(used) and samples.at_ns[at + 1] <= until_ns:
            at += 1
        shares.append(1 - (used[0] - used[at]) / resident_bytes)
    return shares
