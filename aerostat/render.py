"""Draws tables on stdout; what is null is printed as `-`, never as zero."""

import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from itertools import compress, zip_longest
from typing import TYPE_CHECKING, Final, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aerostat.fit import Fitted, fit, fold_headings
from aerostat.output import printable
from aerostat.sizes import format_bytes, format_ns

if TYPE_CHECKING:
    from replay.rejections import Rejection

NOT_OBSERVED: Final = "-"
_PIPE_WIDTH: Final = 160
"""Columns where there is no terminal to ask: a table in a file or a pager should not be folded."""
_NARROWEST_NOTE: Final = 20

Value = TypeVar("Value")


def console() -> Console:
    """A console on stdout as it is now; colour only on a terminal and without NO_COLOR."""
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)


def draw(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    spare: Sequence[str] = (),
) -> None:
    """Draw one table, as wide as the terminal lets it be.

    Args:
        title: Printed above, at the left margin.
        columns: Headings; one that begins with `<` holds text and is aligned to the left, the
            others hold figures and are aligned to the right.
        rows: Cells as text; they may come from a guest and are made safe here. A column in which
            every cell is empty is left out.
        spare: Headings of columns that a narrow terminal goes without, the last one first; they
            are named below the table.
    """
    out = console()
    drawn, fitted = table(columns, rows, width=out.width, spare=spare)
    drawn.title = title
    out.print(drawn)
    if fitted.left_out:
        say(f"Not drawn in {out.width} columns: {', '.join(fitted.left_out)}.")
    if fitted.left_out or not fitted.is_roomy:
        say()


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    width: int,
    spare: Sequence[str] = (),
    styles: Sequence[str] = (),
) -> tuple[Table, Fitted]:
    """Make the table that `draw` draws.

    Args:
        columns: See `draw`, as for rows and spare.
        rows: See there.
        width: Columns of the terminal.
        spare: See there.
        styles: Colour of each row; none where left out.

    Returns:
        The table, and how it was made to fit.
    """
    cells = [[printable(text) for text in row] for row in rows]
    fitted = fit(columns, cells, width, spare)
    made = Table(
        box=SIMPLE_HEAD,
        show_edge=fitted.is_roomy,
        padding=(0, 1) if fitted.is_roomy else (0, 1, 0, 0),
        title_justify="left",
        title_style="bold",
    )
    kept = list(compress(columns, fitted.shown))
    headings = fold_headings([name.removeprefix("<") for name in kept], fitted.widths)
    for name, heading, column_width in zip(kept, headings, fitted.widths, strict=True):
        left = name.startswith("<")
        made.add_column(
            heading, justify="left" if left else "right", overflow="fold", width=column_width
        )
    for row, style in zip_longest(cells, styles[: len(cells)], fillvalue=""):
        made.add_row(*(Text(text) for text in compress(row, fitted.shown)), style=str(style))
    return made, fitted


def say(text: str = "") -> None:
    """Print lines of a result on stdout; a terminal's are folded between words."""
    console().print(Text(printable(text)), soft_wrap=not sys.stdout.isatty())


def say_note(mark: str, text: str) -> None:
    """Print a note below a table, its further lines indented by the mark's length."""
    width = console().width
    room = max(width - len(mark) - 1, _NARROWEST_NOTE)
    lines = textwrap.wrap(printable(text), room, break_on_hyphens=False)
    say(f"\n{' ' * (len(mark) + 1)}".join([f"{mark} {lines[0] if lines else ''}", *lines[1:]]))


def say_rejected(rejected: "Sequence[Rejection]") -> None:
    """Say what the device model left out of a trace's requests; nothing where that is nothing."""
    if rejected:
        parts = "; ".join(f"{each.count:,} x {each.reason}" for each in rejected)
        say(f"Rejected by the device model: {parts}.")


def cell(value: Value | None, form: Callable[[Value], str] = str) -> str:
    """Turn one value into a cell; None becomes `-`."""
    return NOT_OBSERVED if value is None else form(value)


def figure(metric: str, value: float | None) -> str:
    """Turn a metric's value into a cell, by the unit in the metric's name."""
    return cell(value, format_ns if "_ns" in metric else "{:,.0f}".format)


def ratio_interval(low: float | None, high: float | None) -> str:
    """Turn an interval of ratios into a cell; one may have no upper end."""
    if low is None:
        return NOT_OBSERVED
    return f"{low:.3f} or more" if high is None else f"{low:.3f} to {high:.3f}"


def count(value: int | None) -> str:
    """Turn a count into a cell, with thousands separated."""
    return cell(value, lambda number: f"{number:,}")


def medians_of(runs: int) -> str:
    """Say what figures are made of: one run has no median."""
    return f"medians of {runs:,} runs" if runs != 1 else "1 run"


def percent(value: float | None) -> str:
    """Turn a percentage into a cell."""
    return cell(value, lambda number: f"{number:.1f} %")


def ns(value: float | None) -> str:
    """Turn nanoseconds into a cell."""
    return cell(value, format_ns)


def after(value_ns: int) -> str:
    """Turn nanoseconds since some begin into a cell with a fixed point, so that they line up."""
    seconds = value_ns / 1e9
    return f"{seconds:+,.3f} s"


def size(value: int | None) -> str:
    """Turn bytes into a cell."""
    return cell(value, format_bytes)
