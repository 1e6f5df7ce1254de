"""Draws what happened while it was recorded: the events in order, and the samples summed up."""

from collections.abc import Sequence

from aerostat import render
from aerostat.events import Event, describe
from aerostat.pressure import Growth, Level

_FIRST, _LAST = 24, 8
"""Events that are drawn, of many; the rest is counted."""
_MOST_TEXT = 200


def draw_events(found: Sequence[Event]) -> None:
    """Draw the events in time order, or nothing where there were none; of many, the two ends."""
    if not found:
        return
    rows = [_event_row(event) for event in found]
    left_out = len(rows) - _FIRST - _LAST
    if left_out > 1:
        rows[_FIRST:-_LAST] = [("...", "", "", "", f"{left_out:,} more events")]
    columns = ("after", "<side", "<event", "times", "<what")
    render.draw("events, since the recording began", columns, rows)


def _event_row(event: Event) -> tuple[str, ...]:
    name = event.mark.name.lower().replace("_", " ")
    times = render.count(event.count) if event.count > 1 else ""
    what = describe(event)[:_MOST_TEXT]
    return (render.after(event.after_ns), event.side.name.lower(), name, times, what)


def draw_samples(levels: Sequence[Level], growths: Sequence[Growth]) -> None:
    """Draw levels and counts that were sampled, or nothing where none was."""
    if levels:
        columns = ("<side", "<memory", "samples", "begin", "end", "least", "most")
        rows = [_level_row(level) for level in levels]
        render.draw("memory, sampled", columns, rows, spare=("samples",))
    if growths:
        rows = [_growth_row(growth) for growth in growths]
        headings = ("<side", "<count", "samples", "grew by", "a second", "at most")
        render.draw("counts, sampled", headings, rows, spare=("samples",))


def _level_row(level: Level) -> tuple[str, ...]:
    return (
        level.side.name.lower(),
        level.column.removesuffix("_bytes").replace("_", " "),
        render.count(level.samples),
        *(render.size(value) for value in (level.begin, level.end, level.least, level.most)),
    )


def _growth_row(growth: Growth) -> tuple[str, ...]:
    return (
        growth.side.name.lower(),
        growth.column.replace("_", " "),
        render.count(growth.samples),
        render.count(growth.grown),
        render.cell(growth.mean_per_s, _rate),
        render.cell(growth.most_per_s, _rate),
    )


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if abs(per_s) >= 10 else f"{per_s:.2g}"
