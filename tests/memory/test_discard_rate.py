"""The probe that rings are sized by, on this machine's memory."""

import mmap
import time
from pathlib import Path

from tracer.engine.ring_size import discard_ns

CALLS = 2000


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def test_a_discard_is_timed_in_milliseconds_and_nothing_is_left_behind() -> None:
    discard_ns.__wrapped__()
    before, begin_s = mappings(), time.monotonic()
    found_ns = discard_ns.__wrapped__()
    took_s = time.monotonic() - begin_s
    assert mappings() <= before
    # 16 batches of 200 calls, and what it takes to set them up on a busy machine.
    assert took_s < 16 * 200 * 100 * found_ns / 1e9 + 0.5
    assert 10 < found_ns < 1e6


def test_machine_code_discards_no_slower_than_the_interpreter() -> None:
    memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    batches = []
    for _ in range(5):
        begin_ns = time.perf_counter_ns()
        for _ in range(CALLS):
            memory.madvise(mmap.MADV_DONTNEED)
        batches.append((time.perf_counter_ns() - begin_ns) / CALLS)
    assert discard_ns() < min(batches) * 1.5
