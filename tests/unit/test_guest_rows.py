"""The guest's records become rows in the order of sending, and marks that no guest can flood."""

import itertools

import numpy as np
import pytest

from tracer.engine import decode
from tracer.guest_side.guest_events import GUEST_EVENT, EventKind
from tracer.guest_side.guest_rows import GuestRows
from tracer.trace.check import check_trace
from tracer.trace.manifest import Manifest, SideInfo
from tracer.trace.reader import open_trace
from tracer.trace.schema import PAGE_BYTES, Caller, Mark, Queue, Side, Wire
from tracer.trace.writer import TraceWriter

S = 10**9
HINT_ID = 0x8000_0001
NO_REQUESTS = np.empty(0, decode.GUEST_REQUEST)
NO_SINGLES = np.empty(0, decode.GUEST_SINGLE)
NO_EVENTS = np.empty(0, GUEST_EVENT)


def records(kind, *rows):
    """Make records of dicts; what is left out is 0."""
    made = np.zeros(len(rows), kind)
    for place, row in enumerate(rows):
        for name, value in row.items():
            made[name][place] = value
    return made


def single(send_ns, pfn, queue=Queue.INFLATE, caller=Caller.MIGRATION):
    return {
        "send_ns": send_ns,
        "wake_ns": send_ns + 5,
        "total": 1,
        "filled": 1,
        "queue": queue,
        "caller": caller,
        "pfn": pfn,
    }


def request(send_ns, pfn, pages=256, queue=Queue.INFLATE, **columns):
    payload = np.arange(pfn, pfn + 256, dtype=np.uint32)
    return {
        "begin_ns": send_ns - 3,
        "send_ns": send_ns,
        "wake_ns": send_ns + 5,
        "total": pages,
        "filled": pages,
        "queue": queue,
        "caller": Caller.TARGET,
        "payload": payload,
        **columns,
    }


@pytest.fixture
def rows(tmp_path):
    with TraceWriter(tmp_path / "g.balloon", Side.GUEST) as writer:
        yield GuestRows(writer)


def closed(rows):
    """Close the trace and read it."""
    rows.finish()
    rows.marks.flush(0, final=True)
    writer = rows._writer
    writer.close(Manifest(sides={"guest": SideInfo(4096, 0, 10**12)}))
    trace = open_trace(writer.path)
    assert [finding for finding in check_trace(trace) if finding.severity == "error"] == []
    return trace


def marks(trace, mark):
    return [row for row in trace.table("marks").to_pylist() if row["mark"] == mark]


def test_requests_of_two_rings_are_numbered_as_they_were_sent(rows):
    large = records(decode.GUEST_REQUEST, request(20, 1000), request(60, 2000))
    small = records(decode.GUEST_SINGLE, single(10, 5), single(40, 6), single(70, 7))
    assert rows.add(100, large, small, NO_EVENTS) == 5
    table = closed(rows).table("requests")
    assert table["seq"].to_pylist() == [0, 1, 2, 3, 4]
    assert table["send_ns"].to_pylist() == [10, 20, 40, 60, 70]
    assert [run[0]["pfn"] for run in table["runs"].to_pylist()] == [5, 1000, 6, 2000, 7]


def test_what_was_sent_after_the_look_waits_for_what_was_sent_before(rows):
    rows.add(50, NO_REQUESTS, records(decode.GUEST_SINGLE, single(60, 6)), NO_EVENTS)
    rows.add(90, records(decode.GUEST_REQUEST, request(40, 1000)), NO_SINGLES, NO_EVENTS)
    assert closed(rows).table("requests")["send_ns"].to_pylist() == [40, 60]


def test_hints_and_statistics_are_rows(rows):
    events = records(
        GUEST_EVENT,
        {"kind": EventKind.HINT_ID, "send_ns": 10, "kick_ns": 11, "value": HINT_ID, "tid": 7},
        {"kind": EventKind.HINT_BLOCK, "send_ns": 20, "kick_ns": 21, "value": 3 << 22}
        | {"length_bytes": 4 << 20},
        {"kind": EventKind.STATS, "begin_ns": 30, "kick_ns": 34, "end_ns": 36},
        {"kind": EventKind.HINT_ID, "send_ns": 40, "kick_ns": 41, "value": 0},
    )
    rows.add(100, NO_REQUESTS, NO_SINGLES, events)
    begin, block, stats, end = closed(rows).table("requests").to_pylist()
    assert (begin["queue"], begin["hint_id"], begin["pages"]) == (Queue.FREE_PAGE_HINT, HINT_ID, 0)
    assert (begin["tid"], begin["caller"], begin["wake_ns"]) == (7, None, None)
    assert (block["pages"], block["hint_id"]) == (1024, None)
    assert block["runs"] == [{"pfn": 3 << 10, "pages": 1024}]
    assert (stats["queue"], stats["pages"], stats["hint_id"]) == (Queue.STATS, 0, None)
    assert (stats["begin_ns"], stats["send_ns"], stats["kick_ns"]) == (30, None, 34)
    assert (end["hint_id"], end["wire"]) == (0, Wire.SCATTERLIST)


def test_a_hint_that_could_not_be_read_is_partial_and_names_nothing(rows):
    unread = {"kind": EventKind.HINT_BLOCK, "send_ns": 20, "value": 77, "flags": 1}
    rows.add(100, NO_REQUESTS, NO_SINGLES, records(GUEST_EVENT, unread))
    (row,) = closed(rows).table("requests").to_pylist()
    assert (row["pages"], row["runs"]) == (0, [])
    assert rows.partial == 1


def test_a_request_of_an_unknown_queue_is_counted_and_not_written(rows):
    stranger = request(10, 5, queue=decode.UNKNOWN_QUEUE)
    rows.add(100, records(decode.GUEST_REQUEST, stranger), NO_SINGLES, NO_EVENTS)
    assert closed(rows).table("requests").num_rows == 0
    assert rows.strangers == 1


def test_targets_and_the_size_reached_are_marks_in_bytes(rows):
    events = records(
        GUEST_EVENT,
        {"kind": EventKind.TARGET, "send_ns": 10, "value": 512},
        {"kind": EventKind.ACTUAL, "send_ns": 20, "value": 512},
    )
    rows.add(100, NO_REQUESTS, NO_SINGLES, events)
    rows.flush_events()
    rows.marks.actual(512, 20)  # the same, as seen by the next sample
    rows.marks.actual(300, 30)
    trace = closed(rows)
    (target,) = marks(trace, Mark.TARGET)
    assert (target["ts_ns"], target["value"]) == (10, 512 * PAGE_BYTES)
    assert [(row["ts_ns"], row["value"]) for row in marks(trace, Mark.ACTUAL)] == [
        (20, 512 * PAGE_BYTES),
        (30, 300 * PAGE_BYTES),
    ]


def test_sleeps_are_marked_whether_or_not_a_request_came_of_them(rows):
    slept = request(1 * S, 1000, puffs=1, puff_ns=S // 5)
    rows.add(2 * S, records(decode.GUEST_REQUEST, slept), NO_SINGLES, NO_EVENTS)
    puff = {"kind": EventKind.PUFF, "send_ns": 3 * S, "value": 1}
    rows.add(4 * S, NO_REQUESTS, NO_SINGLES, records(GUEST_EVENT, puff))
    trace = closed(rows)
    (mark,) = marks(trace, Mark.OUT_OF_PUFF)
    assert (mark["since_ns"], mark["ts_ns"], mark["value"]) == (1 * S, 3 * S, 2)
    assert trace.table("requests")["puff_ns"].to_pylist() == [S // 5]


def test_a_flood_of_migrations_makes_few_marks_and_every_row(rows):
    moves = 500
    for second in range(1, 31):
        now = second * S
        pages = [single(now + at, at, queue) for at in range(moves) for queue in (Queue.INFLATE, 1)]
        rows.add(now + S, NO_REQUESTS, records(decode.GUEST_SINGLE, *pages), NO_EVENTS)
        rows._requests.flush()
        rows.marks.flush(now)
    trace = closed(rows)
    found = marks(trace, Mark.MIGRATION)
    assert trace.table("requests").num_rows == 30 * 2 * moves
    assert sum(mark["value"] for mark in found) == 30 * moves  # a page is sent twice, moved once
    assert len(found) <= 4 + 1  # at once, then one in ten seconds, then the rest
    assert found[0]["ts_ns"] < 2 * S
    assert all(a["ts_ns"] < b["since_ns"] for a, b in itertools.pairwise(found))


def test_deflates_for_oom_are_one_mark_of_all_their_pages(rows):
    deflates = [request(10 + at, 1000, queue=Queue.DEFLATE, caller=Caller.OOM) for at in range(3)]
    rows.add(100, records(decode.GUEST_REQUEST, *deflates), NO_SINGLES, NO_EVENTS)
    (mark,) = marks(closed(rows), Mark.OOM_DEFLATE)
    assert (mark["since_ns"], mark["ts_ns"], mark["value"]) == (10, 12, 3 * 256)
