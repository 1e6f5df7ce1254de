"""Which pages a replay makes resident, read from traces that anyone may have written."""

from pathlib import Path

import pyarrow as pa
import pytest

from replay.layout import Layout
from replay.residency import load_residency
from tracer.trace.errors import TraceError
from tracer.trace.manifest import Manifest, Region, SideInfo
from tracer.trace.reader import Trace, open_trace
from tracer.trace.schema import RESIDENCY, Side
from tracer.trace.writer import TraceWriter

MEMORY_PAGES = 16384
LAYOUT = Layout([Region("ram", 0, 0, MEMORY_PAGES << 12, "anon", 4096)])


def record(path: Path, *rows: tuple[int, int, int, bool, bool | None]) -> Trace:
    keys = ("ts_ns", "pfn", "pages", "resident", "huge")
    columns = [dict(zip(keys, row, strict=True)) for row in rows]
    with TraceWriter(path / "t.balloon", Side.HOST) as writer:
        writer.append("residency", pa.RecordBatch.from_pylist(columns, RESIDENCY))
        writer.close(Manifest(sides={"host": SideInfo(page_size_bytes=4096, begin_ns=0)}))
    return open_trace(path / "t.balloon")


def test_the_first_snapshot_counts(tmp_path: Path) -> None:
    trace = record(
        tmp_path,
        (5, 0, 100, True, False),
        (5, 100, 50, False, None),
        (9, 100, 50, True, None),
        (5, 200, 7, True, None),
    )
    found = load_residency(trace, LAYOUT, "trace", thp="madvise")
    assert found.small.start.tolist() == [0, 200]
    assert found.small.pages.tolist() == [100, 7]
    assert found.huge.total_pages == 0


def test_huge_pages_are_whole_and_aligned(tmp_path: Path) -> None:
    trace = record(tmp_path, (5, 300, 1000, True, True), (5, 2048, 512, True, False))
    found = load_residency(trace, LAYOUT, "trace", thp="madvise")
    assert found.huge.start.tolist() == [512]
    assert found.huge.pages.tolist() == [512]
    assert found.resident_pages == 1512
    flat = load_residency(trace, LAYOUT, "trace", thp="never")
    assert flat.huge.total_pages == 0
    assert flat.resident_pages == 1512
    wherever = load_residency(trace, LAYOUT, "trace", thp="always")
    assert wherever.huge.start.tolist() == [512, 2048]
    assert wherever.resident_pages == 1512


def test_overlapping_and_outside_runs_count_once_and_not(tmp_path: Path) -> None:
    trace = record(
        tmp_path,
        (5, 0, 100, True, None),
        (5, 50, 100, True, None),
        (5, MEMORY_PAGES - 1, 1 << 40, True, None),
        (5, 1 << 50, 9, True, None),
    )
    assert load_residency(trace, LAYOUT, "trace", thp="madvise").resident_pages == 151


@pytest.mark.parametrize(("pfn", "pages"), [(1 << 52, 1), (0, 1 << 63), ((1 << 64) - 1, 1)])
def test_impossible_runs_are_refused(tmp_path: Path, pfn: int, pages: int) -> None:
    trace = record(tmp_path, (5, pfn, pages, True, None))
    with pytest.raises(TraceError, match=r"residency of .* cannot be replayed"):
        load_residency(trace, LAYOUT, "trace", thp="madvise")


def test_assumptions_are_named(tmp_path: Path) -> None:
    trace = record(tmp_path)
    unseen = load_residency(trace, LAYOUT, "trace", thp="madvise")
    assert unseen.resident_pages == MEMORY_PAGES
    assert "has no residency" in unseen.source
    assert load_residency(trace, LAYOUT, "all", thp="madvise").source.startswith("assumed")
    assert load_residency(trace, LAYOUT, "none", thp="madvise").resident_pages == 0
