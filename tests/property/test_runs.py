"""The run coding of the trace gives back every PFN array exactly."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from replay.ranges import pfns_from_runs
from tracer.trace.runs import encode_runs

NEAR = st.integers(0, 7)
PFN = st.one_of(NEAR, st.integers(0, 2**32 - 1))
REQUESTS = st.lists(st.lists(PFN, max_size=40), max_size=12)


def flat(requests: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = [len(request) for request in requests]
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return np.array([pfn for request in requests for pfn in request], np.uint32), offsets


@given(REQUESTS)
def test_each_request_comes_back(requests):
    pfns, offsets = flat(requests)
    run_offsets, run_pfn, run_pages = encode_runs(pfns, offsets)
    assert len(run_offsets) == len(requests) + 1
    for index, request in enumerate(requests):
        part = slice(run_offsets[index], run_offsets[index + 1])
        assert pfns_from_runs(run_pfn[part], run_pages[part]).tolist() == request


@given(st.integers(0, 2**32 - 300), st.integers(2, 256), st.booleans())
def test_one_direction_is_one_run(first, pages, falls):
    pfns = np.arange(first, first + pages)
    sent = pfns[::-1] if falls else pfns
    _, run_pfn, run_pages = encode_runs(sent, np.array([0, pages]))
    assert run_pfn.tolist() == [sent[0]]
    assert run_pages.tolist() == [-pages if falls else pages]
