"""When a recorder samples: as often as it was asked to, however long its rings may wait."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tracer.record.capture import DRAIN_LONGEST_S, CaptureOptions, run_loop
from tracer.trace.progress import silent


class Idle:
    """A source with nothing in its rings, that notes when it is sampled."""

    longest_wait_s = DRAIN_LONGEST_S

    def __init__(self, first_takes_s: float = 0.0) -> None:
        self.sampled_s: list[float] = []
        self._first_takes_s = first_takes_s

    def used_share(self) -> float:
        return 0.0

    def drain(self) -> int:
        return 0

    def sample(self) -> None:
        self.sampled_s.append(time.monotonic())
        if len(self.sampled_s) == 1:
            time.sleep(self._first_takes_s)

    def ended(self) -> str | None:
        return None


@pytest.mark.parametrize("every_s", [0.05, 0.1, 0.3])
def test_samples_lie_as_far_apart_as_was_asked(every_s):
    source = Idle()
    options = CaptureOptions(Path("unused"), sample_every_s=every_s, duration_s=12 * every_s)
    assert run_loop(source, options, threading.Event(), silent) == "duration"
    gaps_s = np.diff(source.sampled_s)
    # On a busy machine one may be late; those after it are not.
    assert np.median(gaps_s) == pytest.approx(every_s, rel=0.2)
    assert 10 <= len(source.sampled_s) <= 13


def test_what_was_slept_through_is_not_made_up_for():
    source = Idle(first_takes_s=0.5)
    options = CaptureOptions(Path("unused"), sample_every_s=0.1, duration_s=1.2)
    run_loop(source, options, threading.Event(), silent)
    assert np.diff(source.sampled_s).min() > 0.05  # five were missed, and are not taken at once
