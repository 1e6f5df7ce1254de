"""Options that several verbs share, so that they are spelled and explained once."""

import math
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from aerostat.sizes import parse_duration, parse_size

_MAX_CPU_DIGITS = 5
Command = TypeVar("Command", bound=Callable[..., Any])


def size(text: str) -> int:
    """Click type of a size in bytes; its name is the metavar users see."""
    return _parsed(parse_size, text)


def some_size(text: str) -> int:
    """Click type of a size that is not zero."""
    found = size(text)
    if not found:
        raise click.BadParameter(f"{text!r} is nothing; give a size such as 4G")
    return found


def duration(text: str) -> int:
    """Click type of a duration in nanoseconds; its name is the metavar users see."""
    return _parsed(parse_duration, text)


def _parsed(parse: Callable[[str], int], text: str) -> int:
    # A bare ValueError would lose its message: click keeps only the value.
    try:
        return parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def cpu(text: str) -> int | str | None:
    """Click type of a CPU: its number, `auto`, or `none` for whichever the scheduler takes."""
    if text in ("auto", "none"):
        return None if text == "none" else text
    if not text.isdecimal() or len(text) > _MAX_CPU_DIGITS:
        raise click.BadParameter(f"{text!r} is no CPU; give its number, auto or none")
    return int(text)


def strategy(text: str) -> str:
    """Click type of a strategy: sizes and durations among its parameters become whole numbers."""
    name, colon, parameters = text.rpartition(":")
    if not colon or "=" not in parameters:
        return text
    return f"{name}:{','.join(_plain_parameter(item) for item in parameters.split(','))}"


def _plain_parameter(item: str) -> str:
    key, equals, value = item.partition("=")
    if not equals or value.isdecimal() or value == "none":
        return item
    if key.endswith("_bytes"):
        return f"{key}={size(value)}"
    return f"{key}={duration(value)}" if key.endswith("_ns") else item


def residency_choice(text: str) -> str:
    """Click type of a residency; its name is the metavar users see."""
    if re.fullmatch(r"trace|touched|untouched|huge|1/[1-9][0-9]{0,8}", text) is None:
        raise click.BadParameter(
            f"{text!r} is none: choose trace, touched, untouched, huge, or 1/N such as 1/8"
        )
    return text


def window(text: str) -> tuple[int | None, int | None]:
    """Click type of a window: bytes, or ns where the text is a duration with a unit."""
    is_time = re.fullmatch(r".*[0-9 ](ns|us|ms|s|m|h)", text.strip()) is not None
    found = duration(text) if is_time else size(text)
    if not found:
        raise click.BadParameter(f"{text!r} holds nothing back; give one such as 16M or 100ms")
    return (None, found) if is_time else (found, None)


class FiniteRange(click.FloatRange):
    """A range of numbers: click's own takes a nan for one that lies in it."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Refuse what is no number."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


def refuse_others(context: click.Context, takes: Collection[str], option: str) -> None:
    """Refuse what was given and means nothing beside an option, rather than ignore it.

    Args:
        context: Of the verb.
        takes: Names of the parameters that mean something beside it.
        option: As the user spells it.

    Raises:
        click.UsageError: One of the others was given.
    """
    for each in context.command.params:
        name = each.name or ""
        if name in takes or context.get_parameter_source(name) is ParameterSource.DEFAULT:
            continue
        raise click.UsageError(f"{max(each.opts, key=len)} does not go with {option}")


PATH = click.Path(path_type=Path)
BACKINGS = ("anon", "memfd", "shmem", "hugetlb", "file-private")
"""`replay.backings.BACKINGS`, spelled out so that help needs no numpy."""
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
        "-q",
        "--quiet",
        is_flag=True,
        help="Show no progress, not even on a terminal; problems are told all the same.",
    )(command)
    return click.option(
        "-v", "--verbose", is_flag=True, help="Name each phase on stderr when not on a terminal."
    )(command)
