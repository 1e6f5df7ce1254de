"""A trace keeps to its disk budget: it forgets the oldest and says so, or it stops."""

import pytest

from tests.unit.trace_samples import call, calls, described, large_batch, request, requests
from tracer.trace.check import check_trace
from tracer.trace.reader import open_trace
from tracer.trace.salvage import salvage
from tracer.trace.schema import Mark, Side
from tracer.trace.storage import LEAST_BUDGET_BYTES, Storage
from tracer.trace.writer import TraceWriter

BUDGET = LEAST_BUDGET_BYTES


def size_of(bundle):
    return sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())


def fill(writer, batches, rows=5, watch=None):
    """Append requests with their calls and a mark each; 0.1 MB a batch."""
    for batch in range(batches):
        first = batch * rows
        writer.append("requests", large_batch(first, rows))
        writer.append("calls", calls(call(seq, first_ns=seq, last_ns=seq) for seq in (first,)))
        writer.mark(Mark.TARGET, 1000 * first, value=batch)
        writer.tick()
        if watch is not None:
            watch()


def test_the_oldest_segments_go_and_become_a_loss(tmp_path):
    storage = Storage(budget_bytes=BUDGET)
    with TraceWriter(tmp_path / "a.balloon", Side.HOST, storage=storage) as writer:
        sizes = []
        fill(writer, 80, watch=lambda: sizes.append(size_of(writer.path)))
        assert writer.stop_reason is None
        assert writer.written_bytes > 2 * BUDGET
        writer.close(described())
    assert max(sizes) <= BUDGET
    assert size_of(writer.path) <= BUDGET

    trace = open_trace(writer.path)
    assert trace.is_complete
    kept = trace.table("requests")["seq"].to_pylist()
    gone = 400 - len(kept)
    assert 0 < gone < 400
    assert kept == list(range(gone, 400))
    assert trace.table("marks")["mark"].to_pylist().count(Mark.TARGET) == 80

    lost = [item for item in trace.losses if item.stream == "requests"]
    assert {item.cause for item in trace.losses} == {"budget"}
    assert sum(item.count for item in lost) == gone
    assert lost[0].since_ns == 0
    assert lost[-1].until_ns == 1000 * (gone - 1) + 500
    findings = check_trace(trace)
    assert {finding.code for finding in findings} <= {"loss", "call-orphan"}
    assert "(budget)" in findings[0].text


def test_a_killed_recorder_leaves_no_silent_gap(tmp_path):
    storage = Storage(budget_bytes=BUDGET)
    writer = TraceWriter(tmp_path / "a.balloon", Side.HOST, storage=storage, manifest=described())
    fill(writer, 80)
    report = salvage_copy(writer.path, tmp_path / "b.balloon")
    trace = open_trace(report.path)
    lost = sum(item.count for item in trace.losses if item.stream == "requests")
    assert lost > 0
    assert lost + trace.table("requests").num_rows == 400
    writer.close(described())


def salvage_copy(bundle, output):
    """As after a kill: the files as they are, without the recorder's lock."""
    import shutil

    shutil.copytree(bundle, output)
    return salvage(output)


def test_the_other_policy_stops(tmp_path):
    storage = Storage(budget_bytes=BUDGET, budget_policy="stop")
    with TraceWriter(tmp_path / "a.balloon", Side.HOST, storage=storage) as writer:
        batches = 0
        while writer.stop_reason is None:
            writer.append("requests", large_batch(5 * batches, 5))
            writer.tick()
            batches += 1
        assert writer.stop_reason == "budget"
        writer.append("requests", large_batch(5 * batches, 1))  # what was still in the ring
        closed = writer.close(described())
    assert closed.complete
    assert closed.end_reason == "budget"
    assert size_of(writer.path) <= BUDGET
    trace = open_trace(writer.path)
    assert trace.table("requests")["seq"].to_pylist() == list(range(5 * batches + 1))
    assert trace.losses == ()
    assert check_trace(trace) == []


def test_a_recorder_that_does_not_stop_loses_rows_and_says_so(tmp_path):
    storage = Storage(budget_bytes=BUDGET, budget_policy="stop")
    with TraceWriter(tmp_path / "a.balloon", Side.HOST, storage=storage) as writer:
        fill(writer, 60)
        writer.close(described())
    assert size_of(writer.path) <= BUDGET
    trace = open_trace(writer.path)
    assert trace.is_complete
    kept = trace.table("requests").num_rows
    (lost,) = [item for item in trace.losses if item.stream == "requests"]
    assert lost.cause == "budget"
    assert lost.count + kept == 300
    assert lost.since_ns == 1000 * kept
    assert trace.table("marks")["mark"].to_pylist().count(Mark.TARGET) == 60


def test_marks_alone_can_spend_a_budget(tmp_path):
    """They are never deleted, so they end the recording, whatever the policy."""
    text = [chr(0x4E00 + i) for i in range(4096)]
    storage = Storage(budget_bytes=BUDGET)
    with TraceWriter(tmp_path / "a.balloon", Side.HOST, storage=storage) as writer:
        number = 0
        while writer.stop_reason is None and number < 10_000:
            number += 1
            writer.mark(Mark.RUN_STATE, number, text="".join(text[number % 97 :]))
        assert writer.stop_reason == "budget"
        writer.append("requests", requests([request(0)]))
        writer.close(described())
    assert size_of(writer.path) <= BUDGET
    assert open_trace(writer.path).table("marks").num_rows == number + 1


def test_a_budget_too_small_to_work_with():
    with pytest.raises(ValueError, match="at least 4 MiB"):
        Storage(budget_bytes=BUDGET - 1)
