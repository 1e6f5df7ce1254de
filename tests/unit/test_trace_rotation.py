"""Segments close by size and by age, are synced between, and many small batches become one."""

import json
import os
import time

import pyarrow as pa
import pytest

from tests.unit.trace_samples import described, large_batch, request, requests, residency
from tracer.trace import segment_book
from tracer.trace.check import check_trace
from tracer.trace.delta import Form
from tracer.trace.ipc_bounds import footer_blocks
from tracer.trace.open_segment import OpenSegment
from tracer.trace.reader import open_trace
from tracer.trace.rewrite import finish_part
from tracer.trace.salvage import salvage
from tracer.trace.schema import SAMPLES, Mark, Side
from tracer.trace.segment_reader import closed_batches
from tracer.trace.storage import Storage
from tracer.trace.writer import TraceWriter

MS = 10**6


def sample(number):
    row = {"side": Side.HOST, "ts_ns": number, "rss_bytes": 4096 * number}
    return pa.RecordBatch.from_pylist([row], schema=SAMPLES)


def listed(writer):
    document = json.loads((writer.path / "manifest.json").read_text())
    return [entry["file"] for entry in document["segments"]]


def test_age_closes_a_segment_that_nothing_is_appended_to(tmp_path):
    storage = Storage(rotate_ns=50 * MS)
    with TraceWriter(tmp_path / "a.balloon", Side.HOST, storage=storage) as writer:
        writer.append("residency", residency(3))
        writer.tick()
        assert listed(writer) == []
        assert (writer.path / "residency" / "_host-00001.arrow.part").exists()
        time.sleep(0.06)
        writer.tick()
        assert listed(writer) == ["residency/host-00001.arrow"]
        writer.append("residency", residency(2))
        writer.close(described())
    trace = open_trace(tmp_path / "a.balloon")
    assert trace.table("residency").num_rows == 5
    assert check_trace(trace) == []


def test_age_closes_the_segments_of_other_tables_too(tmp_path):
    storage = Storage(rotate_ns=50 * MS)
    with TraceWriter(tmp_path / "a.balloon", Side.HOST, storage=storage) as writer:
        writer.append("residency", residency(3))
        time.sleep(0.06)
        writer.append("requests", requests([request(0)]))
        assert listed(writer) == ["residency/host-00001.arrow"]


def test_segments_that_are_many_get_older(tmp_path, monkeypatch):
    """Days of capture list few segments: the age doubles; what is synced in between is not lost."""
    monkeypatch.setattr(segment_book, "SEGMENTS_PER_AGE", 2)
    storage = Storage(rotate_ns=20 * MS)
    with TraceWriter(tmp_path / "a.balloon", Side.HOST, storage=storage) as writer:
        begin = time.monotonic()
        while time.monotonic() - begin < 1.0:
            writer.append("requests", requests([request(int(time.monotonic() * 1e6))]))
            time.sleep(0.005)
        writer.close(described())
    trace = open_trace(tmp_path / "a.balloon")
    assert check_trace(trace) == []
    # At 20 ms each there would be 50; at 20, 20, 40, 40, 80, 80, ... there are 9 to 11.
    assert 4 < len(trace.segment_files("requests")) <= 12


def test_samples_one_by_one_become_one_batch(tmp_path):
    with TraceWriter(tmp_path / "a.balloon", Side.HOST) as writer:
        for number in range(300):
            writer.append("samples", sample(number))
        part = writer.path / "samples" / "_host-00001.arrow.part"
        as_written = part.stat().st_size
        writer.close(described())
    trace = open_trace(tmp_path / "a.balloon")
    (batch,) = trace.batches("samples")
    assert batch["ts_ns"].to_pylist() == list(range(300))
    assert (writer.path / "samples" / "host-00001.arrow").stat().st_size < as_written / 10
    assert check_trace(trace) == []
    assert not list(writer.path.rglob("_*"))


def test_large_batches_stay_as_they_are(tmp_path):
    with TraceWriter(tmp_path / "a.balloon", Side.HOST) as writer:
        for number in range(20):
            rows = [request(number * 100 + i) for i in range(100)]
            writer.append("requests", requests(rows))
        writer.close(described())
    assert [b.num_rows for b in open_trace(writer.path).batches("requests")] == [100] * 20


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_part_is_closed_without_its_writer(tmp_path, compression, delta):
    """What a full disk leaves gets the very footer that Arrow would have written."""
    (tmp_path / "requests").mkdir()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    files = []
    for number in (1, 2):
        name = f"requests/host-0000{number}.arrow"
        segment = OpenSegment(tmp_path, Form("requests", delta), "host", name, compression)
        segment.write(large_batch(0, 3))
        segment.write(requests([request(3), request(4)]))
        files.append(tmp_path / name)
        if number == 1:
            segment.close()
        else:
            part = tmp_path / "requests" / "_host-00002.arrow.part"
            finish_part(part, "requests", options)
            part.rename(files[1])
    assert files[0].read_bytes() == files[1].read_bytes()
    assert sum(b.num_rows for b in closed_batches(files[1], "requests")) == 5
    assert len(footer_blocks(memoryview(files[1].read_bytes()))) == 2


def test_a_part_of_another_compression_is_left_alone(tmp_path):
    segment = OpenSegment(tmp_path, Form("requests"), "host", "requests/host-00001.arrow", "lz4")
    segment.write(large_batch(0, 1))
    part = tmp_path / "requests" / "_host-00001.arrow.part"
    before = part.read_bytes()
    with pytest.raises(OSError, match="other bytes"):
        finish_part(part, "requests", pa.ipc.IpcWriteOptions(compression="zstd"))
    assert part.read_bytes() == before


def test_zstd_is_smaller_and_read_as_ever(tmp_path):
    sizes = {}
    for compression in ("lz4", "zstd"):
        path = tmp_path / f"{compression}.balloon"
        with TraceWriter(path, Side.HOST, storage=Storage(compression=compression)) as writer:
            for first in range(0, 2000, 500):
                rows = [request(first + i, ((1000 + 256 * i, 256),)) for i in range(500)]
                writer.append("requests", requests(rows))
            writer.mark(Mark.TARGET, 5, value=1 << 30)
            writer.close(described())
        trace = open_trace(path)
        assert check_trace(trace) == []
        assert trace.dataset("requests").count_rows() == 2000
        sizes[compression] = sum(segment.bytes for segment in trace.manifest.segments)
    assert sizes["zstd"] < 0.7 * sizes["lz4"]


def test_expected_tables_are_open_before_their_rows_and_leave_nothing_where_none_come(tmp_path):
    with TraceWriter(tmp_path / "a.balloon", Side.HOST) as writer:
        writer.expect(["requests", "calls", "samples"])
        parts = {part.parent.name: part.stat() for part in writer.path.rglob("*.part")}
        assert parts.keys() == {"requests", "calls", "samples"}
        writer.append("requests", requests([request(0)]))
        (written,) = (writer.path / "requests").iterdir()
        assert written.stat().st_ino == parts["requests"].st_ino
        assert writer.close(described()).segments[0].file == "requests/host-00001.arrow"
    assert {path.name for path in writer.path.iterdir()} == {"requests", "marks", "manifest.json"}
    assert check_trace(open_trace(writer.path)) == []


def test_an_expected_segment_gets_no_older_before_its_first_row(tmp_path):
    storage = Storage(rotate_ns=50 * MS)
    with TraceWriter(tmp_path / "a.balloon", Side.HOST, storage=storage) as writer:
        writer.expect(["residency"])
        time.sleep(0.06)
        writer.tick()
        writer.append("residency", residency(3))
        assert listed(writer) == []
        time.sleep(0.06)
        writer.tick()
        assert listed(writer) == ["residency/host-00001.arrow"]


def test_what_a_killed_writer_expected_is_gone_after_salvage(tmp_path):
    left = tmp_path / "a.balloon"
    writer = TraceWriter(left, Side.HOST, manifest=described())
    writer.expect(["requests", "calls"])
    writer.append("requests", requests([request(0)]))
    os.close(writer._lock)  # as the kernel does for a process that is killed
    report = salvage(left)
    assert (report.rows["requests"], report.rows["calls"], report.dropped_bytes) == (1, 0, 0)
    assert [*left.rglob("*.part")] == []
    assert not [*left.glob("calls/*")]
