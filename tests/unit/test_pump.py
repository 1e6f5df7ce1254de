"""What the thread that empties rings does to the process it runs in, on rings of no kernel."""

import gc
import sys
import time
from collections.abc import Callable

import numpy as np

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
    pump = Pump()
    rings = [pump.add(Idle(), 0.001) for _ in range(2)]
    wait_until(lambda: gc.get_freeze_count() > before)
    assert gc.get_freeze_count() - before > alive / 2
    assert sys.getswitchinterval() <= interval_s
    pump.remove(rings[0])
    assert gc.get_freeze_count() > before
    pump.remove(rings[1])
    assert gc.get_freeze_count() == 0
    assert sys.getswitchinterval() == interval_s
