"""A recorder may die at any byte: what is whole is read, and nothing is invented."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.trace_samples import torn_trace, write_trace
from tracer.trace.ipc_bounds import footer_blocks
from tracer.trace.reader import open_trace
from tracer.trace.salvage import salvage
from tracer.trace.schema import TABLES

ROWS, BATCHES = 20, 4
FILE = "requests/host-00001.arrow"
PART = "requests/_host-00001.arrow.part"


@pytest.fixture(scope="module")
def torn(tmp_path_factory):
    """A part's bytes, and where each of its batches begins."""
    place = tmp_path_factory.mktemp("torn")
    raw = torn_trace(place / "a.balloon", BATCHES, ROWS).read_bytes()
    closed = write_trace(place / "b.balloon", batches=BATCHES, rows=ROWS) / FILE
    blocks = footer_blocks(memoryview(closed.read_bytes()))
    return place / "a.balloon", raw, [block.offset for block in blocks]


def cut_copy(bundle, raw):
    """A copy of the torn trace in a directory of its own, with this part."""
    place = Path(tempfile.mkdtemp(prefix="torn-"))
    shutil.copytree(bundle, place / "a.balloon")
    (place / "a.balloon" / PART).write_bytes(raw)
    return place / "a.balloon"


def whole_batches(length, starts, total):
    ends = [*starts[1:], total]
    return sum(end <= length for end in ends)


@settings(max_examples=60)
@given(st.floats(0, 1), st.integers(-9, 9), st.booleans())
@example(0.0, 0, False)
@example(1.0, 0, True)
@example(1.0, -1, True)
def test_cut_anywhere(torn, share, nudge, at_a_batch):
    bundle, raw, starts = torn
    length = int(share * len(raw))
    if at_a_batch:
        length = [*starts, len(raw)][round(share * BATCHES)]
    length = min(max(length + nudge, 0), len(raw))
    copy = cut_copy(bundle, raw[:length])
    try:
        whole = whole_batches(length, starts, len(raw))
        expected = list(range(whole * ROWS))
        trace = open_trace(copy)
        assert trace.table("requests")["seq"].to_pylist() == expected
        assert not trace.is_complete
        report = salvage(copy)
        assert report.rows["requests"] == len(expected)
        kept = [8 if length >= 8 else 0, *starts[1:], len(raw)]
        assert report.dropped_bytes <= length - (kept[whole] if whole else 0)
        again = open_trace(copy)
        assert again.table("requests")["seq"].to_pylist() == expected
        assert again.dataset("requests").count_rows() == len(expected)
        assert not again.is_complete
        assert again.findings == []
    finally:
        shutil.rmtree(copy.parent)


@settings(max_examples=40)
@given(st.binary(max_size=300))
def test_whatever_follows_the_last_batch_adds_no_row(torn, rubbish):
    """A disk may leave old blocks or zeros behind the last write."""
    bundle, raw, _ = torn
    copy = cut_copy(bundle, raw + rubbish)
    try:
        assert open_trace(copy).table("requests").num_rows == BATCHES * ROWS
        assert salvage(copy).rows["requests"] == BATCHES * ROWS
    finally:
        shutil.rmtree(copy.parent)


@settings(max_examples=25)
@given(st.sampled_from(sorted(TABLES)), st.floats(0, 0.999), st.booleans())
def test_a_cut_closed_segment(torn, table, share, lost_manifest):
    """Not only parts tear: a closed file may be cut by a bad copy."""
    place = Path(tempfile.mkdtemp(prefix="torn-"))
    try:
        path = write_trace(place / "a.balloon", batches=BATCHES, rows=ROWS)
        file = path / table / "host-00001.arrow"
        if file.exists():
            raw = file.read_bytes()
            file.write_bytes(raw[: int(share * len(raw))])
        if lost_manifest:
            (path / "manifest.json").unlink()
        report = salvage(path)
        trace = open_trace(path)
        for name in TABLES:
            rows = trace.table(name).num_rows
            assert rows == report.rows[name]
            assert rows % ROWS == 0 or name == "marks"
        assert trace.is_complete == (
            not file.exists() and not lost_manifest and not report.findings
        )
    finally:
        shutil.rmtree(place)
