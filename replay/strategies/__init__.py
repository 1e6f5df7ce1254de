"""The strategies that ship, and how a user's own is found.

A new one is one file with one subclass of `Strategy`, and one line in `STRATEGIES`.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from replay.strategies.adjacent import Adjacent
from replay.strategies.base import Strategy
from replay.strategies.nop import Nop
from replay.strategies.oracle import Oracle
from replay.strategies.qemu import Qemu
from replay.strategies.range import Range
from replay.strategies.request import Request
from tracer.trace.errors import AerostatError

ENTRY_POINTS = "aerostat.strategies"

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (Nop(), Qemu(), Adjacent(), Request(), Range(), Oracle())
}


def load_strategy(name: str) -> Strategy:
    """Find a strategy.

    Args:
        name: One that ships; or `path.py:Name`, a subclass or an instance of Strategy in a file;
            or the name of an entry point of the group `aerostat.strategies`.

    Raises:
        AerostatError: There is none, or loading it fails.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _instance(name, getattr(_module(name, Path(path)), attribute, None))
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        try:
            return _instance(name, entry.load())
        except (ImportError, AttributeError) as error:
            raise _failed(name, str(error)) from error
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
        raise _failed(name, f"{type(error).__name__}: {error}") from error
    return module


def _instance(name: str, found: object) -> Strategy:
    if isinstance(found, type) and issubclass(found, Strategy):
        try:
            found = found()
        except TypeError as error:
            raise _failed(name, str(error)) from error
    if not isinstance(found, Strategy):
        raise _failed(name, f"{found!r} is no replay.strategies.base.Strategy")
    return found


def _failed(name: str, reason: str) -> AerostatError:
    return AerostatError(
        f"cannot load the strategy {name!r}",
        reason=reason,
        remedy="docs/strategies.md shows a whole strategy in one file",
    )
