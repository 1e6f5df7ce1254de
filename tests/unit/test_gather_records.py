"""Records gathered to batches: whole ones in a flood, and all of them in time."""

import numpy as np
import pytest

from tracer.record import capture
from tracer.record.capture import BATCH_BYTES, BATCH_S, Gather

RECORD = np.dtype([("number", np.uint64)])
IN_BATCH = BATCH_BYTES // RECORD.itemsize


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(capture, "time", found)
    return found


def records(first: int, count: int):
    return np.arange(first, first + count, dtype=np.uint64).view(RECORD)


def test_a_flood_is_written_in_whole_batches_and_what_is_left_comes_in_time(clock) -> None:
    emitted = []
    gather = Gather(lambda batch: emitted.append(batch["number"].tolist()))
    sent, part = 0, IN_BATCH * 2 // 5
    for _ in range(10):
        gather.add(records(sent, part))
        sent += part
    assert [len(batch) for batch in emitted] == [IN_BATCH] * 3
    gather.add(records(sent, 3 * IN_BATCH))
    sent += 3 * IN_BATCH
    assert {len(batch) for batch in emitted} == {IN_BATCH}
    clock.now_s += BATCH_S
    gather.add(records(0, 0))
    assert [number for batch in emitted for number in batch] == list(range(sent))
    gather.flush()
    assert sum(len(batch) for batch in emitted) == sent


def test_flush_keeps_nothing(clock) -> None:
    emitted = []
    gather = Gather(lambda batch: emitted.append(len(batch)))
    gather.add(records(0, IN_BATCH + 5))
    assert emitted == [IN_BATCH]
    gather.flush()
    assert emitted == [IN_BATCH, 5]
