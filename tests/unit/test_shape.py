"""Run lengths and residency, on rows whose sums are known."""

from pathlib import Path

import pyarrow as pa
import pytest

from aerostat.shape import Residency, residency, run_lengths
from tests.unit.capture_bundle import received, write_host, write_side
from tracer.trace.manifest import Manifest, SideInfo
from tracer.trace.reader import open_trace
from tracer.trace.schema import REQUESTS, RESIDENCY, Queue, Side
from tracer.trace.writer import TraceWriter


def test_runs_are_weighed_by_pages(tmp_path: Path) -> None:
    runs = [(0, 1), (10, 1), (20, -2), (4096, 1024)]
    rows = [received(0, Queue.INFLATE, runs, (1, 2, 1), calls=1)]
    (found,) = run_lengths(open_trace(write_host(tmp_path / "a.balloon", rows, calls=())))
    assert (found.queue, found.side) == (Queue.INFLATE, Side.HOST)
    assert (found.requests, found.runs, found.pages) == (1, 4, 1028)
    assert (found.median_pages, found.longest_pages) == (1024, 1024)
    assert found.falling_percent == pytest.approx(100 * 2 / 1028)
    assert found.huge_percent == pytest.approx(100 * 1024 / 1028)


def test_lengths_are_merged_whenever_as_many_wait_as_there_are(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("aerostat.shape._FEW_LENGTHS", 2)
    lengths = [1, -2, 3, 700, 3, 1, 5, 600, -7, 0, 9, 600]
    rows = [
        received(seq, Queue.INFLATE, [(1000 * seq, pages)], (1, 2, 1), calls=1)
        for seq, pages in enumerate(lengths)
    ]
    path = tmp_path / "a.balloon"
    with TraceWriter(path, Side.HOST) as writer:
        for row in rows:
            writer.append("requests", pa.RecordBatch.from_pylist([row], REQUESTS))
        writer.close(Manifest(sides={"host": SideInfo(page_size_bytes=4096, begin_ns=0)}))
    (found,) = run_lengths(open_trace(path))
    total = sum(abs(pages) for pages in lengths)
    assert (found.requests, found.runs, found.pages) == (12, 11, total)
    assert (found.median_pages, found.longest_pages) == (600, 700)
    assert found.falling_percent == pytest.approx(100 * 9 / total)
    assert found.huge_percent == pytest.approx(100 * 1900 / total)


def test_an_empty_trace_has_no_shape(tmp_path: Path) -> None:
    trace = open_trace(write_side(tmp_path / "a.balloon", Side.GUEST, []))
    assert run_lengths(trace) == ()
    assert residency(trace) is None


def write_residency(path: Path, rows: list[tuple[int, int, int, bool, bool | None]]) -> Path:
    names = ("ts_ns", "pfn", "pages", "resident", "huge")
    batch = pa.RecordBatch.from_pylist(
        [dict(zip(names, row, strict=True)) for row in rows], RESIDENCY
    )
    with TraceWriter(path, Side.HOST) as writer:
        writer.append("residency", batch)
        writer.close(Manifest(sides={"host": SideInfo(page_size_bytes=4096, begin_ns=0)}))
    return path


def test_only_the_first_snapshot_counts(tmp_path: Path) -> None:
    rows = [(5, 0, 100, True, True), (5, 100, 50, False, False), (9, 0, 150, True, False)]
    trace = open_trace(write_residency(tmp_path / "a.balloon", rows))
    assert residency(trace) == Residency(150, 100, 100)


def test_huge_pages_nobody_looked_for_are_not_zero(tmp_path: Path) -> None:
    trace = open_trace(write_residency(tmp_path / "a.balloon", [(5, 0, 100, True, None)]))
    assert residency(trace) == Residency(100, 100, None)
