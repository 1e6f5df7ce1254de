"""Plans in memory that processes share: the same content, and no copy of it on its way."""

from dataclasses import dataclass

import numpy as np
import pytest

from replay.shared import SMALL_BYTES, Packed, share
from replay.worker import call_in_fresh_process, process_context


@dataclass(frozen=True, eq=False)
class Job:
    title: str
    large: np.ndarray
    part: np.ndarray
    small: np.ndarray
    none: np.ndarray | None = None


def made() -> Job:
    large = np.arange(SMALL_BYTES, dtype=np.int64)
    return Job("a job", large, (large % 251).astype(np.uint8), np.arange(5))


def what_it_has(job: Job) -> tuple[bool, int, int, int]:
    """Asked of another process: whether it may write to the columns, and what they hold."""
    return job.large.flags.writeable, int(job.large.sum()), int(job.part.sum()), int(job.small[4])


def test_large_arrays_move_once_and_hold_what_they_held():
    job, same = made(), made()
    share(job)
    moved = job.large
    share(job)
    assert job.large is moved
    assert not job.large.flags.writeable
    assert job.small.flags.writeable
    assert job.large.tolist() == same.large.tolist()
    assert job.part.tolist() == same.part.tolist()


@pytest.mark.parametrize("shared", [False, True])
def test_a_process_gets_the_value_itself(shared):
    job = made()
    if shared:
        share(job)
    found = call_in_fresh_process(process_context(), what_it_has, job, 10**11)
    assert found == (not shared, int(job.large.sum()), int(job.part.sum()), 4)


def test_only_what_is_not_shared_is_sent():
    job = made()
    size = len(job.large) * 8
    assert sum(isinstance(part, bytearray) for part in Packed(job).parts) == 3
    share(job)
    packed = Packed(Job("halves", job.large[7:], job.part[::-1], job.small))
    (tail, *_), small = packed.parts[:1], packed.parts[-1]
    assert (tail.offset_bytes, tail.size_bytes) == (7 * 8, size - 7 * 8)
    assert small == job.small.tobytes()
