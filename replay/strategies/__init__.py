"""The strategies that ship, and how a user's own is found.

A new one is one file with one subclass of `Strategy`, and one line in `STRATEGIES`.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from replay.strategies.adjacent import Adjacent
from replay.strategies.base import Strategy
from replay.strategies.batch import Batch
from replay.strategies.bulk import Bulk
from replay.strategies.deferred import Deferred
from replay.strategies.free import Free
from replay.strategies.huge import Huge
from replay.strategies.nop import Nop
from replay.strategies.oracle import Oracle
from replay.strategies.parallel import Parallel
from replay.strategies.parameters import split_parameters, with_parameters
from replay.strategies.populate import Populate
from replay.strategies.punch import Punch
from replay.strategies.qemu import Qemu
from replay.strategies.range import Range
from replay.strategies.remap import Remap
from replay.strategies.request import Request
from replay.strategies.scatter import Scatter
from replay.strategies.vectored import Vectored
from tracer.trace.errors import AerostatError

ALL = "all"
"""Stands for every strategy that ships."""
ENTRY_POINTS = "aerostat.strategies"
NAME = re.compile(r"[A-Za-z][\w.-]{0,63}")

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Nop(),
        Qemu(),
        Adjacent(),
        Request(),
        Batch(),
        Range(),
        Scatter(),
        Bulk(),
        Deferred(),
        Huge(),
        Vectored(),
        Free(),
        Punch(),
        Remap(),
        Populate(),
        Parallel(),
        Oracle(),
    )
}


def load_strategy(text: str) -> Strategy:
    """Find a strategy.

    Args:
        text: One that ships; or `path.py:Name`, a subclass or an instance of Strategy in a file;
            or the name of an entry point of the group `aerostat.strategies`. Each may be followed
            by parameters, `:name=value,name=value`.

    Raises:
        AerostatError: There is none, loading it fails, or it does not take the parameters.
    """
    name, parameters = split_parameters(text)
    strategy = _named(name)
    if not parameters:
        return strategy
    try:
        return with_parameters(strategy, parameters)
    except (ValueError, TypeError) as error:
        raise AerostatError(
            f"the strategy {name!r} cannot have the parameters {parameters!r}",
            reason=str(error),
            remedy="docs/strategies.md lists the parameters of each strategy",
        ) from error


def spelled_out(names: Iterable[str]) -> list[str]:
    """Put the names of all that ship first where `all` is among the names."""
    others = [*names]
    every = [*STRATEGIES] if ALL in others else []
    return every + [name for name in others if name != ALL]


def load_strategies(texts: Iterable[str]) -> list[Strategy]:
    """Find several strategies; one that is named twice comes once.

    Raises:
        AerostatError: As `load_strategy`; or two different ones have one name, under which results
            could not tell them apart.
    """
    found: dict[str, tuple[str, Strategy]] = {}
    for text in dict.fromkeys(texts):  # a file that is loaded twice has two classes
        strategy = load_strategy(text)
        before, other = found.setdefault(strategy.label, (text, strategy))
        if type(other) is not type(strategy):
            raise AerostatError(
                f"two strategies are called {strategy.label!r}",
                reason=f"{before} and {text} are not the same, and results go by name",
                remedy="give one of them another `name`",
            )
    return [strategy for _, strategy in found.values()]


def _named(name: str) -> Strategy:
    if name in STRATEGIES:
        return STRATEGIES[name]
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        module = _module(name, Path(path))
        if not hasattr(module, attribute):
            raise _failed(name, f"{path} defines no {attribute}")
        return _instance(name, getattr(module, attribute))
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        try:
            found = entry.load()
        except Exception as error:  # whatever the package raises is the reason to show
            raise _failed(name, f"{type(error).__name__}: {error}") from error
        return _instance(name, found)
    installed = sorted(entry.name for entry in entry_points(group=ENTRY_POINTS))
    raise AerostatError(
        f"there is no strategy {name!r}",
        reason=f"known are {', '.join([*STRATEGIES, *installed])}",
        remedy="name one of these, or path.py:Name for a strategy of your own",
    )


def _module(name: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise _failed(name, f"{path} is no file")
    # Named by its whole path, so that two files of one name stay two modules; entered into
    # sys.modules because dataclasses look there.
    label = f"aerostat_strategy_{path.resolve().as_posix().replace('/', '_').removesuffix('.py')}"
    spec = importlib.util.spec_from_file_location(label, path)
    if spec is None or spec.loader is None:
        raise _failed(name, f"{path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises is the reason to show
        del sys.modules[label]
        raise _failed(
            name, f"{type(error).__name__}: {error}{line_of(error, str(path))}"
        ) from error
    return module


def line_of(error: Exception, file: str | None) -> str:
    """The last line of a file on the way to an error, in brackets; nothing if there is none."""
    frames = [each for each in traceback.extract_tb(error.__traceback__) if each.filename == file]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _instance(name: str, found: object) -> Strategy:
    if isinstance(found, type) and issubclass(found, Strategy):
        try:
            found = found()
        except Exception as error:  # its __init__ is the user's
            raise _failed(name, f"{type(error).__name__}: {error}") from error
    if not isinstance(found, Strategy):
        raise _failed(name, f"{found!r} is no replay.strategies.base.Strategy")
    for attribute in ("name", "source"):
        if not isinstance(getattr(found, attribute, None), str):
            raise _failed(name, f"{type(found).__name__} has no text as its {attribute!r}")
    if not NAME.fullmatch(found.name):
        raise _failed(name, f"its name {found.name!r} is not letters, digits, '.', '_' and '-'")
    shipped = STRATEGIES.get(found.name)
    if shipped is not None and type(found) is not type(shipped):
        raise _failed(name, f"its name {found.name!r} is that of a strategy that ships")
    return found


def _failed(name: str, reason: str) -> AerostatError:
    return AerostatError(
        f"cannot load the strategy {name!r}",
        reason=reason,
        remedy="docs/strategies.md shows a whole strategy in one file",
    )
