"""Draws tables on stdout; what is null is printed as `-`, never as zero."""

import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Final, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aerostat.output import printable
from aerostat.sizes import format_bytes, format_ns

NOT_OBSERVED: Final = "-"
_PIPE_WIDTH: Final = 160
"""Columns where there is no terminal to ask: a table in a file or a pager should not be folded."""

Value = TypeVar("Value")


def console() -> Console:
    """A console on stdout as it is now; colour only on a terminal and without NO_COLOR."""
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)


def draw(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Draw one table.

    Args:
        title: Printed above, at the left margin.
        columns: Headings; one that begins with `<` is aligned to the left, the others right.
        rows: Cells as text; they may come from a guest and are made safe here. A column in which
            every cell is empty is left out.
    """
    cells = [list(row) for row in rows]
    used = [any(row[i] for row in cells) or not cells for i in range(len(columns))]
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for name in compress(columns, used):
        left = name.startswith("<")
        table.add_column(
            name.removeprefix("<"),
            justify="left" if left else "right",
            overflow="fold" if left else "ellipsis",
            no_wrap=not left,
        )
    for row in cells:
        table.add_row(*(Text(printable(text)) for text in compress(row, used)))
    console().print(table)


def say(text: str = "") -> None:
    """Print lines of a result on stdout."""
    console().print(Text(printable(text)), soft_wrap=True)


def cell(value: Value | None, form: Callable[[Value], str] = str) -> str:
    """Turn one value into a cell; None becomes `-`."""
    return NOT_OBSERVED if value is None else form(value)


def count(value: int | None) -> str:
    """Turn a count into a cell, with thousands separated."""
    return cell(value, lambda number: f"{number:,}")


def percent(value: float | None) -> str:
    """Turn a percentage into a cell."""
    return cell(value, lambda number: f"{number:.1f} %")


def ns(value: float | None) -> str:
    """Turn nanoseconds into a cell."""
    return cell(value, format_ns)


def size(value: int | None) -> str:
    """Turn bytes into a cell."""
    return cell(value, format_bytes)
