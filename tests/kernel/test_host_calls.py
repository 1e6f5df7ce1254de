"""Discards of one thread, recorded by the real BPF program on this kernel."""

import ctypes
import mmap
import os
import threading
import time

import numpy as np
import pytest

from tests.kernel.conftest import RING_BYTES, CallRecorder
from tracer.engine import decode_calls
from tracer.engine.host_engine import HostEngine
from tracer.engine.ring import join_records
from tracer.engine.vm_probes import Count, Quota, Target
from tracer.sites.probes import Kind

PAGE = mmap.PAGESIZE
DONTNEED = mmap.MADV_DONTNEED
MERGED, SINGLE = True, False
TRACEPOINT, RAW = (Kind.TRACEPOINT,), (Kind.RAW_TRACEPOINT,)
BREAK = 2000


def discard(memory: mmap.mmap, page: int, pages: int = 1) -> None:
    memory.madvise(DONTNEED, page * PAGE, pages * PAGE)


def close_run(memory: mmap.mmap) -> None:
    """A far page with another length: ends the run before it, so that the ring holds all of it."""
    discard(memory, BREAK, 3)


@pytest.mark.parametrize("recorder", [(MERGED, TRACEPOINT), (MERGED, RAW)], indirect=True)
def test_falling_pages_become_one_run(recorder, pages):
    memory, address = pages
    with recorder.in_request(token=7):
        for page in range(100, 100 - 23, -1):
            discard(memory, page)
        close_run(memory)
    (run,) = recorder.ring.read()
    assert run["token"] == 7
    assert run["count"] == 23
    assert run["step"] == -1
    assert run["address"] == address + 100 * PAGE
    assert run["length_bytes"] == PAGE
    assert run["advice"] == DONTNEED
    assert run["error"] == 0
    assert 0 < run["worst_ns"] <= run["total_ns"] <= run["last_ns"] - run["first_ns"]
    assert recorder.lost() == 0


@pytest.mark.parametrize("recorder", [(SINGLE, TRACEPOINT)], indirect=True)
def test_every_call_is_a_record_without_merging(recorder, pages):
    memory, address = pages
    before_ns = time.monotonic_ns()
    with recorder.in_request(token=0):
        for page in range(23):
            discard(memory, page)
            # At once: none of them waits for the next.
            (call,) = recorder.ring.read()
            assert (call["token"], call["address"]) == (0, address + page * PAGE)
            assert (call["length_bytes"], call["advice"], call["error"]) == (PAGE, DONTNEED, 0)
            assert call["tid"] == threading.get_native_id()
            assert before_ns < call["first_ns"] < call["last_ns"] < time.monotonic_ns()


def test_runs_break_where_direction_length_or_advice_change(recorder, pages):
    memory, _ = pages
    with recorder.in_request(token=0):
        for page in (10, 11, 12, 11, 10):
            discard(memory, page)
        discard(memory, 20, 2)
        memory.madvise(mmap.MADV_WILLNEED, 22 * PAGE, 2 * PAGE)
        close_run(memory)
    runs = recorder.ring.read()
    seen = list(zip(runs["count"], runs["step"], runs["length_bytes"] // PAGE, strict=True))
    assert seen == [(3, 1, 1), (2, -1, 1), (1, 0, 2), (1, 0, 2)]
    assert runs["advice"].tolist() == [DONTNEED, DONTNEED, DONTNEED, mmap.MADV_WILLNEED]


def test_a_failed_call_is_kept_apart_with_its_errno(recorder, pages):
    memory, _ = pages
    with recorder.in_request(token=0):
        discard(memory, 1)
        with pytest.raises(OSError):
            memory.madvise(12345, 2 * PAGE, PAGE)
        close_run(memory)
    good, bad = recorder.ring.read()
    assert (good["error"], bad["error"]) == (0, 22)
    assert bad["advice"] == 12345


def test_hole_punches_are_recorded_with_their_file_offset(recorder, pages):
    memory, _ = pages
    descriptor = os.memfd_create("aerostat-test")
    os.ftruncate(descriptor, 64 * PAGE)
    keep_size_punch_hole = 3
    fallocate = ctypes.CDLL(None).fallocate64
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    with recorder.in_request(token=0):
        for page in range(5):
            assert fallocate(descriptor, keep_size_punch_hole, page * PAGE, PAGE) == 0
        close_run(memory)
    os.close(descriptor)
    (run,) = recorder.ring.read()
    assert (run["call"], run["count"], run["step"]) == (1, 5, 1)
    assert (run["address"], run["advice"]) == (0, keep_size_punch_hole)


def process_madvise(pieces: list[tuple[int, int]]) -> int:
    """Discard a vector of (address, bytes) of this process; bytes advised."""
    vector = (ctypes.c_uint64 * (2 * len(pieces)))(*[word for piece in pieces for word in piece])
    pidfd = os.pidfd_open(os.getpid())
    call = ctypes.CDLL(None, use_errno=True).syscall
    done = call(440, pidfd, ctypes.byref(vector), len(pieces), DONTNEED, 0)
    os.close(pidfd)
    return done


def test_the_pieces_of_a_vector_are_calls_and_adjacent_ones_are_merged(recorder, pages):
    memory, address = pages
    pieces = [(address + page * PAGE, PAGE) for page in (50, 49, 48, 10)]
    with recorder.in_request(token=3):
        assert process_madvise(pieces) == 4 * PAGE
        close_run(memory)
    falling, single = recorder.ring.read()
    assert (falling["call"], falling["count"], falling["step"], falling["pieces"]) == (2, 3, -1, 4)
    assert falling["address"] == address + 50 * PAGE
    assert falling["total_ns"] > 0
    assert (single["count"], single["address"], single["pieces"]) == (1, address + 10 * PAGE, 0)
    assert single["total_ns"] == 0  # the first piece carries the time of all


@pytest.mark.parametrize("recorder", [(MERGED, TRACEPOINT), (MERGED, RAW)], indirect=True)
def test_a_program_runs_again_for_the_pieces_that_one_run_does_not_look_at(recorder, pages):
    memory, address = pages
    pieces = [(address + 2 * page * PAGE, PAGE) for page in range(1024)]
    with recorder.in_request(token=3):
        assert process_madvise(pieces) == 1024 * PAGE
        discard(memory, 4000)
        close_run(memory)
    *runs, call = recorder.ring.read()
    assert [(run["address"], run["count"]) for run in runs] == [(at, 1) for at, _ in pieces]
    assert [run["pieces"] for run in runs] == [1024] + 1023 * [0]
    assert {run["last_ns"] for run in runs} == {runs[0]["last_ns"]}
    assert (call["call"], call["address"]) == (0, address + 4000 * PAGE)
    counts = recorder.probes.counts()
    assert (counts[Count.LOST_PIECES], counts[Count.HIT_PROCESS_MADVISE]) == (0, 1)


def test_pieces_are_counted_as_lost_where_the_program_does_not_run_again(recorder, pages):
    memory, address = pages
    again = recorder.engine.program["again_on_vector_exit"]
    del again[again.Key(0)]
    pieces = [(address + 2 * page * PAGE, PAGE) for page in range(100)]
    with recorder.in_request(token=3):
        assert process_madvise(pieces) == 100 * PAGE
        discard(memory, 4000)
        close_run(memory)
    *runs, call = recorder.ring.read()
    assert [run["address"] for run in runs] == [at for at, _ in pieces[:64]]
    assert call["address"] == address + 4000 * PAGE  # no piece of that vector
    assert (recorder.probes.counts()[Count.LOST_PIECES], recorder.lost()) == (36, 0)


def test_fresh_memory_mapped_over_the_guests_is_recorded_and_other_mappings_are_not(
    recorder, pages
):
    memory, address = pages
    mmap_call = ctypes.CDLL(None).mmap
    mmap_call.restype = ctypes.c_void_p
    mmap_call.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 5]
    fixed_private_anonymous = 0x10 | 0x02 | 0x20
    with recorder.in_request(token=3):
        for page in (4, 5):
            at = address + page * PAGE
            assert mmap_call(at, PAGE, 3, fixed_private_anonymous, 2**64 - 1, 0) == at
        other = mmap.mmap(-1, PAGE)
        close_run(memory)
    other.close()
    (run,) = recorder.ring.read()
    assert (run["call"], run["count"], run["step"]) == (3, 2, 1)
    assert (run["address"], run["advice"]) == (address + 4 * PAGE, fixed_private_anonymous)


def test_a_thread_outside_a_request_leaves_no_trace(recorder, pages):
    memory, _ = pages
    for page in range(23):
        discard(memory, page)
    assert len(recorder.ring.read()) == 0


@pytest.mark.parametrize("recorder", [(SINGLE, TRACEPOINT)], indirect=True)
def test_a_full_ring_loses_records_and_counts_every_one(recorder, pages):
    memory, _ = pages
    calls = 70_013
    with recorder.in_request(token=0):
        for index in range(calls):
            discard(memory, index % 1000)
    kept = recorder.ring.read()
    assert len(kept) == (RING_BYTES - 1) // 64
    assert len(kept) + recorder.lost() == calls


@pytest.mark.parametrize("recorder", [(SINGLE, TRACEPOINT)], indirect=True)
def test_the_ring_wraps_without_losing_or_repeating(recorder, pages):
    memory, address = pages
    seen = []
    with recorder.in_request(token=0):
        for index in range(100_003):
            discard(memory, index % 4001 + 7)
            if index % 20_000 == 19_999:
                seen.append(recorder.ring.read())
    seen.append(recorder.ring.read())
    calls = np.concatenate(seen)
    assert recorder.lost() == 0
    assert len(calls) == 100_003
    expected = address + (np.arange(100_003) % 4001 + 7) * PAGE
    assert np.array_equal(calls["address"], expected.astype(np.uint64))


def test_a_quota_of_bytes_is_held_against_what_a_single_call_takes(pages):
    memory, _ = pages
    quota = Quota(records_per_s=1 << 30, bytes_per_s=1000 * decode_calls.HOST_CALL.itemsize)
    recorder = CallRecorder(SINGLE, TRACEPOINT, quota)
    with recorder.in_request(token=0):
        for page in range(3000):
            discard(memory, page)
    kept, counts = recorder.ring.read(), recorder.probes.counts()
    recorder.close()
    assert len(kept) == 1000
    assert (counts[Count.QUOTA_CALLS], counts[Count.LOST_CALLS]) == (2000, 0)


def test_only_holes_in_guest_memory_are_discards_of_a_vmm_without_handlers(pages):
    fallocate = ctypes.CDLL(None).fallocate64
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    keep_size_punch_hole = 3
    memory, address = pages
    guest = os.memfd_create("guest")
    os.ftruncate(guest, 64 * PAGE)
    target = Target(
        pid=os.getpid(),
        sites=None,
        spans=((address, address + 16 * PAGE),),
        descriptors=(guest,),
        merge=False,
        ring_bytes=1 << 16,
        requests_ring_bytes=1 << 16,
        quota=Quota(),
    )
    with HostEngine(calls=False) as engine:
        engine.watch_other_calls()  # first: it measures with this process as a VM
        probes = engine.add(target)
        probes.attach()
        for page in range(3):
            assert fallocate(guest, keep_size_punch_hole, page * PAGE, PAGE) == 0
            assert fallocate(guest, 0, page * PAGE, PAGE) == 0  # to have room for it beforehand
            discard(memory, page)
            discard(memory, 20 + page)
        counts = probes.counts()
        records = join_records([probes.calls.read(), probes.stop()])
        probes.close()
    os.close(guest)
    seen = list(zip(records["call"], records["address"], strict=True))
    wanted = [((1, page * PAGE), (0, address + page * PAGE)) for page in range(3)]
    assert seen == [call for both in wanted for call in both]
    assert counts[Count.OUTSIDE_CALLS] == 6
