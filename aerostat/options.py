"""Options that several verbs share, so that they are spelled and explained once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from aerostat.sizes import parse_duration, parse_size

Command = TypeVar("Command", bound=Callable[..., Any])


class _Parsed(click.ParamType[int]):
    """A click type made from a function that raises ValueError on what it cannot read."""

    def __init__(self, name: str, parse: Callable[[str], int]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """Turn the typed text into an integer; defaults that are integers pass."""
        if isinstance(value, int):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE = _Parsed("size", parse_size)
DURATION = _Parsed("duration", parse_duration)
PATH = click.Path(path_type=Path)
TRACE = click.Path(path_type=Path)
"""A trace need not be proved to exist here: the reader's own error says more than click's."""


def json_option(command: Command) -> Command:
    """Add --json: one document on stdout instead of tables."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Write one JSON document to stdout."
    )(command)


def force_option(command: Command) -> Command:
    """Add --force: without it nothing that exists is overwritten."""
    return click.option("--force", is_flag=True, help="Replace the output if it exists.")(command)


def talk_options(command: Command) -> Command:
    """Add -v and -q: how much is said on stderr while work goes on."""
    command = click.option(
        "-q", "--quiet", is_flag=True, help="Show no progress, not even on a terminal."
    )(command)
    return click.option(
        "-v", "--verbose", is_flag=True, help="Name each phase on stderr when not on a terminal."
    )(command)
