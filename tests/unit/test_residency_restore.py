"""Which pages a replay makes resident, read from traces that anyone may have written."""

from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from aerostat.verbs.replay import command
from replay.layout import Layout
from replay.ranges import expand
from replay.residency import Thp, check_residency, load_residency
from tracer.trace.errors import AerostatError, ExitCode, TraceError
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
    touched = load_residency(trace, LAYOUT, "touched", thp="madvise")
    assert (touched.resident_pages, touched.source) == (
        MEMORY_PAGES,
        "chosen: every page was resident",
    )
    assert load_residency(trace, LAYOUT, "untouched", thp="madvise").resident_pages == 0


REGIONS = (
    Region("low", 0, 0, 1000 << 12, "anon", 4096),
    Region("high", 1 << 32, 0, 1100 << 12, "anon", 4096),
)


@pytest.mark.parametrize("every", [1, 2, 3, 8, 999, 5000])
def test_one_page_in_so_many(tmp_path: Path, every: int) -> None:
    layout = Layout(REGIONS)
    found = load_residency(record(tmp_path), layout, f"1/{every}", thp="madvise")
    pages = set(expand(found.small).tolist())
    bases = layout.base_page.tolist()
    wanted = [range(base, base + n, every) for base, n in zip(bases, (1000, 1100), strict=True)]
    assert pages == {page for each in wanted for page in each}
    assert found.huge.total_pages == 0


def test_huge_pages_as_far_as_they_fit(tmp_path: Path) -> None:
    layout = Layout(REGIONS)
    found = load_residency(record(tmp_path), layout, "huge", thp="madvise")
    assert found.resident_pages == 2100
    assert found.huge.total_pages >= 2 * 512
    assert (found.huge.start % 512 == 0).all()
    assert (found.huge.pages % 512 == 0).all()
    assert found.small.total_pages == 2100 - found.huge.total_pages


@pytest.mark.parametrize(
    "text", ["all", "", "1/0", "1/-2", "2/3", "1/8.5", "1/9999999999", "trace "]
)
def test_residencies_that_do_not_exist(tmp_path: Path, text: str) -> None:
    with pytest.raises(AerostatError, match="there is no residency"):
        load_residency(record(tmp_path), LAYOUT, text, thp="madvise")
    result = CliRunner().invoke(command, ["t.balloon", "--residency", text])
    assert result.exit_code == ExitCode.USAGE
    assert "1/N such as 1/8" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("backing", "thp", "message"),
    [
        ("anon", "never", "have none"),
        ("memfd", "madvise", "memfd memory"),
        ("shmem", "always", "sh"),
    ],
)
def test_huge_pages_that_cannot_be(backing: str, thp: Thp, message: str) -> None:
    with pytest.raises(AerostatError, match=message):
        check_residency("huge", backing, thp)
    check_residency("1/8", backing, thp)
    check_residency("huge", "hugetlb", thp)
