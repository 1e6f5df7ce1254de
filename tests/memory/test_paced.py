"""A run at a guest's pace: it writes before the device discards, and only the device is timed."""

import numpy as np
import pytest

from replay.backings import Advice
from replay.lifelike import STEPS, PacedJob, flush_interrupts, run_paced, two_cpus
from replay.memory import GuestMemory, rules_for
from replay.native import pacing
from replay.native.types import NativeError, Operations
from replay.ranges import Runs, empty
from replay.residency import Residency
from tracer.trace.schema import Queue

PAGES = 4096
NOWHERE = Residency(empty(), empty(), "test")


def operations(*calls: tuple[int, int, int]) -> Operations:
    """Discards as (request, first page, pages)."""
    request, page, pages = np.array(calls, np.int64).reshape(-1, 3).T
    return Operations(
        np.full(len(calls), Advice.DONTNEED, np.uint8),
        (page << 12).astype(np.uint64),
        (pages << 12).astype(np.uint64),
        request.copy(),
    )


def pace(written: list[int], *, runs: bool = False, evict_bytes: int = 0) -> pacing.Pace:
    return pacing.Pace(np.array(written, np.uint8), two_cpus()[1], runs, evict_bytes)


@pytest.mark.parametrize("runs", [False, True])
def test_written_pages_are_given_and_gone(runs: bool) -> None:
    work = operations((0, 0, 8), (0, 8, 8), (3, 100, 1), (4, 0, 8))
    with GuestMemory(PAGES << 12, "anon", seed=1) as memory:
        memory.restore(Residency(Runs(np.array([2000]), np.array([100])), empty(), "test"))
        turn = pace([1, 0, 1, 1], runs=runs, evict_bytes=1 << 20)
        outcome, span_ns = pacing.execute_paced(memory.mapping, work, rules_for("anon"), turn)
        assert memory.resident_pages() == 100
    assert (outcome.calls, outcome.failures, outcome.bytes) == (4, 0, 25 << 12)
    assert (span_ns > 0).tolist() == [True, False, True, True]
    assert 0 < int(span_ns.sum()) <= min(outcome.wall_ns, outcome.cpu_ns)


def test_only_what_is_marked_is_written() -> None:
    keep = Operations(
        np.full(2, Advice.WILLNEED, np.uint8),
        np.array([0, 64 << 12], np.uint64),
        np.array([16 << 12, 16 << 12], np.uint64),
        np.arange(2),
    )
    with GuestMemory(PAGES << 12, "anon", seed=1) as memory:
        memory.restore(NOWHERE)
        pacing.execute_paced(memory.mapping, keep, rules_for("anon"), pace([0, 1]))
        resident = memory.resident_pages()
    assert resident == 16


def test_a_plan_beyond_memory_is_refused_before_anything_is_written() -> None:
    work = operations((0, 0, 8), (1, PAGES, 1))
    with GuestMemory(PAGES << 12, "anon", seed=1) as memory:
        memory.restore(NOWHERE)
        with pytest.raises(NativeError, match="operation 1 of 2 was refused"):
            pacing.execute_paced(memory.mapping, work, rules_for("anon"), pace([1, 1]))
        assert memory.resident_pages() == 0


def test_a_plan_of_nothing() -> None:
    with GuestMemory(PAGES << 12, "anon", seed=1) as memory:
        outcome, span_ns = pacing.execute_paced(
            memory.mapping, operations(), rules_for("anon"), pace([])
        )
    assert (outcome.wall_ns, outcome.calls, len(span_ns)) == (0, 0, 0)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_every_step_times_every_queue(step) -> None:
    cpu, guest_cpu = two_cpus()
    work = operations((0, 0, 64), (1, 512, 64))
    job = PacedJob(
        title="test",
        seed=1,
        size_bytes=PAGES << 12,
        backing="anon",
        thp="madvise",
        residency=NOWHERE,
        operations=work,
        queue=np.array([Queue.INFLATE, Queue.REPORTING], np.uint8),
        written=np.ones(2, np.uint8),
        step=step,
        cpu=cpu,
        guest_cpu=guest_cpu,
    )
    done = run_paced(job)
    assert set(done.discard_ns) == {Queue.INFLATE, Queue.REPORTING}
    assert min(done.discard_ns.values()) > 0
    assert done.failures == 0


def test_flush_interrupts_are_read_by_cpu(tmp_path) -> None:
    (tmp_path / "proc").mkdir()
    file = tmp_path / "proc/interrupts"
    file.write_text("      CPU0  CPU3\n  0: 9 9 IO-APIC\nTLB: 12 34 TLB shootdowns\n")
    assert flush_interrupts(3, tmp_path) == 34
    assert flush_interrupts(1, tmp_path) is None
    file.write_text("")
    assert flush_interrupts(0, tmp_path) is None
