"""Sizes and durations as users type and read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerostat.sizes import format_bytes, format_ns, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096b", 4096),
        ("4k", 4096),
        ("4K", 4096),
        ("4KiB", 4096),
        ("512M", 512 << 20),
        ("512MiB", 512 << 20),
        ("1.5G", 3 << 29),
        (" 2 GiB ", 2 << 30),
        ("1T", 1 << 40),
    ],
)
def test_size(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a size"),
        ("-1", "is not a size"),
        ("4 kilo", "is not a size"),
        ("1e9", "is not a size"),
        ("٤k", "is not a size"),
        ("512MB", "write 512MiB"),
        ("512mb", "write 512MiB"),
        ("0.3", "not a whole number of bytes"),
        ("0.0001k", "not a whole number of bytes"),
        ("9" * 5000, "too many digits"),
    ],
)
def test_bad_size(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_size(text)


@given(st.integers(0, 1 << 50))
def test_bytes_pass_unchanged(size_bytes: int) -> None:
    assert parse_size(str(size_bytes)) == size_bytes


@given(st.integers(0, 999), st.sampled_from("kmgt"))
def test_formatted_whole_units_read_back(count: int, letter: str) -> None:
    size_bytes = parse_size(f"{count}{letter}")
    assert parse_size(format_bytes(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("text", "duration_ns"),
    [("30s", 30 * 10**9), ("500ms", 5 * 10**8), ("1.5m", 90 * 10**9), ("2h", 7200 * 10**9)],
)
def test_duration(text: str, duration_ns: int) -> None:
    assert parse_duration(text) == duration_ns


@pytest.mark.parametrize("text", ["30", "s", "-1s", "30 minutes", "0.5ns"])
def test_bad_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a duration|not a whole number"):
        parse_duration(text)


def test_what_63_bits_cannot_hold_is_refused() -> None:
    assert parse_duration("2562047h") == 2562047 * 3600 * 10**9
    assert parse_size("8388607T") == 8388607 << 40
    for parse, text in ((parse_duration, "99999999999999h"), (parse_size, "8388608T")):
        with pytest.raises(ValueError, match=f"'{text}' is too much"):
            parse(text)


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [
        (0, "0 ns"),
        (340, "340 ns"),
        (1319, "1.32 us"),
        (590_000_000, "590 ms"),
        (4_126_000_000, "4.13 s"),
        (4_126_000_000_000, "4126 s"),
    ],
)
def test_format_ns(duration_ns: int, text: str) -> None:
    assert format_ns(duration_ns) == text


def test_format_bytes() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1024, 7 << 30)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "7 GiB",
    ]
