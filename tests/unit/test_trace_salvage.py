"""What salvage makes of torn, killed, damaged and foreign traces."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.trace_samples import described, request, requests, torn_trace, write_trace
from tracer.account.ledger import ledger
from tracer.trace.check import check_trace
from tracer.trace.errors import ForeignTraceError, TraceError
from tracer.trace.manifest import Loss, Manifest
from tracer.trace.reader import open_trace
from tracer.trace.salvage import salvage
from tracer.trace.schema import Side
from tracer.trace.writer import TraceWriter

FILE = "requests/host-00001.arrow"
ROOT = Path(__file__).parents[2]

RECORDER = """
import sys
from tests.unit.trace_samples import described, request, requests
from tracer.trace.schema import Side
from tracer.trace.storage import Storage
from tracer.trace.writer import TraceWriter

storage = Storage(rotate_bytes=60_000)
writer = TraceWriter(sys.argv[1], Side.HOST, manifest=described(), storage=storage)
for batch in range(1_000_000):
    writer.append("requests", requests(request(batch * 20 + row) for row in range(20)))
    print(batch, flush=True)
"""


def test_a_killed_recorder_loses_at_most_the_batch_in_hand(tmp_path):
    path = tmp_path / "a.balloon"
    process = subprocess.Popen(
        [sys.executable, "-c", RECORDER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if int(line) >= 40:
            break
    process.send_signal(signal.SIGKILL)
    told = [int(line), *(int(rest) for rest in process.stdout.read().split())]
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()

    assert list((path / "requests").glob("*.arrow")), "a segment was closed before the kill"
    report = salvage(path)
    trace = open_trace(path)
    kept = trace.table("requests")["seq"].to_pylist()
    appended = (max(told) + 1) * 20
    # The kill may fall between an append and its line of output: then there is one batch more.
    assert len(kept) in {appended, appended + 20}
    assert kept == list(range(len(kept)))
    assert report.rows["requests"] == len(kept)
    assert trace.manifest.end_reason == "salvaged"
    assert trace.manifest.vm.name == "vm0"
    assert not trace.is_complete
    assert not list(path.rglob("_*"))
    assert {finding.code for finding in check_trace(trace)} == {"not-complete", "end-missing"}


def test_a_torn_part_becomes_a_closed_segment(tmp_path):
    part = torn_trace(tmp_path / "a.balloon")
    raw = part.read_bytes()
    part.write_bytes(raw[:-50])
    report = salvage(tmp_path / "a.balloon")
    assert report.rows == {"requests": 40, "calls": 0, "samples": 0, "marks": 0, "residency": 0}
    assert 0 < report.dropped_bytes < len(raw) / 3
    assert not part.exists()
    trace = open_trace(tmp_path / "a.balloon")
    assert trace.dataset("requests").count_rows() == 40
    assert trace.findings == []


def test_salvage_again_changes_nothing(tmp_path):
    torn_trace(tmp_path / "a.balloon")
    first = salvage(tmp_path / "a.balloon")
    manifest = (tmp_path / "a.balloon" / "manifest.json").read_bytes()
    second = salvage(tmp_path / "a.balloon")
    assert first.rows == second.rows
    assert (tmp_path / "a.balloon" / "manifest.json").read_bytes() == manifest


def test_a_whole_trace_is_left_as_it_is(tmp_path):
    path = write_trace(tmp_path / "a.balloon")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert salvage(path).findings == ()
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert open_trace(path).is_complete


def test_output_leaves_the_original_alone(tmp_path):
    part = torn_trace(tmp_path / "a.balloon")
    (tmp_path / "a.balloon" / "notes.txt").write_text("mine")
    report = salvage(tmp_path / "a.balloon", tmp_path / "b.balloon")
    assert part.exists()
    assert report.path == tmp_path / "b.balloon"
    assert open_trace(tmp_path / "b.balloon").table("requests").num_rows == 60
    assert not (tmp_path / "b.balloon" / "notes.txt").exists()


@pytest.mark.parametrize("damage", ["gone", "torn", "hostile"])
def test_the_manifest_is_rebuilt(tmp_path, damage):
    path = write_trace(tmp_path / "a.balloon", losses=(LOSS,))
    file = path / "manifest.json"
    if damage == "gone":
        file.unlink()
    elif damage == "torn":
        file.write_bytes(file.read_bytes()[:200])
    else:
        file.write_text(file.read_text().replace('"rows": 60', '"rows": -60'))
    if damage == "hostile":
        # A manifest that is whole but wrong is not torn: nobody guesses what was meant.
        with pytest.raises(TraceError, match="rows"):
            salvage(path)
        return
    report = salvage(path)
    assert [finding.code for finding in report.findings] == ["manifest-damaged"]
    trace = open_trace(path)
    assert trace.sides == (Side.HOST,)
    assert trace.manifest.sides == {}
    assert trace.manifest.created_realtime_ns is None
    assert trace.losses == (LOSS,)
    assert (path / "_manifest.json.damaged").exists() == (damage == "torn")
    assert not trace.is_complete


LOSS = Loss("host", "calls", 4, 10, 20)


def test_a_damaged_closed_segment_keeps_its_whole_batches(tmp_path):
    path = write_trace(tmp_path / "a.balloon")
    raw = (path / FILE).read_bytes()
    (path / FILE).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(TraceError, match="damaged"):
        open_trace(path).table("requests")
    report = salvage(path)
    assert report.rows["requests"] == 20
    trace = open_trace(path)
    assert trace.table("requests").num_rows == 20
    assert not trace.manifest.complete


def test_damage_of_the_marks_erases_no_loss_that_the_manifest_knows(tmp_path):
    path = write_trace(tmp_path / "a.balloon", losses=(LOSS,))
    marks = path / "marks" / "host-00001.arrow"
    marks.write_bytes(marks.read_bytes()[:700])
    assert salvage(path, tmp_path / "b.balloon").rows["marks"] == 0
    copy = open_trace(tmp_path / "b.balloon")
    assert copy.losses == copy.manifest.losses == (LOSS,)
    (line,) = [line for line in ledger(copy).lines if line.name == "loss: host calls"]
    assert (line.pages, line.status) == (LOSS.count, f"differs by +{LOSS.count}")


def test_a_changed_segment_is_not_laundered(tmp_path):
    """Damage that Arrow cannot see stays a finding; the trace is never again complete."""
    path = write_trace(tmp_path / "a.balloon")
    other = write_trace(tmp_path / "b.balloon", batches=2)
    (path / FILE).write_bytes((other / FILE).read_bytes())
    assert [finding.code for finding in salvage(path).findings] == ["segment-hash"]
    assert not open_trace(path).manifest.complete


def test_a_file_of_something_else_is_set_aside(tmp_path):
    path = write_trace(tmp_path / "a.balloon")
    (path / FILE).write_bytes((path / "calls" / "host-00001.arrow").read_bytes())
    report = salvage(path)
    assert "segment-unreadable" in {finding.code for finding in report.findings}
    assert (path / "requests" / "_host-00001.arrow.unreadable").exists()
    assert open_trace(path).table("requests").num_rows == 0
    assert open_trace(path).table("calls").num_rows == 60


def test_a_trace_being_written_is_not_touched(tmp_path):
    with TraceWriter(tmp_path / "a.balloon", Side.HOST) as writer:
        writer.append("requests", requests([request(0)]))
        with pytest.raises(TraceError, match="being written"):
            salvage(writer.path)
        writer.close(described())
    assert open_trace(tmp_path / "a.balloon").is_complete


def test_salvage_cut_short_goes_on(tmp_path):
    """Killed between the rename and the removal of the part: both files are there."""
    part = torn_trace(tmp_path / "a.balloon")
    raw = part.read_bytes()
    salvage(tmp_path / "a.balloon")
    part.write_bytes(raw)
    (part.parent / "_host-00001.arrow.new").write_bytes(b"half")
    assert salvage(tmp_path / "a.balloon").rows["requests"] == 60
    assert open_trace(tmp_path / "a.balloon").table("requests").num_rows == 60
    assert not part.exists()


def test_what_is_no_trace_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("ten years")
    with pytest.raises(ForeignTraceError):
        salvage(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    assert Manifest().complete is False
