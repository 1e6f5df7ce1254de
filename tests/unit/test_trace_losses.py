"""Losses that go on for days: all counted, in few rows."""

import time
from dataclasses import replace

import pyarrow as pa
import pytest

from tests.unit.trace_samples import described, residency
from tracer.trace import loss_book
from tracer.trace.check import check_trace
from tracer.trace.layout import write_manifest
from tracer.trace.loss_book import LONGEST_WIDTH_NS, MOST_ENTRIES, WIDTH_NS, LossBook
from tracer.trace.manifest import MAX_MANIFEST_BYTES, Loss, Manifest
from tracer.trace.reader import open_trace
from tracer.trace.rows import mark_row
from tracer.trace.salvage import salvage
from tracer.trace.schema import Mark, Side
from tracer.trace.writer import TraceWriter

DAY_NS = 86_400 * 10**9


def loss(stream, count, since_ns, until_ns, cause="ring"):
    return Loss("host", stream, count, since_ns, until_ns, cause)


def test_the_first_loss_is_written_at_once_and_the_next_together(tmp_path):
    with TraceWriter(tmp_path / "a.balloon", Side.HOST) as writer:
        for number in range(100):
            writer.loss("requests", 2, number, number + 1, cause="ring")
        assert [item.count for item in open_trace(writer.path).marked_losses()] == [2]
        writer.close(described())
    trace = open_trace(writer.path)
    assert [(item.count, item.since_ns, item.until_ns) for item in trace.losses] == [
        (2, 0, 1),
        (198, 1, 100),
    ]
    assert trace.marked_losses() == trace.losses
    assert {finding.code for finding in check_trace(trace)} == {"loss"}


def test_time_alone_writes_a_loss_that_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(loss_book, "WIDTH_NS", 50 * 10**6)
    with TraceWriter(tmp_path / "a.balloon", Side.HOST) as writer:
        writer.loss("requests", 1, 0, 1, cause="ring")
        writer.loss("requests", 7, 1, 2, cause="ring")
        writer.tick()
        assert sum(item.count for item in open_trace(writer.path).marked_losses()) == 1
        time.sleep(0.06)
        writer.tick()
        assert sum(item.count for item in open_trace(writer.path).marked_losses()) == 8


def test_causes_and_streams_stay_apart(tmp_path):
    with TraceWriter(tmp_path / "a.balloon", Side.HOST) as writer:
        for cause in ("ring", "quota", None):
            for stream in ("requests", "calls"):
                writer.loss(stream, 1, 0, 1, cause=cause)
                writer.loss(stream, 1, 1, 2, cause=cause)
        writer.close(described())
    trace = open_trace(writer.path)
    assert len(trace.losses) == 12
    assert {(item.stream, item.cause) for item in trace.losses} == {
        (stream, cause) for stream in ("requests", "calls") for cause in ("ring", "quota", None)
    }


def test_ten_days_of_losses_in_every_second():
    book = LossBook()
    rows = 0
    step_ns = WIDTH_NS // 2
    for now_ns in range(0, 10 * DAY_NS, step_ns * 10):
        for stream in ("requests", "calls"):
            book.add(loss(stream, 3, now_ns, now_ns + step_ns))
        rows += len(book.take(now_ns + step_ns))
    rows += len(book.take(10 * DAY_NS, everything=True))
    assert sum(item.count for item in book.entries) == 2 * 3 * (10 * DAY_NS // (step_ns * 10))
    assert len(book.entries) <= MOST_ENTRIES
    assert rows < 2 * (10 * DAY_NS // LONGEST_WIDTH_NS) + 10 * MOST_ENTRIES
    assert len(Manifest(losses=book.entries).to_json()) < MAX_MANIFEST_BYTES / 32


def test_a_span_without_a_known_begin_stays_so():
    merged = loss_book.merged([loss("calls", 1, None, 5), loss("calls", 2, 1, 9)])
    assert (merged.count, merged.since_ns, merged.until_ns) == (3, None, 9)


def test_an_unclosed_trace_tells_of_losses(tmp_path):
    with TraceWriter(tmp_path / "a.balloon", Side.HOST) as writer:
        writer.append("residency", residency(1))
        writer.loss("requests", 4, 1, 2, cause="ring")
    trace = open_trace(writer.path)
    assert not trace.is_complete
    assert [item.count for item in trace.losses] == [4]


@pytest.mark.parametrize(
    ("first", "second", "counts"),
    [
        ([loss("calls", 4, 0, 9)], [], [4]),
        ([loss("calls", 4, 0, 9)], [loss("calls", 4, 0, 9)], [4]),
        # The manifest merged what are two rows of the marks, or has what was not yet a row.
        ([loss("calls", 5, 0, 9)], [loss("calls", 2, 0, 3), loss("calls", 3, 7, 9)], [5]),
        ([loss("calls", 5, 0, 9)], [loss("calls", 2, 0, 3)], [5]),
        ([loss("calls", 2, 0, 3)], [loss("calls", 5, 0, 9)], [5]),
        # Each knows of a time of which the other does not.
        ([loss("calls", 2, 0, 3)], [loss("calls", 1, 5, 9)], [2, 1]),
        # A begin that is not known may lie before everything.
        ([loss("calls", 2, 0, 3)], [loss("calls", 1, None, 9)], [2]),
        ([loss("calls", 2, 0, 3)], [loss("requests", 1, 0, 3)], [2, 1]),
        ([loss("calls", 2, 0, 3)], [loss("calls", 1, 0, 3, "quota")], [2, 1]),
    ],
)
def test_two_lists_of_the_same_losses_become_one_that_counts_none_twice(first, second, counts):
    both = loss_book.united(first, second)
    assert sorted(item.count for item in both) == sorted(counts)
    assert loss_book.united(both, second) == loss_book.united(first, both) == both


def test_an_unclosed_trace_knows_of_losses_that_still_waited_for_their_row(tmp_path):
    """As a kill leaves it: the manifest has the second loss, the marks have the first alone."""
    writer = TraceWriter(tmp_path / "a.balloon", Side.HOST)
    writer.loss("requests", 2, 0, 1, cause="ring")
    writer.loss("requests", 7, 1, 2, cause="ring")
    writer.describe(described())
    trace = open_trace(writer.path)
    assert [item.count for item in trace.marked_losses()] == [2]
    assert sum(item.count for item in trace.losses) == 9
    assert "loss-rows" not in {finding.code for finding in check_trace(trace)}
    writer.close(described())
    assert sum(item.count for item in open_trace(writer.path).losses) == 9


@pytest.mark.parametrize("kinds", [1, 3, 3001])
def test_a_damaged_trace_of_very_many_losses_keeps_them_in_a_list_that_can_be_read(kinds, tmp_path):
    def row(number):
        stream = f"stream {number % kinds}" if number % 2 else "requests"
        at_ns, cause = 10 * number, f"cause {number % kinds}"
        more = {"text": stream, "since_ns": at_ns, "cause": cause}
        return mark_row(Side.HOST, Mark.LOSS, at_ns + 5, value=2, **more)

    rows = 6000
    source = tmp_path / "a.balloon"
    with TraceWriter(source, Side.HOST) as writer:
        for batch in pa.Table.from_batches(map(row, range(rows))).combine_chunks().to_batches():
            writer.append("marks", batch)
        writer.abort("test")
    salvage(source, tmp_path / "b.balloon")
    for path in (source, tmp_path / "b.balloon"):
        losses = open_trace(path).losses
        assert len(losses) <= MOST_ENTRIES
        assert sum(item.count for item in losses) == 2 * rows
        assert sum(item.count for item in losses if item.stream == "requests") == rows
        assert min(item.since_ns for item in losses) == 0
        assert max(item.until_ns for item in losses) == 10 * (rows - 1) + 5
        assert len({item.cause for item in losses}) == (1 if kinds > 64 else kinds)


def test_counts_that_add_up_to_more_than_a_number_holds(tmp_path):
    many = [loss("requests", 1 << 62, 10 * number, 10 * number + 5) for number in range(5000)]
    found = loss_book.united(many, ())
    path = tmp_path / "a.balloon"
    with TraceWriter(path, Side.HOST) as writer:
        writer.close(described())
    manifest = open_trace(path).manifest
    write_manifest(path, replace(manifest, losses=found))
    assert open_trace(path).losses == found
    assert max(item.count for item in found) == (1 << 63) - 1
