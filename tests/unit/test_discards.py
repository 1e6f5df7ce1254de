"""Sums of the VMM's system calls by what they asked for, on rows that can be added up by hand."""

from pathlib import Path

import pytest

from aerostat.discards import Discards, advice_name, discards
from tests.unit.trace_samples import call, calls, described
from tracer.trace.reader import open_trace
from tracer.trace.schema import Call, Side
from tracer.trace.writer import TraceWriter

DONTNEED, WILLNEED, FREE = 4, 3, 8
PAGE = 4096


def found(path: Path, *rows: dict, **manifest) -> tuple[Discards, ...]:
    with TraceWriter(path / "a.balloon", Side.HOST) as writer:
        writer.append("calls", calls(rows))
        writer.close(described(**manifest))
    return discards(open_trace(writer.path))


def one(page: int, pages: int = 1, **columns) -> dict:
    """A call by itself."""
    at = {"gpa": page * PAGE, "length_bytes": pages * PAGE}
    return call(None, **{**at, "count": 1, "step": 0, **columns})


def merged(page: int, count: int, step: int, **columns) -> dict:
    """Calls of one page each, merged by the kernel; `page` is the first call's."""
    return one(page, count=count, step=step, **columns)


def test_calls_are_summed_by_kind(tmp_path):
    (kept, outside, back) = found(
        tmp_path,
        merged(10, 20, 1, total_ns=2000, worst_ns=300),
        one(500, 512, total_ns=100, worst_ns=100),
        one(7, advice=WILLNEED, total_ns=10),
        merged(0, 3, 1, gpa=None, hva=1 << 40, total_ns=5),
    )
    assert (kept.call, kept.advice, kept.on_guest_memory) == ("madvise", "DONTNEED", True)
    assert (kept.calls, kept.pages, kept.bytes) == (21, 532, 532 * PAGE)
    assert (kept.total_ns, kept.worst_ns) == (2100, 300)
    assert kept.ns_per_page == 2100 / 532
    assert (back.advice, back.calls, back.on_guest_memory) == ("WILLNEED", 1, True)
    assert (outside.calls, outside.pages, outside.on_guest_memory) == (3, 3, False)


def test_failed_calls_count_and_cover_nothing(tmp_path):
    (item,) = found(
        tmp_path, one(1), merged(2, 5, 1, errno=22), one(9, errno=12), one(10, errno=4095)
    )
    assert (item.calls, item.failed, item.pages) == (8, 7, 1)
    assert item.errnos == {"EINVAL": 5, "ENOMEM": 1, "other": 1}


def test_without_a_memory_map_nobody_knows_what_lies_on_guest_memory(tmp_path):
    (item,) = found(tmp_path, one(1, gpa=None, hva=4096), regions=())
    assert item.on_guest_memory is None


@pytest.mark.parametrize(
    ("rows", "runs"),
    [
        ([merged(10, 5, 1), merged(15, 5, 1)], 1),
        ([merged(10, 5, 1), merged(16, 5, 1)], 2),
        ([merged(20, 5, -1), merged(15, 5, -1)], 1),
        ([merged(20, 5, -1), merged(21, 5, 1)], 2),
        ([merged(20, 5, 1), merged(19, 5, -1)], 2),
        ([one(page) for page in range(8)], 1),
        ([one(page) for page in range(8, 0, -1)], 1),
        ([one(0, 512), one(512, 512)], 1),
        ([one(page) for page in (5, 5, 5)], 3),
        ([one(1), one(2, errno=22), one(3)], 2),
    ],
)
def test_a_run_ends_where_the_next_call_leaves_a_gap(rows, runs, tmp_path):
    (item,) = found(tmp_path, *rows)
    assert item.runs == runs
    assert item.mean_run_pages == item.pages / runs


def test_threads_that_take_turns_each_have_runs_of_their_own(tmp_path):
    rows = [one(base + page, tid=tid) for page in range(50) for tid, base in ((1, 0), (2, 900))]
    (item,) = found(tmp_path, *rows)
    assert (item.calls, item.runs) == (100, 2)


def test_files_and_vectors_are_told_by_their_guest_address(tmp_path):
    rows = [
        one(page, call=Call.FALLOCATE, advice=3, hva=None, gpa=page * PAGE) for page in range(4)
    ]
    (item,) = found(tmp_path, *rows)
    assert (item.call, item.advice, item.runs) == ("fallocate", "PUNCH_HOLE", 1)


@pytest.mark.parametrize(
    ("number", "advice", "name"),
    [
        (Call.MADVISE, 4, "DONTNEED"),
        (Call.PROCESS_MADVISE, 24, "DONTNEED_LOCKED"),
        (Call.MADVISE, 12345, "other"),
        (Call.FALLOCATE, 3, "PUNCH_HOLE"),
        (Call.FALLOCATE, 0, "other"),
        (Call.MMAP, 0x4032, "FIXED|ANONYMOUS"),
        (-1, 4, "other"),
    ],
)
def test_advice_has_a_name(number, advice, name):
    assert advice_name(number, advice) == name


def test_a_hostile_trace_makes_few_kinds_and_no_error(tmp_path):
    most = (1 << 64) - 1
    rows = [
        call(
            None,
            call=number % 256,
            advice=number * 7919,
            gpa=most - number,
            length_bytes=most - number,
            count=(1 << 32) - 1,
            step=(-1, 0, 1)[number % 3],
            total_ns=(1 << 63) - 1,
            worst_ns=-(1 << 63),
            errno=number % 2 * number,
        )
        for number in range(3000)
    ]
    items = found(tmp_path, *rows)
    assert len(items) < 40
    assert sum(item.calls for item in items) == 3000 * ((1 << 32) - 1)
    assert all(len(item.errnos) <= 8 for item in items)


def test_a_trace_without_calls_has_none(tmp_path):
    assert found(tmp_path) == ()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_batches_of_any_size_have_the_same_sums(tmp_path, size):
    rows = [
        one(page, tid=tid, errno=errno, total_ns=page, worst_ns=page, advice=advice)
        for advice in (DONTNEED, WILLNEED)
        for page in (1, 2, 3, 9, 8, 7, 30, 31)
        for tid, errno in ((1, 0), (2, 0), (2, 12), (3, 22 if page > 8 else 0))
    ]
    whole = found(tmp_path, *rows)
    with TraceWriter(tmp_path / "b.balloon", Side.HOST) as writer:
        for first in range(0, len(rows), size):
            writer.append("calls", calls(rows[first : first + size]))
        writer.close(described())
    assert discards(open_trace(writer.path)) == whole
    assert (whole[0].runs, whole[0].errnos) == (8, {"ENOMEM": 8, "EINVAL": 3})


def test_however_many_threads_a_trace_names_few_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr("aerostat.discards._MOST_THREADS", 4)
    with TraceWriter(tmp_path / "a.balloon", Side.HOST) as writer:
        for page in (1, 2):
            rows = [one(page + 10 * tid, tid=tid, errno=0) for tid in range(8)]
            writer.append("calls", calls(rows))
        writer.close(described())
    (item,) = discards(open_trace(writer.path))
    assert item.runs == 8 + 4  # Of the others nobody knows any more where they were.


def test_errnos_that_have_no_name_are_one(tmp_path):
    (item,) = found(tmp_path, *(one(page, errno=1000 + page) for page in range(20)))
    assert item.errnos == {"other": 20}
