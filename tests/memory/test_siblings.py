"""Sibling threads: they read the memory under test, are interrupted for it, and change nothing."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from replay import native
from replay.memory import GuestMemory
from replay.native.types import NativeError, Operations
from replay.ranges import Runs
from replay.residency import Residency
from replay.schedule import ReplayOptions, replay_trace

PAGES = 4096


def resident(*ranges: tuple[int, int]) -> Residency:
    none = np.zeros(0, np.int64)
    start, pages = np.array(ranges, np.int64).reshape(-1, 2).T
    return Residency(Runs(start, pages), Runs(none, none), "")


def discards(pages: np.ndarray) -> Operations:
    count = len(pages)
    return Operations(
        np.full(count, 4, np.uint8),
        pages.astype(np.uint64) << np.uint64(12),
        np.full(count, 4096, np.uint64),
        np.arange(count, dtype=np.int64),
    )


def referenced_kib(memory: GuestMemory) -> int:
    """Memory of the mapping that some CPU has used since the bits were cleared."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if area := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            begin = int(area[1], 16)
            end = memory.mapping.base + memory.mapping.size_bytes
            inside = memory.mapping.base <= begin < end
        elif inside and line.startswith("Referenced:"):
            total += int(line.split()[1])
    return total


def until(reached: Callable[[], bool]) -> bool:
    for _ in range(500):
        if reached():
            return True
        time.sleep(0.01)
    return False


def test_siblings_read_the_pages_they_are_given_and_no_others() -> None:
    pages = np.array([3, 70, 901], np.uint64)
    with GuestMemory(PAGES << 12, "anon", 7) as memory:
        memory.restore(resident((0, 1000)))
        with native.Siblings([min(os.sched_getaffinity(0))], memory.mapping, pages):
            # Clearing the bits while they run shows that they go on reading.
            Path("/proc/self/clear_refs").write_text("1")
            assert until(lambda: referenced_kib(memory) >= 12)
            assert referenced_kib(memory) == 12
        assert memory.resident_pages() == 1000
        check = memory.verify()
        assert check.findings.wrong == 0
        assert check.appeared_pages == 0


def test_what_siblings_may_read_is_resident_and_touched_by_nothing() -> None:
    with GuestMemory(PAGES << 12, "anon", 7) as memory:
        memory.restore(resident((100, 200), (1000, 5)))
        operations = discards(np.r_[150:290, 1000:1005, 2000:2003])
        assert memory.kept_pages(operations, 512).tolist() == [*range(100, 150), *range(290, 300)]
        few = memory.kept_pages(operations, 4).tolist()
        assert (few[0], few[-1], len(set(few))) == (100, 299, 4)
        assert memory.kept_pages(operations, 0).tolist() == []
        assert memory.kept_pages(discards(np.arange(PAGES)), 512).tolist() == []


def test_threads_run_only_within_the_context() -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = threads()
    none = np.zeros(0, np.uint64)
    with GuestMemory(PAGES << 12, "anon", 7) as memory:
        with native.Siblings([0, 0], memory.mapping, none):
            assert threads() == before + 2
        assert threads() == before
        with native.Siblings([], memory.mapping, none):
            assert threads() == before
        with (
            pytest.raises(NativeError, match="EINVAL"),
            native.Siblings([0], memory.mapping, np.array([PAGES], np.uint64)),
        ):
            pass
        assert threads() == before


def shootdowns(cpu: int) -> int:
    for line in Path("/proc/interrupts").read_text().splitlines():
        if line.lstrip().startswith("TLB:"):
            return int(line.split()[1 + cpu])
    raise AssertionError("/proc/interrupts has no line TLB")


def test_discards_interrupt_siblings_on_other_cpus() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("one CPU: there is no other one to interrupt")
    if "invlpgb" in Path("/proc/cpuinfo").read_text() or os.uname().machine != "x86_64":
        pytest.skip("this CPU flushes others' TLBs without interrupts")
    # A sibling that waits for its CPU behind another process is not interrupted: on a busy machine
    # one attempt may see none.
    assert until(lambda: interrupts_of_discards(cpus[0], cpus[1]) > 50)


def test_a_thread_rests_on_its_cpu_while_no_sibling_runs() -> None:
    cpu = max(os.sched_getaffinity(0))
    before = threads()
    none = np.empty(0, np.uint64)
    with GuestMemory(PAGES << 12, "anon", 7) as memory:
        with native.Siblings([], memory.mapping, none, cpu):
            (thread,) = threads() - before
            assert os.sched_getaffinity(int(thread)) == {cpu}
            assert until(lambda: switches(thread) > 3)  # It sleeps, and wakes now and then.
        assert threads() == before
        with pytest.raises(NativeError, match="CPU 1023"):
            native.Siblings([], memory.mapping, none, 1023).__enter__()


def threads() -> set[str]:
    return {path.name for path in Path("/proc/self/task").iterdir()}


def switches(thread: str) -> int:
    """How often a thread of this process went to sleep by itself."""
    status = Path(f"/proc/self/task/{thread}/status").read_text()
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])


def interrupts_of_discards(own_cpu: int, other_cpu: int) -> int:
    """Flush interrupts that a sibling's CPU takes for 1000 discards on another CPU."""
    allowed = os.sched_getaffinity(0)
    pages = np.arange(0, 2000, 2)
    with GuestMemory(PAGES << 12, "anon", 7) as memory:
        memory.restore(resident((0, PAGES)))
        operations = discards(pages)
        read = memory.kept_pages(operations, 512)
        os.sched_setaffinity(0, {own_cpu})
        try:
            with native.Siblings([other_cpu], memory.mapping, read):
                before = shootdowns(other_cpu)
                memory.execute(operations)
                interrupts = shootdowns(other_cpu) - before
        finally:
            os.sched_setaffinity(0, allowed)
        assert memory.resident_pages() == PAGES - len(pages)
        assert memory.verify().findings.wrong == 0
    return interrupts


@pytest.mark.parametrize("backing", ["anon", "memfd", "shmem", "file-private"])
def test_a_replay_with_siblings_leaves_memory_as_one_without(make_trace, backing: str) -> None:
    options = ReplayOptions(
        make_trace(), ("qemu", "range"), runs=1, warmup=0, siblings=1, backing=backing
    )
    for strategy in replay_trace(options).strategies:
        (run,) = strategy.runs
        assert run.sibling_pages == 512
        assert run.still_resident_pages == 0
        assert run.freed_pages == (0 if strategy.name == "nop" else 2048)


def test_siblings_that_find_nothing_to_read_are_told(make_trace) -> None:
    options = ReplayOptions(
        make_trace(), ("qemu",), runs=1, warmup=0, siblings=1, residency="untouched"
    )
    results = replay_trace(options)
    assert any("siblings read none of it" in warning for warning in results.warnings)
    alone = replay_trace(ReplayOptions(make_trace("b"), ("qemu",), runs=1, warmup=0))
    assert not any("siblings read" in warning for warning in alone.warnings)
    assert {run.sibling_pages for s in alone.strategies for run in s.runs} == {0}
