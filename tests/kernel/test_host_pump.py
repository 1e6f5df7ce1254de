"""The thread that empties rings, on a ring that the real program fills."""

import mmap
import time

import numpy as np
import pytest

from tracer.engine import pump
from tracer.engine.pump import Pump
from tracer.errors import ProbeError
from tracer.sites.probes import Kind

PAGE = mmap.PAGESIZE
SINGLE = [(False, (Kind.TRACEPOINT,))]
IN_RING = (4 << 20) // 64


def discard(memory: mmap.mmap, calls: int) -> None:
    for index in range(calls):
        memory.madvise(mmap.MADV_DONTNEED, index % 4000 * PAGE, PAGE)


@pytest.mark.parametrize("recorder", SINGLE, indirect=True)
def test_more_than_the_ring_holds_comes_out_whole_and_in_order(recorder, pages):
    memory, address = pages
    calls = 3 * IN_RING
    emptied = Pump()
    ring = emptied.add(recorder.ring, 0.002)
    with recorder.in_request(token=0):
        discard(memory, calls)
    found = ring.read()
    emptied.remove(ring)
    assert recorder.lost() == 0
    assert np.array_equal(found["address"], address + np.arange(calls) % 4000 * PAGE)
    assert len(recorder.ring.read()) == 0


@pytest.mark.parametrize("recorder", SINGLE, indirect=True)
def test_what_memory_has_no_room_for_stays_in_the_ring_and_is_counted(recorder, pages, monkeypatch):
    memory, _ = pages
    monkeypatch.setattr(pump, "HELD_BYTES", 1 << 20)
    emptied = Pump()
    ring = emptied.add(recorder.ring, 0.001)
    calls = 4 * IN_RING
    with recorder.in_request(token=0):
        discard(memory, calls)
    assert ring.used_share >= 1
    found = ring.read()
    emptied.remove(ring)
    assert 0 < recorder.lost() < calls
    assert len(found) + recorder.lost() == calls
    # At most what the bound lets in, one ring more, and what was in the ring.
    assert found.nbytes < (1 << 20) + 2 * (4 << 20)


def test_a_ring_that_was_taken_out_is_touched_no_more(recorder, pages):
    memory, _ = pages
    emptied = Pump()
    ring = emptied.add(recorder.ring, 0.001)
    emptied.remove(ring)
    with recorder.in_request(token=0):
        discard(memory, 1)
        memory.madvise(mmap.MADV_WILLNEED)
    time.sleep(0.01)
    assert len(recorder.ring.read()) == 1
    with pytest.raises(ProbeError):
        ring.read()
