"""A whole trace copied into the other form, and what is refused to be."""

import json
import resource

import duckdb
import pandas as pd
import polars as pl
import pytest

from aerostat.cli import main
from tests.unit.test_cli_import import content
from tests.unit.trace_samples import torn_trace, write_trace
from tracer.trace.check import check_trace
from tracer.trace.errors import ExitCode, TraceError
from tracer.trace.manifest import Loss
from tracer.trace.reader import open_trace
from tracer.trace.restate import restate
from tracer.trace.schema import TABLES


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
    assert "2 segments store differences" in " ".join(capsys.readouterr().out.split())
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


def test_a_file_that_was_changed_gets_no_hash_of_its_own(tmp_path):
    path = write_trace(tmp_path / "a.balloon")
    other = write_trace(tmp_path / "other.balloon", rows=7)
    segment = "calls/host-00001.arrow"
    (path / segment).write_bytes((other / segment).read_bytes())
    with pytest.raises(TraceError, match="not the file that was recorded"):
        restate(path, tmp_path / "b.balloon", delta=True)
    assert not open_trace(tmp_path / "b.balloon").is_complete


def test_nothing_is_overwritten_unasked(tmp_path):
    path = write_trace(tmp_path / "a.balloon")
    there = write_trace(tmp_path / "b.balloon", rows=7)
    before = content(there)
    with pytest.raises(TraceError, match="exists"):
        restate(path, there, delta=True)
    assert content(there) == before
    with pytest.raises(TraceError, match="is the trace to copy"):
        restate(path, path, delta=True, force=True)
    restate(path, there, delta=True, force=True)
    assert open_trace(there).table("calls").equals(open_trace(path).table("calls"))


def test_a_disk_that_takes_no_more_leaves_a_copy_that_is_marked(tmp_path):
    path = write_trace(tmp_path / "a.balloon", batches=40)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(TraceError, match="cannot copy") as failed:
            restate(path, tmp_path / "b.balloon", delta=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "too large" in failed.value.reason
    assert not open_trace(tmp_path / "b.balloon").is_complete


@pytest.mark.parametrize("arguments", [["--absolute", "--into", "a"], ["--delta"], ["--absolute"]])
def test_a_form_goes_with_an_output(tmp_path, arguments, monkeypatch):
    write_trace(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert main(["import", "a", *arguments]) == ExitCode.USAGE
