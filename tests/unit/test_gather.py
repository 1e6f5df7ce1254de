"""Decoding, sorting and merging in C: the same as a set of pages, whatever comes in."""

import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.native.gathering import Gathered, Wanted, gather
from replay.native.types import NativeError
from tracer.trace.schema import Wire

LOW, HIGH = (0, 100 << 12, 0), (1 << 32, 300 << 12, 512 << 12)
"""Two regions with a hole between them: gpa, length, offset in the memory."""
MEMORY_PAGES = 512 + 300
HIGH_PFN = 1 << 20

pfns = st.integers(0, 110) | st.integers(HIGH_PFN - 5, HIGH_PFN + 310) | st.just((1 << 32) - 1)
arrays = st.lists(pfns, max_size=40)
entries = st.tuples(pfns, st.integers(0, 130))
reports = st.lists(entries, max_size=8)


def gathered(
    contents: list[tuple[Wire, bytes]],
    order: list[int],
    group: list[int],
    memory: int = MEMORY_PAGES,
    taken_out: list[bool] | None = None,
) -> Gathered:
    wire = np.frombuffer(b"".join(content for _, content in contents) or b"\0", np.uint8)
    start = np.cumsum([0, *(len(content) for _, content in contents)]).astype(np.uint64)
    form = np.array([kind for kind, _ in contents], np.uint8)
    out = [False] * len(order) if taken_out is None else taken_out
    columns = (np.array(order, np.int64), np.array(group, np.int64), np.array(out, np.bool_))
    return gather((wire, start, form), Wanted(*columns), [HIGH, LOW], memory)


def page_of(pfn: int) -> int | None:
    if pfn < 100:
        return pfn
    return 512 + pfn - HIGH_PFN if HIGH_PFN <= pfn < HIGH_PFN + 300 else None


def named(content: list) -> tuple[set[int], int]:
    """Page by page: what a request names, and how many entries are refused."""
    pages: set[int] = set()
    refused = 0
    for entry in content:
        pfn, length = entry if isinstance(entry, tuple) else (entry, 1)
        found = [page_of(pfn + i) for i in range(length)] if length else [page_of(pfn)]
        whole = None not in found and (pfn >= HIGH_PFN or pfn + length <= 100)
        refused += not whole
        pages |= {page for page in found if page is not None} if whole and length else set()
    return pages, refused


def descriptor(address: int, length: int) -> bytes:
    """Of the split ring, device-writable."""
    return struct.pack("<QIHH", address, length, 2, 0)


def encoded(content: list) -> tuple[Wire, bytes]:
    if content and isinstance(content[0], tuple):
        packed = [descriptor(pfn << 12, pages << 12) for pfn, pages in content]
        return Wire.SCATTERLIST, b"".join(packed)
    return Wire.PFNS, struct.pack(f"<{len(content)}I", *content)


def listed(found: Gathered) -> dict[int, list[tuple[int, int]]]:
    runs: dict[int, list[tuple[int, int]]] = {}
    columns = (found.group.tolist(), found.first_page.tolist(), found.pages.tolist())
    for group, first, pages in zip(*columns, strict=True):
        runs.setdefault(group, []).append((first, pages))
    return runs


@given(st.lists(arrays | reports, max_size=8), st.data())
def test_it_is_the_union_of_each_group(contents: list, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(contents))))
    of_each = {"min_size": len(order), "max_size": len(order)}
    group = sorted(data.draw(st.lists(st.integers(0, 3), **of_each)))
    taken_out = data.draw(st.lists(st.booleans(), **of_each))
    encodings = [encoded(content) for content in contents]
    found = gathered(encodings, order, group, taken_out=taken_out)
    expected: dict[int, set[int]] = {}
    for place, number, out in zip(order, group, taken_out, strict=True):
        pages, held = named(contents[place])[0], expected.get(number, set())
        expected[number] = held - pages if out else held | pages
    runs = listed(found)
    assert {k: v for k, v in expected.items() if v}.keys() == runs.keys()
    for number, pieces in runs.items():
        assert {first + i for first, pages in pieces for i in range(pages)} == expected[number]
        assert all(a + n < b for (a, n), (b, _) in pairwise(pieces))
    assert found.rejected == sum(named(content)[1] for content in contents)


def test_long_runs_cross_words() -> None:
    content = [HIGH_PFN + page for page in range(290, 3, -1)]
    assert listed(gathered([encoded(content)], [0], [7])) == {7: [(516, 287)]}


def test_a_large_memory_costs_what_its_marks_cost() -> None:
    found = gathered([encoded([3, HIGH_PFN])] * 500, list(range(500)), list(range(500)), 1 << 26)
    assert len(found.pages) == 1000
    assert found.wall_ns < 500_000_000


@pytest.mark.parametrize("content", [b"\1", b"\1\0\0\0\2", descriptor(0, 4096)[:-1]])
def test_a_torn_end_is_refused(content: bytes) -> None:
    kind = Wire.SCATTERLIST if len(content) > 8 else Wire.PFNS
    assert gathered([(kind, content)], [0], [0]).rejected == 1


@pytest.mark.parametrize(
    "entry",
    [
        (0, (1 << 32) - 4096),
        (4096, (1 << 32) - 4096),
        ((1 << 64) - 4096, 8192),
        (0, 101 << 12),
        (99 << 12, 2 << 12),
        (1, 4096),
        (0, 4095),
        (1 << 32, 301 << 12),
    ],
)
def test_hostile_entries_are_refused(entry: tuple[int, int]) -> None:
    found = gathered([(Wire.SCATTERLIST, descriptor(*entry))], [0], [0])
    assert (found.rejected, len(found.pages)) == (1, 0)


def test_regions_beyond_the_memory_are_refused() -> None:
    with pytest.raises(NativeError, match="EINVAL"):
        gathered([encoded([1])], [0], [0], MEMORY_PAGES - 1)


def test_what_cannot_be_gathered_is_refused() -> None:
    words = (Wire.RANGE_WORDS, struct.pack("<2Q", 8 << 32, 1 << 12 | 1))
    with pytest.raises(ValueError, match="only PFN arrays"):
        gathered([words], [0], [0])
    with pytest.raises(ValueError, match="order"):
        gathered([encoded([1])], [1], [0])
    with pytest.raises(ValueError, match="order"):
        gathered([encoded([1])], [0], [0, 1])
    with pytest.raises(ValueError, match="taken_out"):
        gathered([encoded([1])], [0], [0], taken_out=[])
