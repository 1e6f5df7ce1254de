"""A strategy's parameters, as written behind its name: `huge:hold_bytes=1048576,hold_ns=none`."""

from __future__ import annotations

import dataclasses
import re
from typing import get_args, get_type_hints

from replay.strategies.base import Strategy

MAX_NUMBER = 1 << 63
"""Plans are columns of 64 bits."""
PARAMETERS = re.compile(r"[^=,:]+=[^=,:]*(,[^=,:]+=[^=,:]*)*")


def split_parameters(text: str) -> tuple[str, str]:
    """Take the parameters off a name; they are empty where it has none."""
    name, colon, tail = text.rpartition(":")
    return (name, tail) if colon and PARAMETERS.fullmatch(tail) else (text, "")


def with_parameters(strategy: Strategy, text: str) -> Strategy:
    """Make the same strategy with other parameters.

    Args:
        strategy: One whose class is a frozen dataclass with fields of int, bool, float, str, or
            one of these or None.
        text: `name=value`, several with commas between. None is written none.

    Raises:
        ValueError: The strategy has no such parameter, or does not take the value.
    """
    kinds = parameter_kinds(strategy)
    values: dict[str, object] = {}
    for item in text.split(","):
        name, _, value = item.partition("=")
        if name not in kinds:
            known = f"it has {', '.join(kinds)}" if kinds else "it has none"
            raise ValueError(f"there is no parameter {name!r}; {known}")
        if name in values:
            raise ValueError(f"the parameter {name!r} is given twice")
        values[name] = _value(name, value, kinds[name])
    return dataclasses.replace(strategy, **values)  # type: ignore[type-var]  # kinds says so


def parameter_kinds(strategy: Strategy) -> dict[str, tuple[type, ...]]:
    """Each parameter's name and the types that it takes."""
    if not dataclasses.is_dataclass(strategy):
        return {}
    hints = get_type_hints(type(strategy))
    return {
        field.name: get_args(hints[field.name]) or (hints[field.name],)
        for field in dataclasses.fields(strategy)
    }


def _value(name: str, text: str, kinds: tuple[type, ...]) -> object:
    if text == "none" and type(None) in kinds:
        return None
    if bool in kinds and text in {"true", "false"}:
        return text == "true"
    for kind in (int, float, str):
        if kind in kinds:
            try:
                value = kind(text)
            except ValueError:
                continue
            if isinstance(value, int) and not -MAX_NUMBER <= value < MAX_NUMBER:
                raise ValueError(f"{name} is {value}; it must be below 2**63")
            return value
    wanted = " or ".join("none" if kind is type(None) else kind.__name__ for kind in kinds)
    raise ValueError(f"{name} is {text!r}; it must be {wanted.replace('bool', 'true or false')}")
