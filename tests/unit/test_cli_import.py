"""`aerostat import -o`: what is whole of a torn trace, from the command line."""

import json
import os
import resource
from pathlib import Path

import pyarrow as pa
import pytest

from aerostat.cli import main
from tests.unit.capture_bundle import write_guest, write_host
from tests.unit.trace_samples import torn_trace, write_trace
from tracer.trace.errors import ExitCode, TornTraceError
from tracer.trace.layout import lock
from tracer.trace.reader import open_trace

ROWS = 60


def content(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    torn_trace(tmp_path / "torn.balloon")
    return tmp_path / "torn.balloon"


def test_a_torn_trace_is_made_whole_elsewhere(torn: Path, tmp_path: Path, capsys) -> None:
    before, whole = content(torn), tmp_path / "whole.balloon"
    assert main(["import", str(torn), "-o", str(whole)]) == ExitCode.OK
    assert f"keeps {ROWS} requests" in capsys.readouterr().err
    assert content(torn) == before
    with pa.ipc.open_file(str(whole / "requests" / "host-00001.arrow")) as file:
        assert file.read_all().num_rows == ROWS
    assert main(["show", str(whole)]) == ExitCode.CAPTURE_INCOMPLETE
    assert "Losses: none recorded up to here; the trace is not complete." in capsys.readouterr().out
    assert open_trace(whole).manifest.end_reason == "salvaged"


def test_what_is_lost_is_said_and_shows_in_the_exit_code(torn: Path, tmp_path: Path, capsys):
    part = torn / "requests" / "_host-00001.arrow.part"
    part.write_bytes(part.read_bytes()[:-50])
    code = main(["import", str(torn), "-o", str(tmp_path / "whole.balloon")])
    assert code == ExitCode.CAPTURE_INCOMPLETE
    err = capsys.readouterr().err
    assert "requests/_host-00001.arrow.part: kept 40 rows, dropped" in err
    assert "keeps 40 requests" in err


@pytest.mark.parametrize("damage", ["manifest cut", "manifest gone", "segment cut", "another"])
def test_it_is_the_damaged_trace_that_is_named_and_not_its_copy(
    damage: str, tmp_path: Path, capsys
) -> None:
    path, output = write_trace(tmp_path / "bad.balloon"), tmp_path / "copy.balloon"
    segment, named = path / "requests" / "host-00001.arrow", f"{path}/requests/host-00001.arrow"
    if damage.startswith("manifest"):
        segment, named = path / "manifest.json", str(path)
    content = (path / "marks" / "host-00001.arrow").read_bytes()
    if damage == "manifest gone":
        segment.unlink()
    else:
        segment.write_bytes(content if damage == "another" else segment.read_bytes()[:700])
    assert main(["import", str(path), "-o", str(output)]) == ExitCode.CAPTURE_INCOMPLETE
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert told
    assert all(line.startswith(f"error: {named}") for line in told)


def test_a_copy_may_be_called_what_is_in_every_word(tmp_path: Path, monkeypatch, capsys) -> None:
    path = write_trace(tmp_path / "bad.balloon")
    segment = path / "requests" / "host-00001.arrow"
    segment.write_bytes(segment.read_bytes()[:700])
    monkeypatch.chdir(tmp_path)
    assert main(["import", "bad.balloon", "-o", "a"]) == ExitCode.CAPTURE_INCOMPLETE
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert told
    for line in told:
        assert line.startswith("error: bad.balloon/requests/host-00001.arrow is damaged (")
        assert line.count("bad.balloon") == 1


@pytest.mark.parametrize("damage", ["manifest cut", "manifest gone", "segment cut"])
def test_the_remedy_of_a_damaged_trace_works_as_it_stands(
    damage: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    path = write_trace(tmp_path / "bad.balloon")
    manifest = path / "manifest.json"
    if damage == "manifest cut":
        manifest.write_bytes(manifest.read_bytes()[:100])
    elif damage == "manifest gone":
        manifest.unlink()
    else:
        segment = path / "requests" / "host-00001.arrow"
        segment.write_bytes(segment.read_bytes()[: segment.stat().st_size * 3 // 4])
    assert main(["show", str(path)]) == TornTraceError.exit_code
    remedy = capsys.readouterr().err.split("try:")[1]
    command = remedy.partition("aerostat ")[2].split()
    assert command == ["import", str(path), "-o", "WHOLE.balloon"]
    monkeypatch.chdir(tmp_path)
    # The manifest or the tail of the segment is lost, and that is what the code says.
    assert main(command) == ExitCode.CAPTURE_INCOMPLETE
    kept = open_trace(tmp_path / "WHOLE.balloon").table("requests").num_rows
    assert kept == (40 if damage == "segment cut" else ROWS)


def test_the_trace_itself_is_never_the_output(torn: Path, capsys) -> None:
    before = content(torn)
    assert main(["import", str(torn), "-o", str(torn), "--force"]) == ExitCode.FAILURE
    assert "it is only read" in capsys.readouterr().err
    assert content(torn) == before


@pytest.mark.parametrize("form", [[], ["--delta"], ["--absolute"]])
@pytest.mark.parametrize("place", ["sub", "calls/sub", "../link/sub"])
def test_nothing_is_made_in_the_trace_itself(
    place: str, form: list[str], tmp_path: Path, capsys
) -> None:
    path = write_trace(tmp_path / "a.balloon")
    (tmp_path / "link").symlink_to(path)
    before = sorted(path.rglob("*"))
    assert main(["import", str(path), "-o", str(path / place), *form]) == ExitCode.FAILURE
    assert "it is only read" in capsys.readouterr().err
    assert sorted(path.rglob("*")) == before


def test_no_side_goes_into_a_trace_that_lies_in_the_one_it_comes_from(
    tmp_path: Path, capsys
) -> None:
    guest = write_guest(tmp_path / "guest.balloon")
    host = write_host(guest / "host.balloon")
    before = content(guest)
    assert main(["import", str(guest), "--into", str(host)]) == ExitCode.FAILURE
    assert "it is only read" in capsys.readouterr().err
    assert content(guest) == before


def test_an_output_is_replaced_only_by_force(torn: Path, tmp_path: Path, capsys) -> None:
    other = write_trace(tmp_path / "other.balloon")
    before = content(other)
    assert main(["import", str(torn), "-o", str(other)]) == ExitCode.FAILURE
    assert content(other) == before
    assert "--force" in capsys.readouterr().err
    assert main(["import", str(torn), "-o", str(other), "--force"]) == ExitCode.OK
    assert json.loads((other / "manifest.json").read_text())["end_reason"] == "salvaged"


@pytest.mark.parametrize("form", [[], ["--delta"]])
@pytest.mark.parametrize("damage", ["link", "pipe", "folder", "huge"])
def test_a_file_that_is_not_read_costs_the_trace_that_is_there_nothing(
    damage: str, form: list[str], tmp_path: Path, capsys
) -> None:
    bad, good = write_trace(tmp_path / "bad.balloon"), write_trace(tmp_path / "good.balloon")
    segment, before = bad / "marks" / "host-00001.arrow", content(good)
    segment.unlink()
    if damage == "link":
        segment.symlink_to(good / "marks" / "host-00001.arrow")
    elif damage == "pipe":
        os.mkfifo(segment)
    elif damage == "folder":
        segment.mkdir()
    else:
        segment.touch()
        os.truncate(segment, 20 << 30)
    code = main(["import", str(bad), "-o", str(good), "--force", *form])
    assert code == ExitCode.FAILURE
    assert str(segment) in capsys.readouterr().err
    assert content(good) == before
    other = write_trace(tmp_path / "other.balloon", rows=7)
    assert main(["import", str(other), "-o", str(good), "--force", *form]) == ExitCode.OK
    assert open_trace(good).table("requests").num_rows == 21


def test_a_salvage_that_fails_leaves_no_copy(torn: Path, tmp_path: Path, capsys) -> None:
    before = content(torn)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        code = main(["import", str(torn), "-o", str(tmp_path / "whole.balloon")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == ExitCode.FAILURE
    assert f"cannot salvage {torn} to {tmp_path / 'whole.balloon'}" in capsys.readouterr().err
    assert not (tmp_path / "whole.balloon").exists()
    assert content(torn) == before


def test_a_trace_that_is_being_recorded_is_refused(torn: Path, tmp_path: Path, capsys) -> None:
    descriptor = lock(torn)
    try:
        assert main(["import", str(torn), "-o", str(tmp_path / "w.balloon")]) == ExitCode.FAILURE
    finally:
        os.close(descriptor)
    assert "being written by another process" in capsys.readouterr().err
    assert not (tmp_path / "w.balloon").exists()


@pytest.mark.parametrize("more", [[], ["--into", "h.balloon", "-o", "w.balloon"]])
def test_import_does_one_thing(more: list[str], torn: Path, capsys) -> None:
    assert main(["import", str(torn), *more]) == ExitCode.USAGE
    assert "either --into HOST or -o WHOLE" in capsys.readouterr().err
