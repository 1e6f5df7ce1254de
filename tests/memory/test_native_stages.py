"""Stage c in C: hostile content is refused and costs no more."""

import struct

import numpy as np
import pytest

from replay import native
from replay.native.types import NativeError, Translation
from tracer.trace.schema import Wire

LOW = (0, 1 << 20, 0)
HIGH = (4 << 20, 1 << 20, 2 << 20)
"""Two regions with a hole between them: gpa, length, offset in the mapping."""


def translate(form: Wire, *contents: bytes) -> Translation:
    wire = np.frombuffer(b"".join(contents), np.uint8)
    start = np.cumsum([0, *map(len, contents)]).astype(np.uint64)
    return native.translate(wire, start, np.full(len(contents), form, np.uint8), [HIGH, LOW])


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values) + 1}Q", 8 * len(values) << 32, *values)


def test_pfns() -> None:
    found = translate(Wire.PFNS, struct.pack("<3I", 0, 255, 1024), struct.pack("<I", 1279))
    assert (found.entries, found.pages, found.rejected) == (4, 4, 0)
    assert found.checksum == 4096 + (256 << 12) + (2 << 20) + 4096 + (3 << 20)


@pytest.mark.parametrize("pfn", [256, 1023, 1280, 1 << 31, (1 << 32) - 1])
def test_pfn_that_is_no_memory(pfn: int) -> None:
    found = translate(Wire.PFNS, struct.pack("<2I", pfn, 1))
    assert (found.entries, found.pages, found.rejected) == (2, 1, 1)


def test_half_a_pfn() -> None:
    assert translate(Wire.PFNS, b"\0\0\0\0\0").rejected == 1


def test_range_words() -> None:
    found = translate(Wire.RANGE_WORDS, words(3 << 12 | 5, 1024 << 12, 256))
    assert (found.entries, found.pages, found.rejected) == (2, 5 + 256, 0)
    assert found.checksum == (8 << 12) + (3 << 20)


@pytest.mark.parametrize(
    ("content", "pages"),
    [
        (b"", 0),
        (b"\0" * 7, 0),
        (words(5 << 12), 0),  # extended, and the count is missing
        (words(5 << 12, 0), 0),
        (words(5 << 12, (1 << 64) - 1), 0),
        (words(5 << 12, 1 << 51), 251),  # clipped where the region ends
        (words(255 << 12 | 4), 1),
        (words(((1 << 52) - 1) << 12 | 4095), 0),
        (words(5 << 12 | 1) + b"\1", 1),
    ],
)
def test_hostile_range_words(content: bytes, pages: int) -> None:
    found = translate(Wire.RANGE_WORDS, content)
    assert found.pages == pages
    assert found.rejected == 1


@pytest.mark.parametrize(
    ("gpa", "length", "flags", "pages", "rejected"),
    [
        (4096, 8192, 2, 2, 0),
        (4096, 8192, 0, 0, 1),  # the device may not write there
        (4097, 4096, 2, 0, 1),
        (4096, 4095, 2, 0, 1),
        (5 << 20, 4096, 2, 0, 1),
        ((1 << 20) - 4096, 8192, 2, 1, 1),  # over the end of a region
        ((1 << 64) - 4096, 4096, 2, 0, 1),
        (0, (1 << 32) - 4096, 2, 256, 1),
    ],
)
def test_descriptors(gpa: int, length: int, flags: int, pages: int, rejected: int) -> None:
    entry = struct.pack("<QIHH", gpa, length, flags, 0)
    found = translate(Wire.SCATTERLIST, struct.pack("<QIHH", 0, 4096, 2, 0) + entry)
    assert (found.entries, found.pages, found.rejected) == (2, 1 + pages, rejected)


def test_unknown_form_is_refused() -> None:
    with pytest.raises(NativeError, match="EINVAL"):
        native.translate(
            np.zeros(4, np.uint8),
            np.array([0, 4], np.uint64),
            np.array([9], np.uint8),
            [LOW],
        )
