"""A terminal that shows one thing at a time, and takes a key."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from aerostat import render

_QUIT_KEYS = b"qQ\x03"

Draw = Callable[[int, int], RenderableType]
"""Makes what is to be seen, for so many columns and lines."""


def is_screen() -> bool:
    """Whether stdout is a terminal that can be drawn on."""
    console = render.console()
    return console.is_terminal and not console.is_dumb_terminal


class Screen:
    """The whole terminal; see `open_screen`."""

    def __init__(self, console: Console, live: Live, wants_to_quit: Callable[[], None]) -> None:
        self._console, self._live, self._quit = console, live, wants_to_quit
        self._head = ""
        self._draw: Draw = lambda width, height: Text("")
        self._size = console.size

    def show(self, head: str, draw: Draw) -> None:
        """Show this from now on, below a line at the top."""
        self._head, self._draw = head, draw
        self._refresh()

    def look(self) -> None:
        """Take keys, and draw anew where the terminal has another size."""
        if self._console.size != self._size:
            self._refresh()
        if any(key in _QUIT_KEYS for key in _keys()):
            self._quit()

    def _refresh(self) -> None:
        self._size = self._console.size
        head = Text(self._head, style="bold", overflow="ellipsis", no_wrap=True)
        body = self._draw(self._size.width, self._size.height - 2)
        self._live.update(Group(head, Text(""), body), refresh=True)


@contextmanager
def open_screen(wants_to_quit: Callable[[], None]) -> Iterator[Screen]:
    """Take the terminal over; what was on it is back afterwards.

    Args:
        wants_to_quit: Called where q is pressed.
    """
    console = render.console()
    live = Live(
        console=console,
        screen=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with _single_keys(), live:
        yield Screen(console, live, wants_to_quit)


@contextmanager
def _single_keys() -> Iterator[None]:
    """Have the terminal hand over each key at once and not show it."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        # Keys that were pressed meanwhile are not for the shell.
        termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, before)


def _keys() -> bytes:
    """Take the keys that were pressed since the last look."""
    pressed = b""
    with contextlib.suppress(OSError, ValueError):
        while sys.stdin.isatty() and select.select([sys.stdin], [], [], 0)[0]:
            read = os.read(sys.stdin.fileno(), 64)
            if not read:
                break
            pressed += read
    return pressed
