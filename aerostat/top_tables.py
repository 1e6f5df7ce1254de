"""Draws the live view: one table where the terminal is wide enough, else two below each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aerostat import render
from aerostat.fit import Fitted
from aerostat.output import printable
from aerostat.watched import Gone, Update, Watched
from tracer.record.rates import Rates
from tracer.trace.schema import Queue

_NAME_WIDTHS = (24, 16, 12, 8)
_SPARE = ("actual", "target", "pages a run", "longest", "of busy", "memory", "discard bytes/s")
"""What a terminal goes without that is too narrow even for two tables; the last one goes first."""
_QUEUES = {
    Queue.INFLATE: "inflate pages/s",
    Queue.DEFLATE: "deflate pages/s",
    Queue.REPORTING: "report pages/s",
    Queue.FREE_PAGE_HINT: "hint pages/s",
}
_ALWAYS = (Queue.INFLATE, Queue.DEFLATE)
_STYLES = {"stalled": "yellow", "new": "dim", "still": "dim"}
_LEGEND = "busy, translate, discard, probes: shares of the time. longest: of all so far."
_HEADING_LINES = 5
"""Of a table: headings on three lines, the rule, and a blank line at the end."""
_MOST_LINES = 3
"""Lines about losses, and about VMs that are gone."""


@dataclass(frozen=True)
class _Column:
    heading: str
    cell: Callable[[Watched], str]


def _of(
    read: Callable[[Rates], float | None], form: Callable[[float | None], str]
) -> Callable[[Watched], str]:
    """Make cells of what happened between two readings."""
    return lambda vm: form(None if vm.moving is None else read(vm.moving))


def _pages(queue: Queue) -> Callable[[Watched], str]:
    return _of(lambda moving: (moving.pages_per_s or {}).get(queue), _count)


def _size(size_bytes: float | None) -> str:
    """Three digits and a letter: `1.25G`."""
    if size_bytes is None:
        return render.NOT_OBSERVED
    for letter, shift in (("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if abs(size_bytes) >= 1 << shift:
            return f"{_digits(size_bytes / (1 << shift))}{letter}"
    return f"{size_bytes:.0f}"


def _count(value: float | None) -> str:
    """Three digits, of thousands or millions where it is large: `1.25M`."""
    if value is None:
        return render.NOT_OBSERVED
    for letter, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{_digits(value / scale)}{letter}"
    return _digits(value)


def _percent(share: float | None) -> str:
    if share is None:
        return render.NOT_OBSERVED
    return "<0.01%" if 0 < share < 0.0001 else f"{_digits(100 * share)}%"


def _digits(value: float) -> str:
    if value == int(value) or abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


_MEMORY = (
    _Column("<state", lambda vm: vm.state),
    _Column("memory", lambda vm: _size(vm.now.memory_bytes)),
    _Column("actual", lambda vm: _size(vm.now.actual_bytes)),
    _Column("target", lambda vm: _size(vm.now.target_bytes)),
)
_DISCARDED = _Column("discard bytes/s", _of(lambda moving: moving.discarded_bytes_per_s, _size))
_WORK = (
    _Column("busy", _of(lambda moving: moving.busy_share, _percent)),
    _Column("translate", _of(lambda moving: moving.translate_share, _percent)),
    _Column("discard", _of(lambda moving: moving.discard_share, _percent)),
    _Column("pages a run", _of(lambda moving: moving.mean_run_pages, _count)),
    _Column("longest", lambda vm: render.ns(vm.longest_ns)),
    _Column("lost/s", _of(lambda moving: moving.lost_per_s, _count)),
    _Column("probes", _of(lambda moving: moving.probe_share, _percent)),
    _Column("of busy", _of(lambda moving: moving.probe_of_busy, _percent)),
)


def view(update: Update, width: int, height: int | None = None) -> RenderableType:
    """Make what the live view shows.

    Args:
        update: The VMs, the busiest first.
        width: Columns there are.
        height: Lines there are; as many as it takes where None.
    """
    notes = [
        note[: 2 * width] for note in (*_loss_lines(update.vms), *_gone_lines(update.gone), _LEGEND)
    ]
    if not update.vms:
        return Group(Text("No VM is watched."), *map(Text, notes))
    shown = list(update.vms)
    made = _tables(shown, width)
    if height is not None:
        taken = 2 + sum(-(-len(note) // width) for note in notes)
        room = (height - taken) // len(made) - _HEADING_LINES
        if room < len(shown):
            shown = shown[: max(room, 1)]
            made = _tables(shown, width)
    if left_out := [name for _, fitted in made for name in fitted.left_out]:
        notes.insert(0, f"Not drawn in {width} columns: {', '.join(left_out)}.")
    if len(shown) < len(update.vms):
        notes.insert(0, f"{len(update.vms) - len(shown)} more VMs, less busy, are not drawn.")
    # A roomy table has the blank line below in itself.
    parts: list[RenderableType] = []
    for table, fitted in made:
        parts += [table] if fitted.is_roomy else [table, Text("")]
    return Group(*parts, *map(Text, notes))


def _tables(vms: Sequence[Watched], width: int) -> list[tuple[Table, Fitted]]:
    """One table of every column, or two, with names as long as there is room for."""
    moves = [
        _Column(heading, _pages(queue))
        for queue, heading in _QUEUES.items()
        if queue in _ALWAYS or any(vm.has_moved(queue) for vm in vms)
    ]
    first, second = (*_MEMORY, *moves, _DISCARDED), _WORK
    for parts in (((*first, *second),), (first, second)):
        for name_width in _NAME_WIDTHS:
            made = [_table(part, vms, width, name_width) for part in parts]
            if all(fitted.fits for _, fitted in made):
                return made
    tried = [
        [_table(part, vms, width, name_width, _SPARE) for part in (first, second)]
        for name_width in _NAME_WIDTHS
    ]
    # Columns before names: of those that leave out least, the first has the longest names.
    return min(tried, key=lambda made: sum(len(fitted.left_out) for _, fitted in made))


def _table(
    columns: Sequence[_Column],
    vms: Sequence[Watched],
    width: int,
    name_width: int,
    spare: Sequence[str] = (),
) -> tuple[Table, Fitted]:
    headings = ["<VM", *(column.heading for column in columns)]
    rows = [(_name(vm, name_width), *(column.cell(vm) for column in columns)) for vm in vms]
    styles = [_style(vm) for vm in vms]
    return render.table(headings, rows, width=width, spare=spare, styles=styles)


def _name(vm: Watched, width: int) -> str:
    name = printable(vm.now.name).replace("\n", " ")
    return name if len(name) <= width else f"{name[: width - 1]}…"


def _style(vm: Watched) -> str:
    if vm.moving is not None and vm.moving.lost_per_s:
        return "red"
    return _STYLES.get(vm.state, "")


def _loss_lines(vms: Sequence[Watched]) -> list[str]:
    lossy = [vm for vm in vms if any(vm.now.lost.values())]
    lines = [
        f"lost of {_name(vm, 40)}: "
        + ", ".join(f"{count:,} ({cause})" for cause, count in vm.now.lost.items() if count)
        for vm in lossy[:_MOST_LINES]
    ]
    more = len(lossy) - _MOST_LINES
    return [*lines, f"{more} more VMs have lost events"] if more > 0 else lines


def _gone_lines(gone: Sequence[Gone]) -> list[str]:
    return [f"gone: {printable(vm.name)} (pid {vm.pid}): {vm.reason}" for vm in gone[-_MOST_LINES:]]
