"""Sizes of rings and waits between drains follow from how fast a page can be discarded."""

import pytest

from tracer.engine import decode, decode_calls
from tracer.engine.ring_size import longest_wait_s, ring_bytes
from tracer.record.capture import DRAIN_LONGEST_S, DRAIN_SHORTEST_S, RING_SHARE, next_wait_s

DETAILS = ("requests", "discards", "calls")
RECORD_BYTES = {
    "requests": (8 + decode.HOST_REQUEST.itemsize) / decode.PFNS,
    "discards": 8 + decode.HOST_CALLS.itemsize,
    "calls": 8 + decode_calls.HOST_CALL.itemsize,
}


@pytest.mark.parametrize("detail", DETAILS)
@pytest.mark.parametrize("page_ns", [1.0, 50.0, 162.0, 340.0, 1e3, 1e4, 1e9])
def test_what_one_thread_can_discard_between_two_drains_fits(detail: str, page_ns: float) -> None:
    size = ring_bytes(detail, page_ns)
    wait_s = longest_wait_s(detail, size, page_ns)
    filled = wait_s * 1e9 / page_ns * RECORD_BYTES[detail]
    assert filled <= size / 2 or wait_s == DRAIN_SHORTEST_S
    assert size & (size - 1) == 0
    assert 256 << 10 <= size <= (16 if detail == "calls" else 4) << 20
    assert wait_s <= DRAIN_LONGEST_S


@pytest.mark.parametrize("detail", DETAILS)
def test_a_faster_machine_never_gets_a_smaller_ring(detail: str) -> None:
    sizes = [ring_bytes(detail, page_ns) for page_ns in (1e5, 1e4, 1e3, 500, 200, 100, 10)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 2


def test_a_small_ring_is_emptied_more_often() -> None:
    waits = [longest_wait_s("calls", size << 10, 200.0) for size in (64, 1024, 4096, 16384)]
    assert waits == sorted(waits)
    assert waits[0] == DRAIN_SHORTEST_S
    # Half of 1 MiB, 64 bytes a call, 200 ns each.
    assert waits[1] == pytest.approx(0.00164, rel=0.01)


def test_a_wait_aims_at_a_ring_that_is_a_quarter_full() -> None:
    assert next_wait_s(0.010, RING_SHARE, 0.2) == pytest.approx(0.010)
    assert next_wait_s(0.010, RING_SHARE / 2, 0.2) == pytest.approx(0.020)
    assert next_wait_s(0.010, RING_SHARE * 2, 0.2) == pytest.approx(0.005)
    assert next_wait_s(0.010, 0.9, 0.2) == 0.0


def test_a_wait_grows_by_doubling_and_within_its_bounds() -> None:
    assert next_wait_s(0.010, 0.0, 0.2) == pytest.approx(0.020)
    assert next_wait_s(0.15, 0.0, 0.2) == pytest.approx(0.2)
    assert next_wait_s(0.0, 0.0, 0.2) == DRAIN_SHORTEST_S
    assert next_wait_s(0.001, 0.4, 0.2) == DRAIN_SHORTEST_S
