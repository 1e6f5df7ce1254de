"""What the thread that empties rings does to the process it runs in, on rings of no kernel."""

import gc
import sys
import time
from collections.abc import Callable

import numpy as np

from tracer.engine import pump
from tracer.engine.pump import Pump

RECORD = np.dtype([("number", np.uint64)])


class Idle:
    """A ring into which nothing comes."""

    used_share = 0.0

    def read(self):
        return np.empty(0, RECORD)


def wait_until(said: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 60
    while not said():
        assert time.monotonic() < end_s
        time.sleep(0.001)


def test_no_collection_of_garbage_holds_up_a_pump():
    before, interval_s = gc.get_freeze_count(), sys.getswitchinterval()
    alive = len(gc.get_objects())
    emptied = Pump()
    rings = [emptied.add(Idle(), 0.001) for _ in range(2)]
    wait_until(lambda: gc.get_freeze_count() > before)
    assert gc.get_freeze_count() - before > alive / 2
    assert sys.getswitchinterval() <= interval_s
    emptied.remove(rings[0])
    assert gc.get_freeze_count() > before
    emptied.remove(rings[1])
    assert gc.get_freeze_count() == 0
    assert sys.getswitchinterval() == interval_s


class Filled(Idle):
    """A ring that has records in it each time that it is read, numbered in order."""

    def __init__(self, counts: list[int]) -> None:
        self._counts = counts
        self._next = 0

    def read(self):
        count = self._counts.pop(0) if self._counts else 0
        self._next += count
        return np.arange(self._next - count, self._next, dtype=np.uint64).view(RECORD)


def test_parts_are_all_that_there_is_in_order_and_none_is_large():
    large = 5 * (pump.PART_BYTES // RECORD.itemsize) // 2
    ring = pump.PumpedRing(Filled([3, large, 0, 2]), 0.001)
    for _ in range(3):
        ring.pump(1 << 30)
    sizes, numbers = [], []
    for part in ring.parts():
        sizes.append(part.nbytes)
        numbers += part["number"].tolist()
    assert numbers == list(range(3 + large + 2))
    assert max(sizes) == pump.PART_BYTES
    assert ring.used_share == 0
    assert [len(part) for part in ring.parts()] == [0]


def test_each_part_that_is_taken_makes_room_for_what_comes_meanwhile():
    ring = pump.PumpedRing(Filled([8] * 5), 0.001)
    room = 16 * RECORD.itemsize
    for _ in range(3):
        ring.pump(room)
    taken = ring.parts()
    assert next(taken)["number"].tolist() == list(range(8))  # and one more read of the ring
    assert ring.pump(room) == 0
    assert next(taken)["number"].tolist() == list(range(8, 16))
    ring.pump(room)
    rest = [part["number"].tolist() for part in taken]
    assert rest == [list(range(16, 24))]
    assert ring.read()["number"].tolist() == list(range(24, 40))
