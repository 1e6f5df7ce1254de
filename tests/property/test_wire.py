"""Wire formats: whatever a driver sends comes back, and whatever a guest sends does no harm."""

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from replay.device import BalloonDevice
from replay.plan import Context
from replay.wire import (
    ADDRESSABLE_PAGES,
    MAX_ENTRIES,
    MAX_PFNS,
    MAX_WORDS,
    decode_pfns,
    decode_range_words,
    decode_scatterlist,
)
from tests.unit.encoded import encode_pfns, encode_range_words, encode_scatterlist
from tracer.trace.manifest import Region

MEMORY_PAGES = 64
ranges = st.lists(
    st.tuples(
        st.integers(0, (1 << 52) - (1 << 31)),
        st.one_of(st.integers(1, 5000), st.sampled_from([4095, 4096, 4097, 1 << 30])),
    ),
    max_size=50,
)


def regions() -> tuple[Region, ...]:
    return tuple(
        Region(
            "ram",
            gpa=pfn << 12,
            hva=None,
            length_bytes=MEMORY_PAGES // 2 << 12,
            backing="anon",
            page_size_bytes=4096,
        )
        for pfn in (0, 100)
    )


@given(st.lists(st.integers(0, (1 << 32) - 1), max_size=700))
def test_pfns_come_back(pfns):
    parts = encode_pfns(np.array(pfns, np.int64))
    assert all(0 < len(part) <= 4 * MAX_PFNS for part in parts)
    assert [p for part in parts for p in decode_pfns(part).start.tolist()] == pfns
    assert not any(decode_pfns(part).rejected for part in parts)


@given(ranges)
def test_ranges_come_back(found):
    parts = encode_range_words([s for s, _ in found], [n for _, n in found])
    assert all(8 < len(part) <= 8 + 8 * MAX_WORDS for part in parts)
    decoded = [decode_range_words(part) for part in parts]
    assert not any(d.rejected for d in decoded)
    back = [pair for d in decoded for pair in zip(d.start.tolist(), d.pages.tolist(), strict=True)]
    assert back == found


@given(st.lists(st.tuples(st.integers(0, (1 << 52) - 1024), st.integers(1, 1024)), max_size=80))
def test_reports_come_back(found):
    parts = encode_scatterlist([s for s, _ in found], [n for _, n in found])
    assert all(0 < len(part) <= 16 * MAX_ENTRIES for part in parts)
    decoded = [decode_scatterlist(part) for part in parts]
    assert not any(d.rejected for d in decoded)
    back = [pair for d in decoded for pair in zip(d.start.tolist(), d.pages.tolist(), strict=True)]
    assert back == found


def words_one_by_one(words: list[int]) -> list[tuple[int, int]]:
    """The range protocol read as its description says it, one word after the other."""
    found = []
    rest = iter(words)
    for word in rest:
        pages = word & 0xFFF
        if pages == 0:
            pages = next(rest, 0)
        pfn = word >> 12
        if pages:
            found.append((pfn, min(pages, ADDRESSABLE_PAGES - pfn)))
    return found


@given(
    st.lists(
        st.one_of(
            st.integers(0, (1 << 64) - 1),
            st.integers(0, 5).map(lambda pfn: pfn << 12),
            st.integers(0, 9),
        ),
        max_size=40,
    )
)
def test_any_words_decode_as_they_would_one_by_one(words):
    payload = np.array(words, np.uint64).astype("<u8").tobytes()
    header = b"\0\0\0\0" + len(payload).to_bytes(4, "little")
    decoded = decode_range_words(header + payload)
    back = list(zip(decoded.start.tolist(), decoded.pages.tolist(), strict=True))
    assert back == words_one_by_one(words)


near = st.integers(0, 200)
"""PFNs and counts about the small memory's size."""
contents = st.one_of(
    st.binary(max_size=200),
    st.lists(near, max_size=60).map(lambda pfns: np.array(pfns, "<u4").tobytes()),
    st.lists(st.tuples(near, near), max_size=20).map(
        lambda found: b"".join(
            struct.pack("<QIHH", pfn << 12, pages << 12, 2, 0) for pfn, pages in found
        )
    ),
    st.lists(st.tuples(near, near), max_size=20).map(
        lambda found: struct.pack(
            f"<{len(found) + 1}Q", 8 * len(found) << 32, *(p << 12 | n for p, n in found)
        )
    ),
)
"""Bytes at random, and what each protocol could mean."""


@given(
    st.sampled_from(["pfns", "range_words", "scatterlist"]),
    st.sampled_from([4096, 16384]),
    st.lists(st.tuples(st.integers(0, 7), contents), max_size=8),
)
def test_any_bytes_on_any_queue_are_answered(protocol, host_page_bytes, requests):
    context = Context(regions(), host_page_bytes)
    model = BalloonDevice(context, protocol=protocol)
    for queue, data in requests:
        handled = model.handle(queue, data)
        assert all(count > 0 for count in handled.rejected.values())
        assert (handled.runs.pages > 0).all()
        inside = np.zeros(context.layout.memory_pages, bool)
        for start, pages in zip(*context.layout.runs, strict=True):
            inside[start : start + pages] = True
        for start, pages in zip(*handled.runs, strict=True):
            assert inside[start : start + pages].all()
    assert model.host_owned.total_pages <= MEMORY_PAGES
