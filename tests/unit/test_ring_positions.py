"""The ring's bulk read where the positions are none that a kernel writes."""

import pytest

from tests.unit.test_ring import SIZE, made
from tracer.errors import ProbeError


@pytest.mark.parametrize("ahead", [SIZE + 8, 2 * SIZE, 1 << 40, (1 << 63) - 1])
def test_a_producer_that_is_too_far_ahead_is_refused(ahead: int) -> None:
    with made(20, 40) as (kernel, ring):
        kernel.put(1)
        kernel.advance(ahead - kernel.stride)
        for _ in range(2):
            with pytest.raises(ProbeError, match="positions") as refusal:
                ring.read()
            assert refusal.value.reason == f"{ahead} bytes to be read of {SIZE}"
        assert kernel.consumed() == 40


@pytest.mark.parametrize("behind", [1, 8, 32, SIZE])
def test_a_producer_that_is_behind_has_nothing_to_read(behind: int) -> None:
    with made(20, 2 * SIZE) as (kernel, ring):
        kernel.put(1)
        kernel.advance(-kernel.stride - behind)
        assert len(ring.read()) == 0
        assert kernel.consumed() == 2 * SIZE


def test_a_producer_within_a_record_has_those_before_it() -> None:
    with made(20, SIZE - 8) as (kernel, ring):
        kernel.put(1)
        kernel.put(2)
        kernel.advance(-4)
        assert ring.read()["number"].tolist() == [1]
        kernel.advance(4)
        assert ring.read()["number"].tolist() == [2]


def test_a_consumer_that_is_not_at_a_word_is_refused() -> None:
    """A header would lie across the end of what is mapped."""
    with made(20, SIZE - 2) as (kernel, ring):
        kernel.produced(1)
        with pytest.raises(ProbeError, match="positions"):
            ring.read()
