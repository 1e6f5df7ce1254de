"""What the writer leaves on disk: in order, by force, after an exception."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.trace_samples import described, request, requests, write_trace
from tracer.trace.errors import TraceError
from tracer.trace.manifest import Loss, Manifest
from tracer.trace.reader import open_trace
from tracer.trace.schema import CALLS, Mark, Side
from tracer.trace.storage import Storage
from tracer.trace.writer import TraceWriter


def files(bundle):
    return sorted(str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file())


def test_a_closed_trace_holds_what_was_appended(tmp_path):
    trace = open_trace(write_trace(tmp_path / "a.balloon"))
    assert files(trace.path) == [
        "calls/host-00001.arrow",
        "manifest.json",
        "marks/host-00001.arrow",
        "requests/host-00001.arrow",
    ]
    assert trace.table("requests")["seq"].to_pylist() == list(range(60))
    assert trace.table("requests")["runs"][7].as_py() == [{"pfn": 1000, "pages": 256}]
    assert trace.table("requests")["wake_ns"].null_count == 60
    assert trace.is_complete
    assert trace.manifest.end_reason == "stopped"
    assert trace.table("marks").to_pylist()[-1]["mark"] == Mark.END
    assert trace.table("marks").to_pylist()[-1]["ts_ns"] == 9000


def test_batches_stay_as_they_were_appended(tmp_path):
    trace = open_trace(write_trace(tmp_path / "a.balloon", batches=4, rows=5))
    assert [batch.num_rows for batch in trace.batches("requests")] == [5, 5, 5, 5]


def test_segments_rotate_by_size(tmp_path):
    trace = open_trace(write_trace(tmp_path / "a.balloon", batches=4, rotate_bytes=1))
    assert trace.segment_files("requests") == [f"requests/host-0000{n}.arrow" for n in (1, 2, 3, 4)]
    assert trace.table("requests").num_rows == 80


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_what_a_guest_makes_the_same_for_ever_can_be_read(tmp_path, compression):
    """Half a second of a VMM that discards the same vectors over and over: 170 MB, decoded."""
    one = np.zeros(1 << 14, np.int64)
    columns = [pa.array(one).cast(field.type) for field in CALLS]
    batch = pa.RecordBatch.from_arrays(columns, schema=CALLS)
    storage = Storage(compression=compression)
    with TraceWriter(tmp_path / "a.balloon", Side.HOST, storage=storage) as writer:
        for _ in range(100):
            writer.append("calls", batch)
        writer.close(described())
    trace = open_trace(writer.path)
    assert sum(each.num_rows for each in trace.batches("calls")) == 100 << 14
    assert 1 < len(trace.segment_files("calls")) < 10


def test_the_manifest_is_there_from_the_first_moment(tmp_path):
    writer = TraceWriter(tmp_path / "a.balloon", Side.HOST, manifest=described())
    trace = open_trace(writer.path)
    assert not trace.is_complete
    assert trace.manifest.vm.name == "vm0"
    assert trace.table("requests").num_rows == 0
    assert trace.manifest.session_id == writer.close(described()).session_id


def test_leaving_on_an_exception_says_so(tmp_path):
    with pytest.raises(RuntimeError), TraceWriter(tmp_path / "a.balloon", Side.HOST) as writer:
        writer.append("requests", requests([request(0)]))
        raise RuntimeError("probe went away")
    trace = open_trace(tmp_path / "a.balloon")
    assert not trace.is_complete
    assert trace.manifest.end_reason == "RuntimeError: probe went away"
    assert trace.table("requests").num_rows == 1
    assert not [name for name in files(trace.path) if name.endswith(".part") or "reserve" in name]


def test_leaving_without_close_is_not_a_clean_end(tmp_path):
    with TraceWriter(tmp_path / "a.balloon", Side.HOST):
        pass
    assert open_trace(tmp_path / "a.balloon").manifest.end_reason == "left without close"


def test_losses_are_rows_and_manifest(tmp_path):
    writer = TraceWriter(tmp_path / "a.balloon", Side.HOST)
    writer.loss("requests", 5, 10, 20)
    writer.loss("calls", 0, 10, 20)
    writer.close(described(losses=(Loss("host", "calls", 9, 10, 20),)))
    trace = open_trace(tmp_path / "a.balloon")
    assert trace.losses == (Loss("host", "requests", 5, 10, 20),)
    assert trace.marked_losses() == trace.losses


@pytest.mark.parametrize("how", ["columns", "nulls"])
def test_a_batch_of_another_shape_is_refused(tmp_path, how):
    batch = requests([request(0)])
    if how == "columns":
        batch = pa.RecordBatch.from_pylist([], schema=CALLS)
    else:
        columns = [pa.nulls(1, pa.uint64()) if n == "seq" else batch[n] for n in batch.schema.names]
        batch = pa.RecordBatch.from_arrays(columns, schema=batch.schema)
    with TraceWriter(tmp_path / "a.balloon", Side.HOST) as writer, pytest.raises(ValueError):
        writer.append("requests", batch)


def test_close_wants_the_side_described(tmp_path):
    with TraceWriter(tmp_path / "a.balloon", Side.GUEST) as writer:
        with pytest.raises(ValueError, match="guest"):
            writer.close(Manifest())
        with pytest.raises(ValueError, match="guest"):
            writer.close(described())


def test_an_existing_trace_is_kept_without_force(tmp_path):
    path = write_trace(tmp_path / "a.balloon")
    before = {name: (path / name).read_bytes() for name in files(path)}
    with pytest.raises(TraceError, match="exists"):
        TraceWriter(path, Side.HOST)
    assert {name: (path / name).read_bytes() for name in files(path)} == before


def test_force_replaces_a_trace(tmp_path):
    path = write_trace(tmp_path / "a.balloon", rotate_bytes=1)
    write_trace(path, batches=1, force=True)
    assert open_trace(path).table("requests").num_rows == 20
    assert len(files(path)) == 4


@pytest.mark.parametrize("kind", ["directory", "file", "extra file", "link", "missing parent"])
def test_force_deletes_nothing_foreign(tmp_path, kind):
    path = tmp_path / "a.balloon"
    if kind == "directory":
        path.mkdir()
        (path / "thesis.txt").write_text("ten years")
    elif kind == "file":
        path.write_text("ten years")
    elif kind == "extra file":
        write_trace(path)
        (path / "requests" / "thesis.txt").write_text("ten years")
    elif kind == "link":
        write_trace(tmp_path / "b.balloon")
        path.symlink_to(tmp_path / "b.balloon")
    else:
        path = tmp_path / "no" / "a.balloon"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TraceError) as caught:
        TraceWriter(path, Side.HOST, force=True)
    assert caught.value.reason
    assert caught.value.remedy
    assert sorted(tmp_path.rglob("*")) == before


def test_force_does_not_touch_a_trace_that_is_being_written(tmp_path):
    with TraceWriter(tmp_path / "a.balloon", Side.HOST) as writer:
        writer.append("requests", requests([request(0)]))
        with pytest.raises(TraceError, match="being written"):
            TraceWriter(tmp_path / "a.balloon", Side.HOST, force=True)
        writer.close(described())
    assert open_trace(tmp_path / "a.balloon").is_complete


def test_a_closed_writer_takes_nothing_more(tmp_path):
    writer = TraceWriter(tmp_path / "a.balloon", Side.HOST)
    writer.close(described())
    with pytest.raises(ValueError, match="closed"):
        writer.append("requests", requests([request(0)]))


def test_a_writer_leaves_no_descriptor_open(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    write_trace(tmp_path / "a.balloon", rotate_bytes=1)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
