"""A flight recorder holds a bounded past, and each dump of it is a whole trace."""

import time

import pyarrow as pa
import pytest

from tests.unit.trace_samples import call, calls, described, large_batch, request, requests
from tracer.record import flight_dump
from tracer.record.flight import FlightOptions, FlightRecorder
from tracer.record.triggers import Incident, Kind, TriggerRules
from tracer.trace.check import check_trace
from tracer.trace.errors import TraceError
from tracer.trace.reader import open_trace
from tracer.trace.schema import SAMPLES, Mark, Side
from tracer.trace.sink import Sink
from tracer.trace.storage import Storage
from tracer.trace.writer import TraceWriter

S = 10**9
ASKED = Incident(Kind.SIGNAL, 8000, None, "asked for")


def recorder(tmp_path, span_ns=60 * S, **options):
    flight = FlightRecorder(
        tmp_path / "vm0.balloon", Side.HOST, options=FlightOptions(span_ns, **options)
    )
    flight.describe(described())
    return flight


def finished(flight):
    """Wait for every dump that is under way."""
    found = []
    while flight._dumps._under_way:
        found += flight.dumps()
        time.sleep(0.005)
    return found


def feed(flight, first, last):
    """One request in a batch of its own, and its call."""
    for seq in range(first, last):
        flight.append("requests", requests([request(seq)]))
        flight.append("calls", calls([call(seq)]))


def test_both_are_sinks(tmp_path):
    sinks: list[Sink] = [
        recorder(tmp_path),
        TraceWriter(tmp_path / "a.balloon", Side.HOST),
    ]
    for sink in sinks:
        with sink:
            sink.describe(described())
            sink.append("requests", requests([request(0)]))
            sink.mark(Mark.TARGET, 5, value=7)
            sink.loss("calls", 3, 1, 2, cause="ring")
            sink.tick()
            assert sink.stop_reason is None
            assert sink.written_bytes >= 0
            sink.close(described())
            with pytest.raises(ValueError, match="closed"):
                sink.append("requests", requests([request(0)]))


def test_a_dump_is_a_whole_trace(tmp_path):
    with recorder(tmp_path) as flight:
        flight.mark(Mark.ATTACH, 1)
        feed(flight, 0, 30)
        flight.loss("requests", 4, 10, 20, cause="ring")
        flight.loss("requests", 5, 20, 30, cause="ring")
        first = flight.dump(ASKED)
        (dump,) = finished(flight)
        assert (dump.path, dump.problem) == (first, None)
        assert flight.written_bytes == dump.size_bytes > 0
        feed(flight, 30, 40)
        second = flight.dump(ASKED)
        flight.close(described())
    assert [first.name, second.name] == ["vm0-00001.balloon", "vm0-00002.balloon"]
    assert not (tmp_path / "vm0.balloon").exists()
    for path, rows in ((first, 30), (second, 40)):
        trace = open_trace(path)
        assert trace.is_complete
        assert trace.table("requests")["seq"].to_pylist() == list(range(rows))
        assert trace.table("calls").num_rows == rows
        assert trace.manifest.end_reason == "trigger: signal"
        assert trace.manifest.vm.name == "vm0"
        assert sum(item.count for item in trace.losses) == 9
        assert {finding.code for finding in check_trace(trace)} == {"loss"}
        marks = trace.table("marks").to_pylist()
        (trigger,) = [mark for mark in marks if mark["mark"] == Mark.TRIGGER]
        assert (trigger["ts_ns"], trigger["text"]) == (8000, "signal: asked for")
        assert trace.manifest.sides["host"].begin_ns == 100
    assert open_trace(first).manifest.session_id != open_trace(second).manifest.session_id


def test_the_past_is_bounded_in_time(tmp_path):
    with recorder(tmp_path, span_ns=S) as flight:
        feed(flight, 0, 20)
        time.sleep(1.25)
        feed(flight, 20, 30)
        flight.dump(ASKED)
        (dump,) = finished(flight)
        flight.close(described())
    trace = open_trace(dump.path)
    (first, *_) = kept = trace.table("requests")["seq"].to_pylist()
    assert 20 <= first < 30, "later ones may be too old too, where the machine stood still"
    assert kept == list(range(first, 30))
    assert trace.table("calls")["request_seq"].to_pylist()[-len(kept) :] == kept
    assert trace.manifest.sides["host"].begin_ns == 1000 * (first - 1) + 500
    assert check_trace(trace) == []


def test_a_quiet_recorder_forgets_too(tmp_path):
    with recorder(tmp_path, span_ns=S // 20) as flight:
        feed(flight, 0, 20)
        assert flight.held_bytes > 0
        time.sleep(0.06)
        flight.tick()
        assert flight.held_bytes == 0
        flight.close(described())


def test_the_past_is_bounded_in_memory(tmp_path):
    limit = 4 << 20
    with recorder(tmp_path, limit_bytes=limit) as flight:
        before = pa.total_allocated_bytes()
        for batch in range(60):
            flight.append("requests", large_batch(5 * batch, 5))
            assert flight.held_bytes <= limit
        assert pa.total_allocated_bytes() - before <= limit
        flight.dump(ASKED)
        (dump,) = finished(flight)
        flight.close(described())
    trace = open_trace(dump.path)
    kept = trace.table("requests")["seq"].to_pylist()
    assert 10 < len(kept) < 300
    assert kept == list(range(300 - len(kept), 300))
    assert trace.manifest.sides["host"].begin_ns == 1000 * (kept[0] - 1) + 500
    assert check_trace(trace) == []


def test_marks_one_by_one_are_bounded_too(tmp_path):
    with recorder(tmp_path, limit_bytes=1 << 20) as flight:
        for number in range(2000):
            flight.mark(Mark.RUN_STATE, number, text="paused")
        assert len(flight._held) < 300
        flight.close(described())


def test_calls_whose_request_is_forgotten_are_left_out(tmp_path):
    """Calls come after their requests: the oldest calls may belong to none that is held."""
    with recorder(tmp_path, limit_bytes=100_000) as flight:
        flight.append("requests", requests(request(seq) for seq in range(40)))
        flight.append("calls", calls([*(call(seq) for seq in range(40)), call(None)]))
        while flight._held[0].table == "requests":
            flight.mark(Mark.TARGET, 1, value=1)
        assert flight._held[0].table == "calls"
        alone = flight.dump(ASKED)
        flight.append("requests", requests([request(40)]))
        flight.append("calls", calls([call(40)]))
        with_request = flight.dump(ASKED)
        flight.close(described())
    assert open_trace(alone).table("calls")["request_seq"].to_pylist() == [None]
    assert open_trace(with_request).table("calls")["request_seq"].to_pylist() == [None, 40]
    for path in (alone, with_request):
        assert check_trace(open_trace(path)) == []


def test_what_is_written_meanwhile_is_in_the_next_dump(tmp_path):
    """Rows go on coming while a dump is written."""
    with recorder(tmp_path) as flight:
        paths, seq = [], 0
        for _ in range(5):
            feed(flight, seq, seq + 50)
            seq += 50
            paths.append(flight.dump(ASKED))
        flight.close(described())
        assert [dump.problem for dump in flight.dumps()] == [None] * 5
    counts = [open_trace(path).table("requests").num_rows for path in paths]
    assert counts == [50, 100, 150, 200, 250]


def test_a_stall_dumps_once(tmp_path):
    rules = TriggerRules(stall_ns=S)
    with recorder(tmp_path, rules=rules) as flight:
        for seq in range(20):
            flight.append("requests", requests([request(seq, pop_ns=seq, push_ns=seq + 2 * S)]))
            flight.tick()
        (dump,) = finished(flight)
        flight.close(described())
        assert flight.dumps() == []
    assert dump.reason.startswith("stall: a request of the inflate queue")
    marks = open_trace(dump.path).table("marks").to_pylist()
    assert (marks[0]["mark"], marks[0]["value"]) == (Mark.TRIGGER, 2 * S)


def test_a_signal_dumps_at_the_next_tick(tmp_path):
    with recorder(tmp_path) as flight:
        feed(flight, 0, 3)
        flight.request()
        assert list(tmp_path.iterdir()) == []
        flight.tick()
        (dump,) = finished(flight)
        flight.tick()
        assert finished(flight) == []
        flight.close(described())
    assert "SIGUSR1" in dump.reason


def test_a_vm_that_dies_leaves_its_last_seconds(tmp_path):
    with recorder(tmp_path) as flight:
        feed(flight, 0, 30)
        flight.mark(Mark.VM_EXIT, 9000, text="pid 7 ended")
        flight.tick()
        assert list(tmp_path.iterdir()) == []
        feed(flight, 30, 33)
        flight.close(described())
        (dump,) = flight.dumps()
    trace = open_trace(dump.path)
    assert trace.table("requests")["seq"].to_pylist() == list(range(33))
    assert trace.manifest.end_reason == "trigger: vm-exit"
    assert check_trace(trace) == []


def test_a_recording_that_is_stopped_leaves_nothing(tmp_path):
    with recorder(tmp_path) as flight:
        feed(flight, 0, 3)
        flight.close(described())
        assert flight.dumps() == []
    assert list(tmp_path.iterdir()) == []


def test_that_a_dump_is_due_is_known_before_it_begins(tmp_path):
    with recorder(tmp_path) as flight:
        assert not flight.is_due
        flight.request()
        assert flight.is_due
        flight.tick()
        assert not flight.is_due
        flight.close(described())


def test_numbers_go_on_and_nothing_is_overwritten(tmp_path):
    (tmp_path / "vm0-00041.balloon").mkdir()
    (tmp_path / "vm0-00041.balloon" / "mine").write_text("keep")
    (tmp_path / "vm0-x.balloon").mkdir()
    with recorder(tmp_path) as flight:
        assert flight.dump(ASKED).name == "vm0-00042.balloon"
        flight.close(described())
    assert (tmp_path / "vm0-00041.balloon" / "mine").read_text() == "keep"


def test_only_the_newest_dumps_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(flight_dump, "KEPT_DUMPS", 3)
    (tmp_path / "vm0-00001.balloon").mkdir()
    (tmp_path / "vm0-00001.balloon" / "mine").write_text("keep")
    with recorder(tmp_path) as flight:
        for _ in range(6):
            flight.dump(ASKED)
        flight.close(described())
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"vm0-0000{number}.balloon" for number in (1, 5, 6, 7)]


def test_a_dump_that_fails_is_told_of_and_recording_goes_on(tmp_path):
    with recorder(tmp_path) as flight:
        feed(flight, 0, 3)
        (tmp_path / "vm0-00001.balloon").write_text("in the way")
        flight.dump(ASKED)
        flight.dump(ASKED)
        first, second = finished(flight)
        flight.close(described())
    assert isinstance(first.problem, TraceError)
    assert second.problem is None
    assert open_trace(second.path).table("requests").num_rows == 3
    assert (tmp_path / "vm0-00001.balloon").read_text() == "in the way"


def test_no_place_for_dumps(tmp_path):
    with pytest.raises(TraceError, match="flight records") as caught:
        recorder(tmp_path / "no" / "such")
    assert caught.value.remedy


def test_a_dump_without_a_description_and_without_a_row(tmp_path):
    options = FlightOptions(60 * S)
    storage = Storage(compression="zstd")
    path = tmp_path / "g.balloon"
    with FlightRecorder(path, Side.GUEST, options=options, storage=storage) as flight:
        empty = flight.dump(ASKED)
        row = {"side": Side.GUEST, "ts_ns": 5}
        flight.append("samples", pa.RecordBatch.from_pylist([row], schema=SAMPLES))
        one = flight.dump(ASKED)
        flight.close(described(Side.GUEST))
    assert check_trace(open_trace(empty)) == []
    assert open_trace(one).table("samples").num_rows == 1
    assert check_trace(open_trace(one)) == []
