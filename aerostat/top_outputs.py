"""Where the live view goes: a terminal, plain tables, or lines of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol

from rich.console import RenderableType
from rich.text import Text

from aerostat import render
from aerostat.screen import Screen, is_screen, open_screen
from aerostat.sizes import format_ns
from aerostat.top_tables import view
from aerostat.watched import Update, document

_NS_PER_S = 1_000_000_000


class Output(Protocol):
    """Is told what goes on."""

    def phase(self, text: str) -> None:
        """Work before the first update."""

    def update(self, update: Update) -> None:
        """New figures."""

    def look(self) -> None:
        """A few times a second: whether the user wants something."""


class Lines:
    """One line with one JSON document for each update that has rates."""

    def phase(self, text: str) -> None:
        """Nothing is said meanwhile."""

    def update(self, update: Update) -> None:
        """Write the line at once, for whoever reads it from a pipe."""
        if update.number:
            json.dump(document(update), sys.stdout, allow_nan=False)
            sys.stdout.write("\n")
            sys.stdout.flush()

    def look(self) -> None:
        """There is nobody to look at."""


class Tables(Lines):
    """One table for each update that has rates."""

    def __init__(self, told: str) -> None:
        self._told = told

    def update(self, update: Update) -> None:
        """Write the table at once."""
        if update.number:
            out = render.console()
            when = datetime.fromtimestamp(update.realtime_ns / _NS_PER_S)
            out.print(Text(f"{when:%Y-%m-%d %H:%M:%S}  {_vms(update)}, {self._told}"))
            out.print(view(update, out.width))
            sys.stdout.flush()


class OnScreen:
    """The whole terminal, until q is pressed; the last tables stay on it."""

    def __init__(self, screen: Screen, told: str) -> None:
        self._screen, self._told = screen, told
        self.last: Update | None = None

    def phase(self, text: str) -> None:
        """Say what takes time before there are figures."""
        if self.last is None:
            self._screen.show(f"aerostat top: {text}", lambda width, height: Text(""))

    def update(self, update: Update) -> None:
        """Show the new figures, of the first reading too: its sizes are known."""
        self.last = update

        def draw(width: int, height: int) -> RenderableType:
            return view(update, width, height)

        when = datetime.fromtimestamp(update.realtime_ns / _NS_PER_S)
        head = f"aerostat top  {when:%H:%M:%S}  {_vms(update)}  q ends  {self._told}"
        self._screen.show(head, draw)

    def look(self) -> None:
        """Let the screen take keys and another size."""
        self._screen.look()


def _vms(update: Update) -> str:
    return "1 VM" if len(update.vms) == 1 else f"{len(update.vms)} VMs"


@contextmanager
def open_output(
    *, as_json: bool, detail: str, interval_ns: int, on_quit: Callable[[], None]
) -> Iterator[Output]:
    """Choose where the view goes.

    Args:
        as_json: Lines of JSON, also on a terminal.
        detail: For the line above the tables.
        interval_ns: The same.
        on_quit: Called where the user wants to end it.
    """
    told = f"detail {detail}, every {format_ns(interval_ns)}"
    if as_json:
        yield Lines()
    elif not is_screen():
        yield Tables(told)
    else:
        with open_screen(on_quit) as screen:
            output = OnScreen(screen, told)
            yield output
        if output.last is not None:
            Tables(told).update(output.last)
