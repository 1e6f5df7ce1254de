"""Opening traces: sides, versions, damage, strangers' files, and other people's tools."""

import json
import os
from dataclasses import replace

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from tests.unit.trace_samples import (
    described,
    large_batch,
    request,
    requests,
    torn_trace,
    write_trace,
)
from tracer.trace.adopt import adopt_segments
from tracer.trace.columns import flat_runs
from tracer.trace.errors import ForeignTraceError, TornTraceError, TraceError
from tracer.trace.ipc_bounds import footer_blocks
from tracer.trace.layout import sha256_of, write_manifest
from tracer.trace.manifest import Manifest, Segment
from tracer.trace.reader import open_trace
from tracer.trace.schema import MARKS, REQUESTS, TABLES, Mark, Side
from tracer.trace.storage import Storage
from tracer.trace.writer import TraceWriter

FILE = "requests/host-00001.arrow"


def both_sides(tmp_path):
    path = write_trace(tmp_path / "host.balloon", batches=2)
    adopt_segments(path, write_trace(tmp_path / "guest.balloon", Side.GUEST, batches=1), Side.GUEST)
    return open_trace(path)


def plant(tmp_path, table, compression="lz4", version="1.0"):
    """A trace whose requests segment is this Arrow table."""
    path = write_trace(tmp_path / "a.balloon")
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(str(path / FILE), table.schema, options=options) as writer:
        writer.write_table(table)
    size = (path / FILE).stat().st_size
    planted = Segment("requests", "host", FILE, len(table), size, sha256_of(path / FILE))
    manifest = open_trace(path).manifest
    others = [segment for segment in manifest.segments if segment.table != "requests"]
    write_manifest(path, replace(manifest, segments=(planted, *others), format_version=version))
    return path


def sample():
    return pa.Table.from_batches([requests([request(0), request(1)])])


def test_host_rows_come_first(tmp_path):
    trace = both_sides(tmp_path)
    assert trace.sides == (Side.HOST, Side.GUEST)
    assert trace.table("requests")["side"].to_pylist() == [0] * 40 + [1] * 20
    assert trace.table("requests", Side.GUEST).num_rows == 20
    assert trace.table("requests", side=Side.HOST).num_rows == 40
    assert trace.is_complete


def test_an_absent_table_is_empty_with_its_columns(tmp_path):
    trace = open_trace(write_trace(tmp_path / "a.balloon"))
    assert trace.table("samples").num_rows == 0
    assert trace.table("samples").schema.equals(TABLES["samples"], check_metadata=True)
    assert trace.dataset("samples").to_table().schema.names == TABLES["samples"].names


def test_a_table_is_read_once(tmp_path):
    trace = open_trace(write_trace(tmp_path / "a.balloon"))
    assert trace.table("calls") is trace.table("calls")


@pytest.mark.parametrize("kind", ["nothing", "file", "empty directory", "foreign manifest"])
def test_what_is_no_trace(tmp_path, kind):
    path = tmp_path / "a.balloon"
    if kind == "file":
        path.write_text("hello")
    elif kind != "nothing":
        path.mkdir()
    if kind == "foreign manifest":
        (path / "manifest.json").write_text('{"name": "web app"}')
    with pytest.raises(ForeignTraceError) as caught:
        open_trace(path)
    assert str(path) in caught.value.what


def test_a_lost_manifest_is_a_torn_trace(tmp_path):
    path = write_trace(tmp_path / "a.balloon")
    (path / "manifest.json").unlink()
    with pytest.raises(TornTraceError, match="no manifest"):
        open_trace(path)


def test_complete_needs_the_end_mark(tmp_path):
    """A manifest alone does not make a clean end: here somebody only set the flag."""
    writer = TraceWriter(tmp_path / "a.balloon", Side.HOST)
    writer.append("requests", requests([request(0)]))
    writer.mark(Mark.ATTACH, 1)
    writer.abort("pulled the plug")
    assert open_trace(writer.path).manifest.complete is False
    write_manifest(writer.path, replace(open_trace(writer.path).manifest, complete=True))
    trace = open_trace(writer.path)
    assert trace.manifest.complete
    assert not trace.is_complete


def test_a_torn_trace_is_read_and_left_alone(tmp_path):
    part = torn_trace(tmp_path / "a.balloon")
    raw = part.read_bytes()
    part.write_bytes(raw[:-100])
    before = {path: path.read_bytes() for path in part.parents[1].rglob("*") if path.is_file()}
    trace = open_trace(tmp_path / "a.balloon")
    assert not trace.is_complete
    assert trace.table("requests")["seq"].to_pylist() == list(range(40))
    assert {finding.code for finding in trace.findings} == {"part-open", "part-torn"}
    assert {path: path.read_bytes() for path in before} == before


def test_a_complete_trace_is_what_its_manifest_lists(tmp_path):
    path = write_trace(tmp_path / "a.balloon")
    (path / "requests" / "host-00002.arrow").write_bytes((path / FILE).read_bytes())
    trace = open_trace(path)
    assert trace.table("requests").num_rows == 60
    assert [finding.code for finding in trace.findings] == ["segment-unlisted"]


def test_a_foreign_column_is_named(tmp_path):
    table = sample().append_column("passwords", pa.array(["a", "b"]))
    with pytest.raises(TraceError, match=r"host-00001.arrow has a foreign column 'passwords'"):
        open_trace(plant(tmp_path, table)).table("requests")


def test_a_newer_minor_may_have_more_columns(tmp_path):
    table = sample().append_column("vcpu", pa.array([1, 2]))
    trace = open_trace(plant(tmp_path, table, version="1.7"))
    assert trace.table("requests").schema.names == REQUESTS.names


def test_an_older_minor_may_lack_nullable_columns(tmp_path):
    trace = open_trace(plant(tmp_path, sample().drop_columns(["puff_ns", "runs"])))
    assert trace.table("requests")["puff_ns"].null_count == 2
    assert trace.table("requests")["runs"].null_count == 2


@pytest.mark.parametrize("kind", ["lacks", "as string", "twice", "nulls", "side", "item nulls"])
def test_columns_that_do_not_fit(tmp_path, kind):
    table = sample()
    place = table.schema.names.index("seq")
    if kind == "lacks":
        table = table.drop_columns(["seq"])
    elif kind == "as string":
        table = table.set_column(place, "seq", pa.array(["a", "b"]))
    elif kind == "twice":
        table = table.append_column("seq", table["seq"])
    elif kind == "nulls":
        table = table.set_column(place, "seq", pa.array([None, 1], pa.uint64()))
    elif kind == "side":
        table = table.set_column(0, "side", pa.array([0, 1], pa.uint8()))
    else:
        kind = REQUESTS.field("runs").type
        fields = [pa.array([None, 1], pa.uint64()), pa.array([1, 1], pa.int32())]
        items = pa.Array.from_buffers(kind.value_type, 2, [None], children=fields)
        offsets = pa.py_buffer(np.array([0, 1, 2], np.int32))
        runs = pa.Array.from_buffers(kind, 2, [None, offsets], children=[items])
        place = table.schema.names.index("runs")
        table = table.set_column(place, REQUESTS.field("runs"), pa.chunked_array([runs]))
    trace = open_trace(plant(tmp_path, table))
    with pytest.raises(TraceError) as caught:
        trace.table("requests")
    assert "requests/host-00001.arrow" in caught.value.what


@pytest.mark.parametrize("kind", ["link", "pipe", "directory", "gone"])
def test_only_plain_files_are_opened(tmp_path, kind):
    path = write_trace(tmp_path / "a.balloon")
    (path / FILE).rename(tmp_path / "elsewhere")
    if kind == "link":
        (path / FILE).symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(path / FILE)
    elif kind == "directory":
        (path / FILE).mkdir()
    with pytest.raises(TraceError):
        open_trace(path).table("requests")


def test_a_small_file_cannot_ask_for_much_memory(tmp_path):
    """One buffer's own length field says 1 TiB; Arrow would believe it."""
    path = plant(tmp_path, sample())
    raw = bytearray((path / FILE).read_bytes())
    frame = raw.find(bytes.fromhex("04224d18"))
    assert frame > 0
    raw[frame - 8 : frame] = (1 << 40).to_bytes(8, "little")
    (path / FILE).write_bytes(raw)
    with pytest.raises(TraceError, match="damaged") as caught:
        open_trace(path).table("requests")
    assert "too many bytes" in caught.value.reason


def test_a_bomb_of_zeros_is_refused(tmp_path):
    """Really compressed data, 200 times smaller than what it decodes to."""
    rows = 1 << 20
    columns = {
        column.name: pa.array(np.zeros(rows, np.int64)).cast(column.type)
        for column in REQUESTS
        if column.name != "runs"
    }
    table = pa.table(columns, schema=REQUESTS.remove(REQUESTS.names.index("runs")))
    trace = open_trace(plant(tmp_path, table))
    with pytest.raises(TraceError, match="damaged") as caught:
        trace.table("requests")
    assert "too many bytes" in caught.value.reason


def test_list_offsets_out_of_range(tmp_path):
    """Offsets that lead outside the items would read other memory; first and last look right."""
    path = plant(tmp_path, sample(), compression=None)
    raw = bytearray((path / FILE).read_bytes())
    offsets = np.array([0, 1, 2], np.int32).tobytes()
    assert raw.count(offsets) == 1
    raw = raw.replace(offsets, np.array([0, 1 << 30, 2], np.int32).tobytes())
    (path / FILE).write_bytes(raw)
    with pytest.raises(TraceError, match="damaged"):
        open_trace(path).table("requests")
    with pytest.raises(TraceError, match="damaged"):
        open_trace(path).dataset("requests")


def test_the_footer_may_not_tell_another_story(tmp_path):
    """Other tools read by the footer: it has to list just the batches that were checked."""
    path = write_trace(tmp_path / "a.balloon", batches=2)
    raw = bytearray((path / FILE).read_bytes())
    first, second = (block.offset for block in footer_blocks(memoryview(raw)))
    place, other = (raw.rindex(start.to_bytes(8, "little")) for start in (first, second))
    raw[place : place + 24] = raw[other : other + 24]
    with pa.ipc.open_file(pa.py_buffer(bytes(raw))) as file:
        assert file.get_batch(0).equals(file.get_batch(1)), "Arrow itself believes the footer"
    (path / FILE).write_bytes(raw)
    with pytest.raises(TraceError, match="damaged"):
        open_trace(path).table("requests")


def test_the_footer_may_not_have_other_columns(tmp_path):
    path = write_trace(tmp_path / "a.balloon", batches=2)
    raw = bytearray((path / FILE).read_bytes())
    place = raw.rindex(b"push_ns")
    raw[place : place + 7] = b"pusH_ns"
    (path / FILE).write_bytes(raw)
    with pytest.raises(TraceError, match="damaged") as caught:
        open_trace(path).dataset("requests")
    assert "other columns" in caught.value.reason


def test_flat_runs_of_many_batches(tmp_path):
    with TraceWriter(tmp_path / "a.balloon", Side.HOST) as writer:
        writer.append("requests", requests([request(0, ((5, 3), (9, -2))), request(1, ())]))
        writer.append("requests", requests([request(2, runs=()) | {"runs": None}]))
        writer.append("requests", requests([request(3, ((7, 1),))]))
        writer.close(described())
    runs = flat_runs(open_trace(tmp_path / "a.balloon").table("requests")["runs"])
    assert runs.offsets.tolist() == [0, 2, 2, 2, 3]
    assert runs.pfn.tolist() == [5, 9, 7]
    assert runs.pages.tolist() == [3, -2, 1]
    assert (runs.pfn.dtype, runs.pages.dtype) == (np.uint64, np.int32)


def test_flat_runs_of_one_batch_share_its_memory():
    column = pa.chunked_array([requests([request(0), request(1)])["runs"]])
    runs = flat_runs(column)
    address = column.chunk(0).values.field("pfn").buffers()[1].address
    assert runs.pfn.__array_interface__["data"][0] == address


def test_closed_segments_open_in_other_tools(tmp_path):
    """docs/trace-format.md promises pandas, polars and DuckDB."""
    path = write_trace(tmp_path / "a.balloon", batches=2, rotate_bytes=1)
    segments = sorted((path / "requests").glob("*.arrow"))
    assert len(segments) == 2
    assert [len(pd.read_feather(segment)) for segment in segments] == [20, 20]
    pages = pl.scan_ipc(path / "requests" / "*.arrow").select(pl.col("pages").sum()).collect()
    assert pages.item() == 40 * 256
    assert pl.read_ipc(segments[0])["seq"].to_list() == list(range(20))
    requests_set = open_trace(path).dataset("requests")
    found = duckdb.sql("select count(*), sum(pages), max(pop_ns) from requests_set").fetchall()
    assert found == [(40, 40 * 256, 39_000)]
    assert requests_set is not None


def test_dataset_discovery_skips_the_open_part(tmp_path):
    import pyarrow.dataset as ds

    storage = Storage(rotate_bytes=40_000)
    with TraceWriter(tmp_path / "a.balloon", Side.HOST, storage=storage) as writer:
        writer.append("requests", large_batch(0, 2))
        writer.append("requests", requests([request(2)]))
        assert len(list((writer.path / "requests").glob("_*.part"))) == 1
        assert ds.dataset(writer.path / "requests", format="ipc").count_rows() == 2


def test_unit_metadata_survives(tmp_path):
    trace = open_trace(write_trace(tmp_path / "a.balloon"))
    assert trace.table("marks").schema.field("ts_ns").metadata == {b"unit": b"ns"}
    with pa.ipc.open_file(str(trace.path / "marks" / "host-00001.arrow")) as file:
        assert file.schema.equals(MARKS, check_metadata=True)


def test_keys_of_a_newer_minor_do_not_stop_reading(tmp_path):
    path = write_trace(tmp_path / "a.balloon")
    raw = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(raw | {"format_version": "1.3", "weather": 1}))
    trace = open_trace(path)
    assert trace.is_complete
    assert isinstance(trace.manifest, Manifest)
    assert trace.manifest.extra == {"weather": 1}
