"""Watched runs and touching again, on memory that is really discarded."""

import os

import numpy as np
import pytest

from replay import native
from replay.backings import Advice
from replay.huge_pages import huge_pages_of, machine_splits
from replay.memory import GuestMemory
from replay.native.types import NativeError, Operations, Page, new_watch
from replay.pauses import pauses
from replay.ranges import Runs, empty
from replay.residency import Residency
from replay.schedule import ReplayOptions, replay_trace
from replay.worker import run_in_fresh_process

INFLATED, DEFLATED = 2048, 512
PAGES = 4096
SIZE_BYTES = PAGES << 12
FAST = {"runs": 2, "warmup": 0}


def runs(*pairs: tuple[int, int]) -> Runs:
    columns = np.array(pairs, np.int64).reshape(-1, 2)
    return Runs(columns[:, 0].copy(), columns[:, 1].copy())


def small(*pairs: tuple[int, int]) -> Residency:
    return Residency(runs(*pairs), empty(), "test")


def discards(*pairs: tuple[int, int]) -> Operations:
    columns = np.array(pairs, np.uint64).reshape(-1, 2) << np.uint64(12)
    advice = np.full(len(pairs), Advice.DONTNEED, np.uint8)
    return Operations(advice, columns[:, 0].copy(), columns[:, 1].copy(), np.zeros(len(pairs), int))


def by_name(results):
    return {strategy.name: strategy for strategy in results.strategies}


def test_every_call_is_timed_apart_from_what_counts(make_trace):
    options = ReplayOptions(make_trace(), ("qemu", "vectored", "range"), watched_runs=2, **FAST)
    found = by_name(replay_trace(options))
    assert found["nop"].watched == ()
    for name in ("qemu", "vectored", "range"):
        strategy = found[name]
        assert len(strategy.runs) == len(strategy.watched) == 2
        for run in strategy.watched:
            times = run.pauses
            assert times.calls == strategy.calls
            assert 0 < times.p50_ns <= times.p90_ns <= times.p99_ns <= times.p999_ns
            assert times.p999_ns <= times.max_ns < run.discard_ns
            assert 0 <= times.harness_ns < times.max_ns
            assert 0 <= times.worst_operation < strategy.operations
        merged = pauses(strategy.watched)
        assert merged.get_total_count() == 2 * strategy.calls
        worst_ns = max(run.pauses.max_ns for run in strategy.watched)
        assert merged.get_max_value() == pytest.approx(worst_ns, rel=0.002)
    assert found["qemu"].watched[0].pauses.worst_pages == 1
    assert found["vectored"].calls < found["vectored"].operations


def test_memory_is_seen_to_go_between_the_calls(make_trace):
    options = ReplayOptions(make_trace(), ("qemu",), **FAST)
    (run,) = by_name(replay_trace(options))["qemu"].watched
    seen = run.memory
    assert len(seen.at_ns) == len(seen.operations) == len(seen.rss_bytes) > 100
    assert list(seen.at_ns) == sorted(seen.at_ns)
    assert (seen.operations[0], seen.operations[-1]) == (0, INFLATED + DEFLATED)
    assert list(seen.operations) == sorted(set(seen.operations))
    assert seen.file_bytes is None
    # Kernels that count RSS in batches are off by less than this.
    gone_bytes = seen.rss_bytes[0] - seen.rss_bytes[-1]
    assert gone_bytes == pytest.approx(INFLATED << 12, abs=1 << 20)


@pytest.mark.parametrize("backing", ["memfd", "shmem"])
def test_shared_memory_is_watched_where_it_lies(make_trace, backing):
    options = ReplayOptions(make_trace(), ("range",), backing=backing, **FAST)
    (run,) = by_name(replay_trace(options))["range"].watched
    if backing == "shmem":
        assert run.memory.file_bytes is None
    else:
        file_bytes = run.memory.file_bytes
        assert file_bytes[0] - file_bytes[-1] == INFLATED << 12


def test_a_plan_of_one_call_has_two_samples():
    watch = new_watch(1, 128)
    with GuestMemory(SIZE_BYTES, "anon", seed=1) as memory:
        memory.restore(small((0, 1000)))
        memory.execute(discards((0, 1000)), watch)
        assert memory.verify().findings.wrong == 0
    assert watch.samples == 2
    assert watch.operations[:2].tolist() == [0, 1]
    assert (watch.per_call_ns > 0).all()


@pytest.mark.parametrize("capacity", [0, 1, 2, 7, 5000])
def test_samples_fit_the_room_there_is(capacity):
    watch = new_watch(900, capacity)
    with GuestMemory(SIZE_BYTES, "anon", seed=1) as memory:
        memory.restore(small((0, 1000)))
        memory.execute(discards(*((page, 1) for page in range(900))), watch)
    assert watch.samples <= min(capacity, 901)
    if capacity >= 2:
        done = watch.operations[: watch.samples].tolist()
        assert (done[0], done[-1]) == (0, 900)
        assert min(capacity - 1, 901) <= watch.samples


def test_a_watch_of_another_length_is_refused():
    with GuestMemory(SIZE_BYTES, "anon", seed=1) as memory, pytest.raises(ValueError, match="one"):
        memory.execute(discards((0, 1)), new_watch(2, 0))


def test_threads_of_a_plan_are_watched_too(make_trace):
    name = "parallel:threads=2,border_bytes=4096"
    results = replay_trace(ReplayOptions(make_trace(), (name,), siblings=1, **FAST))
    (run,) = results.strategies[1].watched
    assert run.pauses.calls == results.strategies[1].calls


def test_touching_again_faults_where_memory_went(make_trace):
    names = ("qemu", "free", "populate")
    results = replay_trace(ReplayOptions(make_trace(), names, **FAST))
    assert results.settings.touched_pages == DEFLATED
    found = by_name(results)
    for name, faults in (("nop", 0), ("qemu", DEFLATED), ("free", 0), ("populate", 0)):
        assert [run.touch_faults for run in found[name].runs] == [faults, faults], name
        assert all(run.touch_ns > 0 for run in found[name].runs)
    assert found["qemu"].summary.touch_ns.median > found["nop"].summary.touch_ns.median


def test_nothing_is_touched_again_where_nothing_was_resident(make_trace):
    results = replay_trace(ReplayOptions(make_trace(), ("qemu",), residency="untouched", **FAST))
    assert results.settings.touched_pages == 0
    assert {run.touch_ns for run in results.strategies[1].runs} == {None}
    assert results.strategies[1].summary.touch_ns is None


@pytest.mark.parametrize("backing", ["anon", "memfd", "shmem", "file-private"])
def test_a_touch_hides_nothing_from_the_check(backing):
    """What was kept keeps its stamps, what was discarded reads zero, a leftover is still seen."""
    with GuestMemory(SIZE_BYTES, backing, seed=1) as memory:
        memory.restore(small((0, 1000)))
        memory.state[10] = Page.GONE  # as if a plan had discarded it, and the kernel had not
        found = memory.touch(runs((0, 20), (2000, 5)))
        check = memory.verify()
    assert found.pages == 25
    assert (check.findings.wrong, check.findings.first_wrong_page) == (1, 10)
    assert check.findings.stamped_checked == 999


@pytest.mark.parametrize("bad", [(PAGES, 1), (0, PAGES + 1), (1, (1 << 52) - 1)])
def test_a_touch_outside_is_refused_and_nothing_is_written(bad):
    with GuestMemory(SIZE_BYTES, "anon", seed=1) as memory:
        columns = (np.array(column, np.uint64) for column in zip((0, 5), bad, strict=True))
        with pytest.raises(NativeError, match="EINVAL"):
            native.touch(memory.mapping, *columns)
        assert memory.resident_pages() == 0


def test_huge_pages_that_go_whole_and_that_are_split():
    with GuestMemory(8 << 20, "anon", seed=1, thp="always") as memory:
        memory.restore(Residency(empty(), runs((0, 2048)), "test"))
        before = native.huge_units(memory.mapping)
        if before is None:
            pytest.skip("this kernel does not say which pages are huge (before Linux 6.7)")
        if not before.all():
            pytest.skip("the kernel had no four huge pages to give")
        splits = machine_splits()
        memory.execute(discards((0, 512), (600, 1), (1536, 256)))
        after = native.huge_units(memory.mapping)
        resident = native.residency(memory.mapping)
        found = huge_pages_of(before, after, resident, (splits, machine_splits()))
    assert (found.before_pages, found.after_pages) == (2048, 512)
    assert (found.freed_pages, found.split_pages) == (512, 1024)
    assert found.machine_pmd_splits >= 2


def test_counters_that_a_kernel_lacks_are_not_observed(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/vmstat").write_text("nr_free_pages 7\nthp_split_pmd 5\n")
    assert machine_splits(tmp_path) == {"thp_split_pmd": 5}
    assert machine_splits(tmp_path / "nowhere") == {}
    unit = np.ones(1, np.uint8)
    found = huge_pages_of(unit, unit, np.ones(512, np.uint8), ({}, {"thp_split_pmd": 5}))
    assert found.machine_pmd_splits is None


def test_a_run_stays_on_its_cpus_unless_told_otherwise(make_trace, monkeypatch):
    fast = {"runs": 1, "warmup": 0, "watched_runs": 0}
    jobs = []

    def seen(processes, job, timeout_ns):
        jobs.append(job)
        return run_in_fresh_process(processes, job, timeout_ns)

    monkeypatch.setattr("replay.rounds.run_in_fresh_process", seen)
    pinned = replay_trace(ReplayOptions(make_trace(), ("range",), **fast))
    allowed = sorted(os.sched_getaffinity(0))
    sides = (allowed[-2], allowed[-1]) if len(allowed) > 1 else None
    assert {job.send_cpus for job in jobs} == {sides}
    jobs.clear()
    assert pinned.settings.cpu == max(os.sched_getaffinity(0))
    free = replay_trace(ReplayOptions(make_trace("again"), ("range",), cpu=None, **fast))
    assert free.settings.cpu is None
    assert {job.send_cpus for job in jobs} == {None}
    assert any("--cpu auto" in warning for warning in free.warnings)
