"""A trace copied into the other form, and what is refused to be."""

import json
import os
import resource
import signal
import subprocess
import sys

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from aerostat.cli import main
from tests.unit.command import ROOT
from tests.unit.test_cli_import import content
from tests.unit.trace_samples import described, torn_trace, write_trace
from tracer.trace.check import check_trace
from tracer.trace.errors import ExitCode, TraceError
from tracer.trace.manifest import Loss
from tracer.trace.reader import open_trace
from tracer.trace.restate import restate
from tracer.trace.salvage import salvage
from tracer.trace.schema import CALLS, FORMAT_VERSION, TABLES, Side
from tracer.trace.writer import TraceWriter


def as_recorded(path):
    """Give what a copy may not change: all of the manifest but the files it lists."""
    manifest = json.loads((path / "manifest.json").read_text())
    return {key: value for key, value in manifest.items() if key != "segments"}


@pytest.mark.parametrize("delta", [True, False])
def test_rows_and_manifest_stay_and_the_form_is_the_one_asked_for(tmp_path, delta):
    path = write_trace(tmp_path / "a.balloon", delta=not delta)
    before = content(path)
    made = restate(path, tmp_path / "b.balloon", delta=delta)
    source, copy = open_trace(path), open_trace(tmp_path / "b.balloon")
    for table in TABLES:
        assert copy.table(table).equals(source.table(table))
    assert source.table("calls").num_rows == 60
    assert copy.segments_of_form(delta=delta) == source.segments_of_form(delta=not delta) != []
    assert copy.segments_of_form(delta=not delta) == []
    assert as_recorded(copy.path) == as_recorded(path)
    assert check_trace(copy) == check_trace(source)
    assert (made.segments, made.written_anew) == (len(source.manifest.segments), 2)
    assert made.after_bytes == sum(file.stat().st_size for file in copy.path.rglob("*.arrow"))
    assert content(path) == before


def test_other_tools_read_the_copy_in_absolute_numbers(tmp_path):
    path = write_trace(tmp_path / "a.balloon", delta=True)
    output = tmp_path / "b.balloon"
    assert main(["import", "--absolute", str(path), "-o", str(output)]) == ExitCode.OK
    wanted = open_trace(path).table("calls")
    segment = output / "calls" / "host-00001.arrow"
    read = pd.read_feather(segment)
    assert read["gpa"].tolist() == wanted["gpa"].to_pylist()
    assert pl.read_ipc(segment)["last_ns"].to_list() == wanted["last_ns"].to_pylist()
    found = duckdb.sql("select max(gpa), count(*) from read").fetchall()
    assert found == [(max(wanted["gpa"].to_pylist()), 60)]


def test_segments_that_have_the_form_are_copied_byte_by_byte(tmp_path):
    path = write_trace(tmp_path / "a.balloon", delta=True, compression="zstd")
    made = restate(path, tmp_path / "b.balloon", delta=True)
    assert made.written_anew == 0
    copy, source = content(tmp_path / "b.balloon"), content(path)
    assert {*copy} == {*source}
    assert all(copy[file] == source[file] for file in copy if file.endswith(".arrow"))


def test_it_says_what_it_wrote_and_what_was_lost_before(tmp_path, capsys):
    losses = [Loss("host", "calls", 3, 100, 200, "ring")]
    path = write_trace(tmp_path / "a.balloon", losses=losses)
    output = tmp_path / "b.balloon"
    code = main(["import", "--delta", str(path), "-o", str(output)])
    err = capsys.readouterr().err
    assert code == ExitCode.CAPTURE_INCOMPLETE
    assert f"{output} stores differences: 2 of 3 segments written anew" in err
    assert "3 calls" in err
    assert [loss.count for loss in open_trace(output).losses] == [3]


def test_show_says_that_segments_hold_differences(tmp_path, capsys):
    path = write_trace(tmp_path / "a.balloon", delta=True)
    main(["show", str(path)])
    assert "aerostat alone restores: 2." in " ".join(capsys.readouterr().out.split())
    main(["show", "--json", str(path)])
    document = json.loads(capsys.readouterr().out)
    assert document["delta_segments"] == ["requests/host-00001.arrow", "calls/host-00001.arrow"]
    main(["show", "--json", str(write_trace(tmp_path / "b.balloon"))])
    assert json.loads(capsys.readouterr().out)["delta_segments"] == []


def test_a_trace_that_is_not_whole_is_refused(tmp_path):
    torn_trace(tmp_path / "torn.balloon")
    with pytest.raises(TraceError, match="was not closed") as torn:
        restate(tmp_path / "torn.balloon", tmp_path / "b.balloon", delta=False)
    assert "aerostat import" in torn.value.remedy
    assert not (tmp_path / "b.balloon").exists()


@pytest.mark.parametrize("segment", ["calls/host-00001.arrow", "marks/host-00001.arrow"])
@pytest.mark.parametrize("damage", ["another", "gone", "pipe"])
def test_what_is_not_as_recorded_is_refused_before_anything_is_replaced(tmp_path, segment, damage):
    path = write_trace(tmp_path / "a.balloon")
    there = write_trace(tmp_path / "b.balloon", rows=7)
    before = content(there)
    (path / segment).unlink()
    if damage == "another":
        (path / segment).write_bytes((there / segment).read_bytes() + b" ")
    elif damage == "pipe":
        os.mkfifo(path / segment)
    with pytest.raises(TraceError) as refused:
        restate(path, there, delta=True, force=True)
    assert segment in refused.value.what
    assert content(there) == before
    if damage == "gone":
        other = "marks" if segment.startswith("calls") else "calls"
        assert open_trace(path).dataset(other).to_table().num_rows


def test_a_salvaged_trace_is_copied_and_stays_marked(tmp_path):
    torn_trace(tmp_path / "torn.balloon")
    salvage(tmp_path / "torn.balloon")
    restate(tmp_path / "torn.balloon", tmp_path / "b.balloon", delta=True)
    copy = open_trace(tmp_path / "b.balloon")
    assert copy.manifest.end_reason == "salvaged"
    assert not copy.is_complete
    assert copy.table("requests").equals(open_trace(tmp_path / "torn.balloon").table("requests"))


def test_a_side_alone_keeps_its_numbers(tmp_path):
    path = write_trace(tmp_path / "a.balloon", side=Side.GUEST)
    (path / "requests" / "guest-00001.arrow").rename(path / "requests" / "guest-00007.arrow")
    manifest = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(
        manifest.replace("requests/guest-00001", "requests/guest-00007")
    )
    restate(path, tmp_path / "b.balloon", delta=True)
    copy = open_trace(tmp_path / "b.balloon")
    assert copy.segments_of_form(delta=True) == ["requests/guest-00007.arrow"]
    assert copy.table("requests").equals(open_trace(path).table("requests"))


def test_rows_that_take_next_to_nothing_as_differences_become_several_files(tmp_path):
    """A reader refuses a file that would decode to far more than it takes."""
    steady = ("hva", "gpa", "first_ns", "last_ns")
    with TraceWriter(tmp_path / "a.balloon", Side.HOST) as writer:
        for begin in range(0, 1_200_000, 100_000):
            numbers = pa.array(np.arange(begin, begin + 100_000) * 4096)
            zeros = pc.multiply(numbers, 0)
            columns = [
                pc.cast(numbers if column.name in steady else zeros, column.type)
                for column in CALLS
            ]
            writer.append("calls", pa.RecordBatch.from_arrays(columns, schema=CALLS))
        writer.close(described())
    made = restate(tmp_path / "a.balloon", tmp_path / "b.balloon", delta=True)
    copy = open_trace(tmp_path / "b.balloon")
    files = copy.segments_of_form(delta=True)
    assert files == [f"calls/host-{n + 1:05d}.arrow" for n in range(len(files))]
    assert len(files) > made.written_anew == 1
    assert sum(each.num_rows for each in copy.batches("calls")) == 1_200_000


def test_a_copy_says_no_newer_version_than_its_form_needs(tmp_path):
    path = write_trace(tmp_path / "a.balloon")
    manifest = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(manifest.replace(f'"{FORMAT_VERSION}"', '"1.0"', 1))
    restate(path, tmp_path / "same.balloon", delta=False)
    restate(path, tmp_path / "delta.balloon", delta=True)
    assert open_trace(tmp_path / "same.balloon").manifest.format_version == "1.0"
    assert open_trace(tmp_path / "delta.balloon").manifest.format_version == FORMAT_VERSION


def test_a_manifest_that_counts_other_rows_is_refused(tmp_path):
    path = write_trace(tmp_path / "a.balloon")
    manifest = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(manifest.replace('"rows": 60', '"rows": 61', 1))
    with pytest.raises(TraceError, match="holds 60 rows, not 61"):
        restate(path, tmp_path / "b.balloon", delta=True)
    assert not (tmp_path / "b.balloon").exists()


def test_nothing_is_overwritten_unasked(tmp_path):
    path = write_trace(tmp_path / "a.balloon")
    there = write_trace(tmp_path / "b.balloon", rows=7)
    before = content(there)
    with pytest.raises(TraceError, match="exists"):
        restate(path, there, delta=True)
    assert content(there) == before
    with pytest.raises(TraceError, match="is the trace to copy"):
        restate(path, path, delta=True, force=True)
    with pytest.raises(TraceError, match="or in it"):
        restate(path, path / "calls" / "b", delta=True)
    restate(path, there, delta=True, force=True)
    assert open_trace(there).table("calls").equals(open_trace(path).table("calls"))


def test_a_disk_that_takes_no_more_leaves_no_copy(tmp_path):
    path = write_trace(tmp_path / "a.balloon", batches=40)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(TraceError, match="cannot copy") as failed:
            restate(path, tmp_path / "b.balloon", delta=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "too large" in failed.value.reason
    assert not (tmp_path / "b.balloon").exists()


def test_a_copier_that_is_killed_leaves_what_is_marked_and_can_be_replaced(tmp_path):
    path, there = write_trace(tmp_path / "a.balloon"), tmp_path / "b.balloon"
    script = (
        "import os, sys; from pathlib import Path; from tracer.trace import restate;"
        "restate.describe_segment = lambda *_: os.kill(os.getpid(), 9);"
        "restate.restate(Path(sys.argv[1]), Path(sys.argv[2]), delta=False)"
    )
    done = subprocess.run([sys.executable, "-c", script, path, there], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert open_trace(there).manifest.end_reason == "not all of it was copied"
    restate(path, there, delta=False, force=True)
    assert open_trace(there).is_complete


@pytest.mark.parametrize("arguments", [["--absolute", "--into", "a"], ["--delta"], ["--absolute"]])
def test_a_form_goes_with_an_output(tmp_path, arguments, monkeypatch):
    write_trace(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert main(["import", "a", *arguments]) == ExitCode.USAGE
