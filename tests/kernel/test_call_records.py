"""The two records of a call, by the real programs: the same calls make the same rows of a trace."""

import ctypes
import mmap
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.kernel.conftest import CallRecorder
from tests.kernel.test_host_calls import MERGED, RAW, SINGLE, TRACEPOINT, process_madvise
from tracer.engine.decode_calls import host_calls
from tracer.engine.host_engine import HostEngine
from tracer.engine.ring import Records, join_records
from tracer.engine.vm_probes import Quota, Target

PAGE = mmap.PAGESIZE
TIMES = ("first_ns", "last_ns", "total_ns", "worst_ns")


def rows(merge: bool, kinds: Any, do: Callable[[], None]) -> list[dict[str, Any]]:
    """Record what a block does; its rows, of times only whether there is one."""
    recorder = CallRecorder(merge, kinds)
    with recorder.in_request(token=6):
        do()
        # Runs that are open come last, as at the end of a recording.
        records = join_records([recorder.ring.read(), recorder.probes.threads.take_all()])
    assert recorder.lost() == 0
    recorder.close()
    return rows_of(records)


def rows_of(records: Records) -> list[dict[str, Any]]:
    nothing = np.full(len(records), -1)
    found = host_calls(records, nothing, nothing).to_pylist()
    for row in found:
        whole_ns = row["last_ns"] - row["first_ns"]
        assert row["total_ns"] == row["worst_ns"] and row["total_ns"] in (0, whole_ns)
        row.update({name: row[name] > 0 for name in TIMES})
    return found


@pytest.mark.parametrize("kinds", [TRACEPOINT, RAW])
def test_calls_that_cannot_be_merged_make_the_same_rows(kinds, pages):
    memory, address = pages
    file = os.memfd_create("aerostat-test")
    os.ftruncate(file, 64 * PAGE)
    odd, pidfd = (ctypes.c_uint64 * 2)(address + 1, PAGE), os.pidfd_open(os.getpid())
    libc = ctypes.CDLL(None)
    libc.fallocate64.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 5]

    def calls() -> None:
        for page in (10, 12, 14, 13):
            memory.madvise(mmap.MADV_DONTNEED, page * PAGE, PAGE * (page % 3 + 1))
        with pytest.raises(OSError):
            memory.madvise(0x7FFFFFFF, 20 * PAGE, PAGE)
        for page in (1, 3):
            assert libc.fallocate64(file, 3, page * PAGE, PAGE) == 0
        assert libc.fallocate64(file, 0x7FFFFFFF, 0, PAGE) == -1
        assert process_madvise([(address + page * PAGE, PAGE) for page in (50, 48, 40)]) == 3 * PAGE
        assert process_madvise([(address + 60 * PAGE, PAGE)]) == PAGE
        # Of a vector that is refused the row has the vector's own place.
        assert libc.syscall(440, pidfd, ctypes.byref(odd), 1, mmap.MADV_DONTNEED, 0) == -1
        fixed_private_anonymous_populate = 0x8032
        assert libc.mmap(address, PAGE, 3, fixed_private_anonymous_populate, 2**64 - 1, 0)

    merged, single = rows(MERGED, kinds, calls), rows(SINGLE, kinds, calls)
    os.close(file)
    os.close(pidfd)
    assert single == merged
    assert [row["call"] for row in single] == [0] * 5 + [1] * 3 + [2] * 5 + [3]
    assert [row["pieces"] for row in single[8:13]] == [3, None, None, 1, None]
    assert [row["total_ns"] for row in single[8:13]] == [True, False, False, True, True]
    assert [row["errno"] for row in single if row["errno"]] == [22, 95, 22]
    assert single[-1]["advice"] == 0x8032


def strangers(merge: bool, spans: tuple[tuple[int, int], ...], do: Callable[[], None]) -> Any:
    """As `rows`, of a VMM whose handlers are not known."""
    target = Target(
        pid=os.getpid(),
        sites=None,
        spans=spans,
        descriptors=(),
        merge=merge,
        ring_bytes=1 << 16,
        requests_ring_bytes=1 << 16,
        quota=Quota(),
    )
    with HostEngine(calls=False) as engine:
        engine.watch_other_calls()
        probes = engine.add(target)
        probes.attach()
        do()
        records = join_records([probes.calls.read(), probes.stop()])
        probes.close()
    return rows_of(records)


def test_of_a_vector_the_first_piece_that_is_recorded_carries_size_and_time(pages):
    _, address = pages
    spans = ((address + 8 * PAGE, address + 40 * PAGE),)
    pieces = [(address + page * PAGE, PAGE) for page in (2, 10, 20, 60, 30)]

    def calls() -> None:
        assert process_madvise(pieces) == 5 * PAGE

    single = strangers(SINGLE, spans, calls)
    assert single == strangers(MERGED, spans, calls)
    assert [row["hva"] for row in single] == [address + page * PAGE for page in (10, 20, 30)]
    assert [row["pieces"] for row in single] == [5, None, None]
    assert [row["total_ns"] for row in single] == [True, False, False]
