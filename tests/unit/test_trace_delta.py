"""Segments of differences: restored by us, honest to other tools, and small."""

import os
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.unit.trace_samples import (
    call,
    calls,
    described,
    request,
    requests,
    residency,
    write_trace,
)
from tracer.trace.check import check_trace
from tracer.trace.delta import Form
from tracer.trace.errors import TraceError
from tracer.trace.reader import open_trace
from tracer.trace.salvage import salvage
from tracer.trace.schema import CALLS, DELTA_TABLES, TABLES, Side
from tracer.trace.segment_reader import closed_batches
from tracer.trace.storage import Storage
from tracer.trace.writer import TraceWriter

TRACES = Path(__file__).parents[2] / "traces"
MANY = [
    call(seq, hva=0x7F00_0000_0000 + 8192 * n, gpa=8192 * n, first_ns=10**15 + 3000 * n, step=0)
    | {"last_ns": 10**15 + 3000 * n + 900 + n % 7, "total_ns": 900 + n % 7, "worst_ns": 900 + n % 7}
    for n, seq in enumerate([*range(400)] * 5)
]


def written(path, rows, **storage):
    with TraceWriter(path, Side.HOST, storage=Storage(**storage)) as writer:
        for begin in range(0, len(rows), 500):
            writer.append("calls", calls(rows[begin : begin + 500]))
        writer.close(described())
    return writer.path / "calls" / "host-00001.arrow"


def test_a_trace_of_differences_reads_like_any_other(tmp_path):
    plain = open_trace(write_trace(tmp_path / "plain.balloon"))
    delta = open_trace(write_trace(tmp_path / "delta.balloon", delta=True))
    for table in ("requests", "calls"):
        assert delta.table(table).equals(plain.table(table))
        assert delta.dataset(table).to_table().equals(plain.dataset(table).to_table())
    assert delta.table("calls").num_rows == 60
    assert {finding.code for finding in check_trace(delta)} == (
        {finding.code for finding in check_trace(plain)}
    )


def test_a_dataset_of_differences_has_the_absolute_numbers(tmp_path):
    written(tmp_path / "a.balloon", MANY, delta=True)
    calls_set = open_trace(tmp_path / "a.balloon").dataset("calls")
    found = duckdb.sql("select count(*), min(first_ns), max(last_ns), max(gpa) from calls_set")
    assert calls_set is not None
    assert found.fetchall() == [(2000, 10**15, MANY[-1]["last_ns"], MANY[-1]["gpa"])]


def test_other_tools_see_differences_under_names_of_their_own(tmp_path):
    segment = written(tmp_path / "a.balloon", MANY, delta=True)
    for names in (pd.read_feather(segment).columns, pl.read_ipc(segment).columns):
        assert [*names] == DELTA_TABLES["calls"].names
    found = pl.read_ipc(segment)
    assert found["hva_delta"][:3].to_list() == [0x7F00_0000_0000, 8192, 8192]
    assert found["first_ns_delta_low"][1] == MANY[1]["first_ns"] - MANY[0]["last_ns"]
    assert found["last_ns_delta_low"][0] == 900
    assert found["first_ns_delta_high"][:500].to_list() == [10**15 >> 16, *[0] * 499]
    for name in ("total_ns_delta", "worst_ns_delta"):
        assert not found[name].to_numpy().any()


def test_a_fragmented_guest_takes_two_bytes_a_page(tmp_path):
    """The goal of the capture: at most 2 with lz4, and less with zstd."""
    trace = open_trace(TRACES / "fragmented.balloon")
    taken = {}
    for compression in ("lz4", "zstd"):
        storage = Storage(compression=compression, delta=True)
        with TraceWriter(tmp_path / compression, Side.HOST, storage=storage) as writer:
            for table in TABLES:
                for batch in trace.batches(table, Side.HOST):
                    writer.append(table, batch)
            writer.close(trace.manifest)
        size_bytes = sum(path.stat().st_size for path in writer.path.rglob("*.arrow"))
        taken[compression] = (
            size_bytes / pc.sum(trace.table("requests", Side.HOST)["pages"]).as_py()
        )
        for table in ("requests", "calls"):
            assert open_trace(writer.path).table(table).equals(trace.table(table, Side.HOST))
    assert 0.5 < taken["zstd"] < taken["lz4"] <= 2


def test_what_is_not_observed_stays_so_and_the_next_goes_on_from_before(tmp_path):
    rows = [call(1, gpa=4096), call(None, gpa=None), call(3, gpa=12288), call(None, hva=5)]
    segment = written(tmp_path / "a.balloon", rows, delta=True)
    with pa.ipc.open_file(segment) as file:
        assert file.read_all()["gpa_delta"].to_pylist() == [4096, None, 8192, (1000 << 12) - 12288]
    read = open_trace(tmp_path / "a.balloon").table("calls")
    assert read.equals(pa.Table.from_batches([calls(rows)]))


def test_a_torn_trace_of_differences_is_salvaged_as_one(tmp_path):
    path = tmp_path / "a.balloon"
    storage = Storage(delta=True)
    writer = TraceWriter(path, Side.HOST, manifest=described(), storage=storage)
    for begin in range(0, 2000, 500):
        writer.append("calls", calls(MANY[begin : begin + 500]))
    writer.append("requests", requests([request(0, ((7, 3), (2, -2)))]))
    os.close(writer._lock)
    part = path / "calls" / "_host-00001.arrow.part"
    os.truncate(part, part.stat().st_size - 100)
    assert open_trace(path).table("calls").num_rows == 1500
    assert salvage(path).rows["calls"] == 1500
    segment = path / "calls" / "host-00001.arrow"
    with pa.ipc.open_file(segment) as file:
        assert file.schema.equals(DELTA_TABLES["calls"])
    assert open_trace(path).table("calls").equals(pa.Table.from_batches([calls(MANY[:1500])]))
    runs = open_trace(path).table("requests")["runs"].to_pylist()
    assert runs == [[{"pfn": 7, "pages": 3}, {"pfn": 2, "pages": -2}]]


def test_small_batches_of_differences_become_one(tmp_path):
    with TraceWriter(tmp_path / "a.balloon", Side.HOST, storage=Storage(delta=True)) as writer:
        for number in range(40):
            writer.append("requests", requests([request(number, ((number * 10, 2),))]))
        writer.append("residency", residency(3))
        writer.close(described())
    (batch,) = open_trace(writer.path).batches("requests")
    assert [runs[0]["pfn"] for runs in batch["runs"].to_pylist()] == [*range(0, 400, 10)]
    with pa.ipc.open_file(writer.path / "requests" / "host-00001.arrow") as file:
        assert file.schema.equals(DELTA_TABLES["requests"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.append_column("first_ns", rows["hva_delta"]), "foreign column"),
        (
            lambda rows: rows.drop_columns(["last_ns_delta_low"]),
            "lacks the column 'last_ns_delta_low'",
        ),
        (lambda rows: rows.append_column("hva_delta", rows["hva_delta"]), "twice"),
    ],
)
def test_columns_of_neither_form_are_refused(tmp_path, change, words):
    stored = Form("calls", delta=True).stored(calls(MANY[:3]))
    path = tmp_path / "a.balloon" / "calls" / "host-00001.arrow"
    path.parent.mkdir(parents=True)
    rows = change(pa.Table.from_batches([stored]))
    with pa.ipc.new_file(str(path), rows.schema) as writer:
        writer.write_table(rows)
    with pytest.raises(TraceError, match=words):
        [*closed_batches(path, "calls")]


def test_differences_that_are_null_where_none_may_be_are_refused(tmp_path):
    stored = Form("calls", delta=True).stored(calls(MANY[:3]))
    at = stored.schema.get_field_index("total_ns_delta")
    kind = pa.field("total_ns_delta", pa.int64())
    rows = pa.Table.from_batches([stored]).set_column(at, kind, pa.array([1, None, 3], pa.int64()))
    path = tmp_path / "a.balloon" / "calls" / "host-00001.arrow"
    path.parent.mkdir(parents=True)
    with pa.ipc.new_file(str(path), rows.schema) as writer:
        writer.write_table(rows)
    with pytest.raises(TraceError, match="total_ns_delta"):
        [*closed_batches(path, "calls")]


def test_tables_without_differences_have_one_form():
    assert Form("samples", delta=True).schema is TABLES["samples"]
    assert Form("calls").schema is CALLS
