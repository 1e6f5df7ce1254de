"""A call by itself makes the same row, whichever of the two records told of it."""

import numpy as np
import pytest

from tracer.engine import decode
from tracer.engine.decode_calls import HOST_CALL, call_descriptors, host_calls
from tracer.trace.schema import Call

BEGIN_NS = 1 << 40
LARGEST = {
    "token": decode.NO_REQUEST,
    "address": 2**64 - 4096,
    "length_bytes": 2**64 - 1,
    "advice": -1,
    "tid": 2**22,
    "error": 4095,
}
"""What a field can hold at most: a call may be made with any arguments."""


def both(count: int, **fields: object) -> tuple[np.ndarray, np.ndarray]:
    """The same calls as runs of one, and by themselves; fd and pieces by their own names."""
    rng = np.random.default_rng(count)
    runs, singles = np.zeros(count, decode.HOST_CALLS), np.zeros(count, HOST_CALL)
    given = {name: rng.integers(0, 1000, count) for name in LARGEST} | fields
    for name, value in given.items():
        runs[name] = value
        if name not in ("fd", "pieces"):
            singles[name] = value
    is_vector = runs["call"] == Call.PROCESS_MADVISE
    singles["fd_or_pieces"] = np.where(is_vector, runs["pieces"], runs["fd"])
    for records in (runs, singles):
        records["first_ns"] = BEGIN_NS + np.arange(count) * 1000
        records["last_ns"] = records["first_ns"] + 300 + np.arange(count).astype(np.uint64)
    runs["count"] = 1
    runs["total_ns"] = runs["worst_ns"] = runs["last_ns"] - runs["first_ns"]
    return runs, singles


def assert_same_rows(runs: np.ndarray, singles: np.ndarray) -> None:
    seq, gpa = np.arange(len(runs)) - 1, np.arange(len(runs))[::-1] * 4096 - 4096
    of_runs, of_singles = host_calls(runs, seq, gpa), host_calls(singles, seq, gpa)
    of_runs.validate(full=True)
    assert of_singles.schema == of_runs.schema
    assert of_singles.to_pylist() == of_runs.to_pylist()


@pytest.mark.parametrize("count", [0, 1, 100])
@pytest.mark.parametrize("call", [Call.MADVISE, Call.MMAP, Call.FALLOCATE])
def test_calls_of_every_kind_make_the_same_rows(call: Call, count: int) -> None:
    fd = np.arange(count) + 2**31 - 200 if call == Call.FALLOCATE else 0
    runs, singles = both(count, call=call, fd=fd)
    assert_same_rows(runs, singles)
    assert np.array_equal(call_descriptors(runs), call_descriptors(singles))


def test_pieces_of_vectors_make_the_same_rows() -> None:
    pieces = np.array([3, 0, 0, 1024, 0, 1, 0])
    runs, singles = both(7, call=Call.PROCESS_MADVISE, pieces=pieces)
    is_later = np.array([False, True, True, False, True, False, False])  # the last one failed
    for name in ("total_ns", "worst_ns"):
        runs[name][is_later] = 0
    singles["later"] = is_later
    assert_same_rows(runs, singles)
    batch = host_calls(singles, np.arange(7), np.arange(7))
    assert batch["pieces"].to_pylist() == [3, None, None, 1024, None, 1, None]
    assert batch["total_ns"].to_pylist() == [300, 0, 0, 303, 0, 305, 306]


def test_a_mixture_of_calls_makes_the_same_rows() -> None:
    call = np.array([Call.MADVISE, Call.FALLOCATE, Call.PROCESS_MADVISE, Call.MMAP])
    assert_same_rows(*both(4, call=call, fd=[0, 9, 0, 0], pieces=[0, 0, 2, 0]))


@pytest.mark.parametrize("field", LARGEST)
def test_no_value_that_a_call_can_have_is_cut(field: str) -> None:
    runs, singles = both(3, **{field: LARGEST[field]})
    assert int(singles[field][0]) == LARGEST[field]
    assert_same_rows(runs, singles)
