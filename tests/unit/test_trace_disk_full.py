"""A disk that fills up under the recorder, on real small file systems."""

import os
import subprocess

import pytest

from tests.unit.trace_samples import call, calls, described, large_batch
from tracer.trace.check import check_trace
from tracer.trace.errors import TraceError
from tracer.trace.manifest import Loss
from tracer.trace.reader import open_trace
from tracer.trace.salvage import salvage
from tracer.trace.schema import Mark, Side
from tracer.trace.writer import TraceWriter

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def free_bytes(place):
    return os.statvfs(place).f_bavail * os.statvfs(place).f_frsize


def fill(writer, rows=3, most=500):
    """Append until there is no room; returns how many requests were appended, the last included."""
    appended = 0
    while writer.stop_reason is None and appended < most:
        writer.append("calls", calls([call(appended)]))
        writer.append("requests", large_batch(appended, rows))
        appended += rows
    return appended


def test_a_full_disk_ends_with_a_closed_trace(small_disk):
    writer = TraceWriter(small_disk / "a.balloon", Side.HOST, manifest=described())
    writer.mark(Mark.ATTACH, 1)
    appended = fill(writer)
    assert writer.stop_reason == "disk-full"
    assert 6 < appended < 500
    writer.append("requests", large_batch(appended, 2))  # what was still in the ring
    writer.append("samples", writer_sample())
    writer.mark(Mark.DETACH, 8000)
    closed = writer.close(described(end_reason="stopped"))

    assert closed.complete
    assert closed.end_reason == "disk-full"
    trace = open_trace(writer.path)
    assert trace.is_complete
    kept = appended - 3
    assert trace.table("requests")["seq"].to_pylist() == list(range(kept))
    assert trace.dataset("requests").count_rows() == kept
    assert trace.table("marks")["mark"].to_pylist() == [
        Mark.ATTACH,
        Mark.DETACH,
        Mark.LOSS,
        Mark.LOSS,
        Mark.END,
    ]
    assert trace.losses == (
        Loss("host", "requests", 5, 1000 * kept, 1000 * (kept + 4) + 500, "disk"),
        Loss("host", "samples", 1, 77, 77, "disk"),
    )
    findings = check_trace(trace)
    assert {finding.code for finding in findings} == {"loss", "call-orphan"}
    assert not list(writer.path.rglob("_*"))


def writer_sample():
    import pyarrow as pa

    from tracer.trace.schema import SAMPLES

    return pa.RecordBatch.from_pylist([{"side": Side.HOST, "ts_ns": 77}], schema=SAMPLES)


def test_room_is_kept_for_many_marks_at_the_end(small_disk):
    writer = TraceWriter(small_disk / "a.balloon", Side.HOST, manifest=described())
    fill(writer)
    assert writer.stop_reason == "disk-full"
    for number in range(50):
        writer.mark(Mark.RUN_STATE, number, text="paused")
    assert writer.close(described()).complete
    trace = open_trace(writer.path)
    assert trace.table("marks").num_rows == 50 + len(trace.losses) + 1


def test_a_disk_that_another_fills_ends_it_too(small_disk):
    """A recorder that writes little finds out when it wants to close a segment."""
    from tracer.trace.storage import Storage

    storage = Storage(rotate_ns=0)
    writer = TraceWriter(small_disk / "a.balloon", Side.HOST, storage=storage)
    writer.append("requests", large_batch(0, 2))
    (small_disk / "ballast").write_bytes(bytes(free_bytes(small_disk)))
    writer.mark(Mark.TARGET, 5, value=7)
    assert writer.stop_reason == "disk-full"
    closed = writer.close(described())
    assert closed.complete
    trace = open_trace(writer.path)
    assert trace.table("requests").num_rows == 2
    assert trace.table("marks")["mark"].to_pylist() == [Mark.TARGET, Mark.END]
    assert check_trace(trace) == []


def test_a_disk_without_room_for_the_end_leaves_a_readable_trace(small_disk, tmp_path):
    """Somebody takes the room that was kept back in the moment in which it is given free."""
    writer = TraceWriter(small_disk / "a.balloon", Side.HOST, manifest=described())
    appended = fill(writer)
    (small_disk / "ballast").write_bytes(bytes(free_bytes(small_disk)))
    with pytest.raises(TraceError) as caught:
        for number in range(1000):
            writer.mark(Mark.RUN_STATE, number, text="paused")
    assert "No space left" in caught.value.reason
    assert "free space" in caught.value.remedy
    assert str(writer.path) in caught.value.what
    for again in (lambda: writer.mark(Mark.DETACH, 9), lambda: writer.close(described())):
        with pytest.raises(TraceError, match="cannot write"):
            again()
    writer.abort("too late to matter")

    trace = open_trace(writer.path)
    assert not trace.is_complete
    assert trace.manifest.vm.name == "vm0"
    kept = list(range(appended - 3))
    assert trace.table("requests")["seq"].to_pylist() == kept
    report = salvage(writer.path, tmp_path / "elsewhere.balloon")
    assert report.rows["requests"] == len(kept)
    assert report.dropped_bytes == 0
    assert open_trace(report.path).manifest.end_reason.startswith("salvaged")


@pytest.mark.parametrize("left_bytes", [0, 4096, 8192, 64 << 10])
def test_a_disk_that_is_full_from_the_start_is_left_as_it_was(small_disk, left_bytes):
    (small_disk / "ballast").write_bytes(bytes(free_bytes(small_disk) - left_bytes))
    with pytest.raises(TraceError, match="cannot") as caught:
        TraceWriter(small_disk / "a.balloon", Side.HOST)
    assert "free space" in caught.value.remedy
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]
    assert free_bytes(small_disk) == left_bytes


def test_a_read_only_file_system(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(TraceError, match="cannot create") as caught:
        TraceWriter(small_disk / "a.balloon", Side.HOST)
    assert "Read-only" in caught.value.reason
    assert "can be written" in caught.value.remedy
