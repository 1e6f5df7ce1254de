"""Makes a table fit a terminal: headings fold first, then text, then columns are left out."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = 24
"""A word longer than this, such as a path, may be folded where there is no room for it."""
_PROSE = 20
"""Least width of the last column of text, unless it is narrower anyway."""


@dataclass(frozen=True)
class Fitted:
    """Which columns are drawn, and how wide each.

    Attributes:
        shown: For every column, whether it is drawn.
        widths: Of those that are drawn.
        is_roomy: Whether there is room for a margin and three blanks between columns; else for two.
        fits: Whether it is no wider than the terminal, with nothing folded but headings and text.
        left_out: Headings of those that are not, for want of room.
    """

    shown: tuple[bool, ...]
    widths: tuple[int, ...]
    is_roomy: bool
    fits: bool
    left_out: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Column:
    heading: str
    is_text: bool
    cells: tuple[str, ...]

    @property
    def body(self) -> int:
        lines = (line for cell in self.cells for line in cell.split("\n"))
        return max(map(len, lines), default=0)

    @property
    def natural(self) -> int:
        return max(len(self.heading), self.body)

    @property
    def halved(self) -> int:
        """With its heading folded once."""
        words = self.heading.split()
        folds = (
            max(len(" ".join(words[:i])), len(" ".join(words[i:]))) for i in range(1, len(words))
        )
        return max(min(folds, default=len(self.heading)), self.body)

    @property
    def tight(self) -> int:
        """With its heading folded at every blank."""
        return max(_longest_word(self.heading), self.body)

    @property
    def least(self) -> int:
        """With its text folded too; a figure is never folded."""
        if not self.is_text:
            return self.tight
        words = max((_longest_word(cell) for cell in self.cells), default=0)
        return max(_longest_word(self.heading), min(words, _WORD))


def fit(
    headings: Sequence[str],
    cells: Sequence[Sequence[str]],
    width: int,
    spare: Sequence[str] = (),
) -> Fitted:
    """Choose the columns and their widths.

    Args:
        headings: Of every column; `<` before it says that it holds text.
        cells: Rows. A column in which every cell is empty is not drawn.
        width: Of the terminal.
        spare: Headings of columns that may be left out; the last one goes first.
    """
    columns = [
        _Column(heading.removeprefix("<"), heading.startswith("<"), tuple(row[i] for row in cells))
        for i, heading in enumerate(headings)
    ]
    kept = [column for column in columns if any(column.cells) or not cells]
    dropping = [name for name in spare if name in {column.heading for column in kept}]
    shown = kept
    while True:
        room = width - 2 * len(shown) + 1
        natural = [column.natural for column in shown]
        is_roomy = sum(natural) + 3 * len(shown) < width
        widths = natural if is_roomy else _narrow(shown, room)
        if is_roomy or sum(widths) <= room or not dropping:
            break
        dropped = dropping.pop()
        shown = [column for column in shown if column.heading != dropped]
    return Fitted(
        shown=tuple(column in shown for column in columns),
        widths=tuple(widths if is_roomy else _folded(shown, widths, room)),
        is_roomy=is_roomy,
        fits=is_roomy or sum(widths) <= room,
        left_out=tuple(column.heading for column in kept if column not in shown),
    )


def _narrow(columns: Sequence[_Column], room: int) -> list[int]:
    """Fold headings, and then the last text; too wide where that does not suffice."""
    widths: list[int] = []
    for widths in ([c.halved for c in columns], [c.tight for c in columns]):
        if sum(widths) <= room:
            return widths
    # The first column names the rows: it is folded only where nothing else helps.
    last = max((i for i, column in enumerate(columns) if column.is_text), default=0)
    rest = room - sum(widths) + widths[last]
    if last and rest >= max(columns[last].least, min(_PROSE, widths[last])):
        widths[last] = rest
    return widths


def _folded(columns: Sequence[_Column], widths: list[int], room: int) -> list[int]:
    """Take from the widest text as long as any can give."""
    while sum(widths) > room:
        able = [i for i, column in enumerate(columns) if widths[i] > column.least]
        if not able:
            break
        widths[max(able, key=lambda i: widths[i])] -= 1
    return widths


def fold_headings(headings: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Fold each heading to its width, so that all end on the same line."""
    folded = [
        textwrap.wrap(heading, max(width, 1)) or [""]
        for heading, width in zip(headings, widths, strict=True)
    ]
    height = max(map(len, folded), default=0)
    return ["\n".join([""] * (height - len(lines)) + lines) for lines in folded]


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=0)
