"""QEMU's bitmap of one host page, against the rule told one PFN at a time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from replay.hostpage import completed


def one_by_one(stream: list[tuple[int, int]], unit: int) -> list[bool]:
    """Page and request in wire order; true where the bitmap becomes full."""
    fills, key, seen = [], None, set()
    for page, request in stream:
        if (page // unit, request) != key:
            key, seen = (page // unit, request), set()
        seen.add(page)
        fills.append(len(seen) == unit)
        if fills[-1]:
            seen = set()
    return fills


@given(
    st.lists(st.one_of(st.lists(st.integers(0, 7), max_size=9), st.permutations(range(4)))),
    st.sampled_from([1, 2, 4]),
)
def test_a_host_page_goes_when_its_bitmap_is_full(requests, unit):
    stream = [(page, request) for request, pages in enumerate(requests) for page in pages]
    pages = np.array([page for page, _ in stream], np.int64)
    by = np.array([request for _, request in stream], np.int64)
    assert completed(pages, by, unit).tolist() == one_by_one(stream, unit)
