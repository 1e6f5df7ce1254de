"""Sizes and durations as people write and read them; inside the program both are integers.

Imports nothing of the project, so that every verb can use it without cost.
"""

import re
from typing import Final

_SIZE: Final = re.compile(r"(\d+)(?:\.(\d+))?\s*(?:([kmgt])(i?b)?|b)?", re.IGNORECASE | re.ASCII)
_DURATION: Final = re.compile(r"(\d+)(?:\.(\d+))?\s*(ns|us|ms|s|m|h)", re.ASCII)
_SHIFT: Final = {"k": 10, "m": 20, "g": 30, "t": 40}
_NS: Final = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_MAX_DIGITS: Final = 18
_MAX: Final = 1 << 63
"""What no column of a trace or of results can hold."""


def parse_size(text: str) -> int:
    """Read a size such as `512M`, `512MiB`, `1.5G`, `4k` or `4096`.

    A letter is a power of 1024, as in QEMU and libvirt. `MB` is refused, because half the world
    reads it as 1000000.

    Args:
        text: The size as typed.

    Returns:
        The size in bytes.

    Raises:
        ValueError: The text is not a size, or not a whole number of bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write it as 512M, 512MiB or a number of bytes")
    whole, fraction, letter, suffix = match.groups()
    if letter and suffix and suffix.lower() == "b":
        number = whole if fraction is None else f"{whole}.{fraction}"
        better = f"{number}{letter.upper()}iB"
        raise ValueError(f"{text!r} could mean powers of 1000 or of 1024; write {better}")
    return _scaled(text, whole, fraction, 1 << _SHIFT.get((letter or "").lower(), 0), "bytes")


def parse_duration(text: str) -> int:
    """Read a duration such as `30s`, `500ms`, `1.5m` or `2h`.

    Args:
        text: The duration as typed, with its unit.

    Returns:
        The duration in nanoseconds.

    Raises:
        ValueError: The text is not a duration with a unit.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write it as 30s, 500ms, 5m or 2h")
    whole, fraction, unit = match.groups()
    return _scaled(text, whole, fraction, _NS[unit], "nanoseconds")


def _scaled(text: str, whole: str, fraction: str | None, scale: int, unit: str) -> int:
    """Scale in integers: a size or a time must not pass through a float."""
    digits = whole + (fraction or "")
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"{text[:_MAX_DIGITS]!r}... has too many digits")
    places = len(fraction) if fraction else 0
    value, rest = divmod(int(digits) * scale, int("1" + "0" * places))
    if rest:
        raise ValueError(f"{text!r} is not a whole number of {unit}")
    if value >= _MAX:
        raise ValueError(f"{text!r} is too much: {unit} are numbers below 2**63")
    return value


def format_bytes(size_bytes: int) -> str:
    """Write a size with the largest binary unit that keeps it at one or more: `1.5 GiB`."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if abs(size_bytes) >= 1 << shift:
            return f"{size_bytes / (1 << shift):.4g} {unit}"
    return f"{size_bytes} B"


def format_ns(duration_ns: float) -> str:
    """Write a duration with the largest unit that keeps it at one or more: `590 ms`."""
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if abs(duration_ns) >= scale:
            return f"{_three_digits(duration_ns / scale)} {unit}"
    return f"{_three_digits(duration_ns)} ns"


def _three_digits(value: float) -> str:
    """Three significant digits, never an exponent: a duration may have thousands of seconds."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
