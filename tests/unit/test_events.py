"""What happened while it was recorded: in time order over both sides, floods as one."""

from pathlib import Path

import pytest

from aerostat.events import Event, describe, events
from aerostat.timeline_tables import draw_events
from tracer.account.clocks import ClockFit
from tracer.account.merge import merge_sides
from tracer.trace.manifest import Manifest, SideInfo
from tracer.trace.reader import open_trace
from tracer.trace.schema import Mark, Side
from tracer.trace.writer import TraceWriter

GIB = 1 << 30
S = 1_000_000_000


def bundle(path: Path, *marks: tuple, side: Side = Side.HOST, session: str = "one") -> Path:
    name = side.name.lower()
    with TraceWriter(path / f"{name}.balloon", side) as writer:
        for mark, ts_ns, *rest in marks:
            writer.mark(mark, ts_ns, **(rest[0] if rest else {}))
        writer.close(Manifest(sides={name: SideInfo(4096, 100)}, session_id=session))
    return writer.path


def found(path: Path, *marks: tuple, **options) -> tuple[Event, ...]:
    return events(open_trace(bundle(path, *marks, **options)), None)


def target(ts_ns: int, value: int) -> tuple:
    return (Mark.TARGET, ts_ns, {"value": value})


def actual(ts_ns: int, value: int) -> tuple:
    return (Mark.ACTUAL, ts_ns, {"value": value})


def told(found: tuple[Event, ...]) -> list[tuple]:
    return [(event.mark, event.count, event.first_value, event.last_value) for event in found]


def test_a_flood_between_two_other_events_is_one(tmp_path):
    marks = [target(200, GIB), *(actual(300 + i, GIB - i) for i in range(50)), target(400, 2 * GIB)]
    marks += [actual(500, 7), actual(600, 8), (Mark.RUN_STATE, 700, {"text": "paused"})]
    assert told(found(tmp_path, *marks)) == [
        (Mark.TARGET, 1, GIB, GIB),
        (Mark.ACTUAL, 50, GIB, GIB - 49),
        (Mark.TARGET, 1, 2 * GIB, 2 * GIB),
        (Mark.ACTUAL, 2, 7, 8),
        (Mark.RUN_STATE, 1, None, None),
    ]


def test_floods_that_take_turns_are_one_each(tmp_path):
    marks = []
    for i in range(100):
        marks += [actual(1000 + 10 * i, i), (Mark.MIGRATION, 1005 + 10 * i, {"value": 3})]
    first, second = found(tmp_path, *marks)
    assert (first.mark, first.count, second.mark, second.count) == (
        Mark.ACTUAL,
        100,
        Mark.MIGRATION,
        100,
    )
    assert (second.sum_value, second.ts_ns) == (300, 1995)


def test_events_are_in_order_of_their_begin_and_the_recorders_own_are_left_out(tmp_path):
    marks = [
        (Mark.ATTACH, 100),
        target(900, 1),
        (Mark.SUSPEND, 1000, {"since_ns": 300, "value": 5 * S}),
        (Mark.LOSS, 400, {"value": 7, "text": "requests", "since_ns": 1}),
        (Mark.DETACH, 2000),
    ]
    suspend, change = found(tmp_path, *marks)
    assert (suspend.mark, suspend.after_ns, suspend.since_ns, suspend.ts_ns) == (
        Mark.SUSPEND,
        200,
        300,
        1000,
    )
    assert (change.mark, change.after_ns) == (Mark.TARGET, 800)


def test_a_guests_events_are_put_on_the_hosts_clock(tmp_path):
    host = bundle(tmp_path, target(100 + 2 * S, 1), target(100 + 4 * S, 2))
    guest = bundle(tmp_path, (Mark.OUT_OF_PUFF, 3 * S - 900 * S, {"value": 2}), side=Side.GUEST)
    merge_sides(host, guest)
    trace = open_trace(host)
    clock = ClockFit(900 * S, 0.0, 0, 0, 10 * S, 10, 4, 0, consistent=True)
    assert [event.side for event in events(trace, clock)] == [Side.HOST, Side.GUEST, Side.HOST]
    assert [event.after_ns for event in events(trace, clock)] == [2 * S, 3 * S - 100, 4 * S]
    # Without the fit each side counts from its own begin.
    assert events(trace, None)[0].side is Side.GUEST


@pytest.mark.parametrize(
    ("mark", "columns", "text"),
    [
        (Mark.TARGET, {"value": GIB}, "the guest is to keep 1 GiB"),
        (Mark.ACTUAL, {"value": GIB}, "the guest has 1 GiB"),
        (Mark.RUN_STATE, {"text": "paused"}, "paused"),
        (Mark.SUSPEND, {"value": 12 * S}, "this machine slept 12 s"),
        (Mark.CLOCK_STEP, {"value": -3 * S}, "wall clock set by -3 s"),
        (Mark.QUOTA, {"value": 5000, "since_ns": 1}, "5,000 records over the quota within 2 s"),
        (Mark.TRIGGER, {"text": "stall: 2 s"}, "stall: 2 s"),
        (Mark.OUT_OF_PUFF, {"value": 3, "text": "x"}, "slept 3 times for want of a page"),
        (Mark.OOM_DEFLATE, {"value": 512}, "512 pages taken back because memory was short"),
        (Mark.MIGRATION, {"value": 9}, "9 ballooned pages moved"),
        (Mark.VM_EXIT, {"text": "pid 7 ended"}, "pid 7 ended"),
        (Mark.TARGET, {}, ""),
    ],
)
def test_each_kind_says_what_it_was(mark, columns, text, tmp_path):
    (event,) = found(tmp_path, (mark, 1 + 2 * S, columns))
    assert describe(event) == text


def test_a_guests_driver_knows_the_balloon_and_not_what_is_left(tmp_path):
    grown = found(tmp_path, target(200, GIB), actual(300, GIB // 2), side=Side.GUEST)
    assert [describe(event) for event in grown] == [
        "the balloon is to hold 1 GiB",
        "the balloon holds 512 MiB",
    ]


def test_of_many_events_the_two_ends_are_drawn_and_the_rest_is_counted(tmp_path, capsys):
    draw_events(found(tmp_path, *(target(1000 + i, i * GIB) for i in range(500))))
    out = capsys.readouterr().out
    assert "468 more events" in out
    assert "keep 23 GiB" in out
    assert "keep 24 GiB" not in out
    assert "keep 499 GiB" in out
    assert len(out.splitlines()) < 45


def test_hostile_times_and_texts_are_no_error(tmp_path, capsys):
    marks = [
        (Mark.TARGET, 0, {"value": -(1 << 63), "text": "\x1b[2J" + "x" * 5000}),
        (Mark.OUT_OF_PUFF, 1, {"value": (1 << 63) - 1}),
        (Mark.OUT_OF_PUFF, (1 << 62), {"value": (1 << 63) - 1, "since_ns": 0}),
    ]
    draw_events(found(tmp_path, *marks))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert len(out) < 5000


def test_a_trace_without_events_draws_nothing(tmp_path, capsys):
    assert found(tmp_path) == ()
    draw_events(())
    assert capsys.readouterr().out == ""
