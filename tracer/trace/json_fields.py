"""Typed values out of JSON that nobody vouches for, into frozen dataclasses and back.

A dataclass field says how it is read: `field(metadata=reads(text))`. Keys that the dataclass does
not know are kept in its `extra` field and written back, so that an older aerostat loses nothing of
a newer minor version's manifest.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from tracer.trace.errors import TraceError

Reader = Callable[[Any, str], Any]

MAX_TEXT = 4096
MAX_NS = (1 << 63) - 1
"""Times are int64 in the tables; so they are in the manifest."""
MAX_BYTES = 1 << 64
"""The end of the address space: 16 EiB."""


def reads(reader: Reader) -> dict[str, Reader]:
    """Metadata of a dataclass field: which function checks its JSON value."""
    return {"read": reader}


def refuse(place: str, problem: str) -> TraceError:
    """The error for one bad value.

    Args:
        place: Where in the manifest, such as `manifest.json: regions[0].gpa`.
        problem: What is wrong with the value, without echoing more than a little of it.
    """
    return TraceError(
        f"{place} {problem}",
        reason="the manifest does not follow docs/trace-format.md",
        remedy="take the trace again, or copy the bundle again from where it was recorded",
    )


def text(value: Any, place: str) -> str:
    """Read a string of at most `MAX_TEXT` characters that UTF-8 can hold."""
    if not isinstance(value, str):
        raise refuse(place, "is not a string")
    if len(value) > MAX_TEXT:
        raise refuse(place, f"is {len(value)} characters long, more than {MAX_TEXT}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise refuse(place, "holds half a surrogate pair")
    return value


def flag(value: Any, place: str) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise refuse(place, "is neither true nor false")
    return value


def whole(low: int, high: int) -> Reader:
    """Make a reader of integers from `low` to `high`, both included."""

    def read(value: Any, place: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise refuse(place, "is not a whole number")
        if not low <= value <= high:
            raise refuse(place, f"is not within {low} and {high}")
        return value

    return read


def number(value: Any, place: str) -> float:
    """Read a finite number as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refuse(place, "is not a number")
    if not -1e300 < value < 1e300:
        raise refuse(place, "is not a finite number")
    return float(value)


def amount(value: Any, place: str) -> float:
    """Read a finite number that is not below 0 as a float."""
    if number(value, place) < 0:
        raise refuse(place, "is below 0")
    return float(value)


count = whole(0, (1 << 64) - 1)
time_ns = whole(0, MAX_NS)


def optional(reader: Reader) -> Reader:
    """Let null, which means not observed, pass as None."""
    return lambda value, place: None if value is None else reader(value, place)


def one_of(*words: str) -> Reader:
    """Make a reader of one of a few words."""

    def read(value: Any, place: str) -> str:
        if value not in words:
            raise refuse(place, f"is none of {', '.join(words)}")
        return str(value)

    return read


def many(reader: Reader, at_most: int = 1 << 17) -> Reader:
    """Make a reader of a list, as a tuple."""

    def read(value: Any, place: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise refuse(place, "is not a list")
        if len(value) > at_most:
            raise refuse(place, f"has {len(value)} entries, more than {at_most}")
        return tuple(reader(item, f"{place}[{index}]") for index, item in enumerate(value))

    return read


def mapping(reader: Reader, keys: Reader = text, at_most: int = 4096) -> Reader:
    """Make a reader of an object whose keys are data."""

    def read(value: Any, place: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise refuse(place, "is not an object")
        if len(value) > at_most:
            raise refuse(place, f"has {len(value)} entries, more than {at_most}")
        return {
            keys(key, f"a key of {place}"): reader(item, f"{place}.{key[:40]}")
            for key, item in value.items()
        }

    return read


def record(kind: type[Any]) -> Reader:
    """Make a reader of one dataclass; keys it does not know go to its `extra`."""

    def read(value: Any, place: str) -> Any:
        if not isinstance(value, dict):
            raise refuse(place, "is not an object")
        known = [item for item in fields(kind) if item.name != "extra"]
        taken = {item.name: _take(item, value, place) for item in known if _present(item, value)}
        missing = [item.name for item in known if item.name not in taken and _required(item)]
        if missing:
            raise refuse(place, f"lacks {missing[0]}")
        names = {item.name for item in known}
        return kind(**taken, extra={key: value[key] for key in value if key not in names})

    return read


def _present(item: "Field[Any]", value: Mapping[str, Any]) -> bool:
    return item.name in value


def _take(item: "Field[Any]", value: Mapping[str, Any], place: str) -> Any:
    return item.metadata["read"](value[item.name], f"{place}.{item.name}")


def _required(item: "Field[Any]") -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def to_jsonable(value: Any) -> Any:
    """Turn dataclasses and tuples into what `json` writes; `extra` is spread out again."""
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: to_jsonable(getattr(value, f.name)) for f in fields(value)}
        return {**own.pop("extra"), **own}
    if isinstance(value, Mapping):
        return {key: to_jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_jsonable(item) for item in value]
    return value
