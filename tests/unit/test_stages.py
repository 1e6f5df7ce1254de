"""Stages of a capture small enough to add up by hand (capture_bundle.py)."""

import pytest

from tests.unit.capture_bundle import (
    FIRST,
    GUEST_ROWS,
    HOST_ROWS,
    both,
    probe,
    received,
    sent,
    write_guest,
    write_host,
)
from tracer.account.stages import SEED_NS, SEED_PERCENT, SEED_TOTAL_NS, stage_table
from tracer.trace.reader import open_trace
from tracer.trace.schema import Queue


def totals(direction):
    return {stage.name: stage.total_ns for stage in direction.stages}


def test_inflate_adds_up(tmp_path):
    inflate = stage_table(both(tmp_path)).direction(Queue.INFLATE)
    found = totals(inflate)
    assert {name: found[name] for name in ("allocate", "send", "translate", "discard")} == {
        "allocate": 25_000,
        "send": 25_000,
        "translate": 30_000,
        "discard": 40_000,
    }
    assert found["out of puff"] == 200_000
    assert found["config write"] == 12_000
    assert found["free"] is None
    assert (inflate.requests, inflate.pages) == (2, 384)
    assert (inflate.wall_ns, inflate.other_ns) == (347_000, 15_000)
    # 120,000 ns for 384 pages; 7 GiB are 1,835,008 pages.
    assert inflate.seven_gib_ns == 573_440_000
    assert inflate.stage("translate").percent == pytest.approx(25.0)
    assert inflate.stage("discard").ns_per_page == pytest.approx(40_000 / 384)


def test_spread_of_one_request(tmp_path):
    send = stage_table(both(tmp_path)).direction(Queue.INFLATE).stage("send")
    assert (send.requests, send.median_ns, send.p99_ns, send.worst_ns) == (
        2,
        10_000,
        15_000,
        15_000,
    )


def test_deflate_and_reporting_add_up(tmp_path):
    table = stage_table(both(tmp_path))
    found = totals(table.direction(Queue.DEFLATE))
    assert [found[name] for name in ("allocate", "send", "translate", "discard")] == [
        4_000,
        13_000,
        10_000,
        5_000,
    ]
    assert (found["free"], found["config write"]) == (8_000, 3_000)
    reporting = table.direction(Queue.REPORTING)
    found = totals(reporting)
    assert [found[name] for name in ("send", "translate", "discard")] == [18_000, 3_000, 9_000]
    assert found["allocate"] is None
    # A report has no stage a, so b, c and d are the whole.
    assert reporting.stage("send").percent == pytest.approx(60.0)


def test_transit_times_agree_with_the_true_clock_within_the_bound(tmp_path):
    table = stage_table(both(tmp_path))
    assert table.clock.consistent
    inflate = table.direction(Queue.INFLATE)
    # Truth: sends at 20,000 and 295,000 guest time, pops at 25,000 and 300,000.
    assert abs(inflate.stage("send to pop").total_ns - 10_000) <= 2 * table.clock.bound_ns
    assert abs(inflate.stage("push to wake").total_ns - 15_000) <= 2 * table.clock.bound_ns
    parts = ("send to pop", "push to wake")
    # b is the sum of its parts up to the drift of the fit within one request, and rounding.
    assert sum(inflate.stage(name).total_ns for name in parts) == pytest.approx(25_000, abs=200)


def test_one_side_leaves_null_and_never_zero(tmp_path):
    host_only = stage_table(open_trace(write_host(tmp_path / "host.balloon")))
    inflate = host_only.direction(Queue.INFLATE)
    assert totals(inflate)["discard"] == 40_000
    assert totals(inflate)["translate"] == 30_000
    for name in ("allocate", "send", "config write", "out of puff"):
        stage = inflate.stage(name)
        assert stage.total_ns is None
        assert stage.median_ns is None
        assert stage.corrected_ns is None
    assert inflate.seven_gib_ns is None
    assert inflate.stage("discard").percent is None
    # By the host's clock: 1,025,000 to 1,340,000, idle from 1,055,000 to 1,300,000.
    assert (inflate.wall_ns, inflate.other_ns) == (315_000, 245_000)
    assert host_only.clock is None

    guest_only = stage_table(open_trace(write_guest(tmp_path / "guest.balloon")))
    inflate = guest_only.direction(Queue.INFLATE)
    assert totals(inflate)["allocate"] == 25_000
    for name in ("send", "translate", "discard"):
        assert inflate.stage(name).total_ns is None


def test_unpaired_request_has_no_send_stage(tmp_path):
    table = stage_table(both(tmp_path, host={"rows": HOST_ROWS[:1] + HOST_ROWS[2:]}))
    inflate = table.direction(Queue.INFLATE)
    assert inflate.stage("send").requests == 1
    assert inflate.stage("send").total_ns == 10_000
    assert inflate.stage("allocate").requests == 2


def test_contradicting_times_are_rejected_and_counted(tmp_path):
    rows = [received(10, Queue.INFLATE, FIRST, (1_025_000, 1_055_000, 31_000), calls=256)]
    translate = (
        stage_table(open_trace(write_host(tmp_path / "x.balloon", rows=rows)))
        .direction(Queue.INFLATE)
        .stage("translate")
    )
    assert (translate.total_ns, translate.requests, translate.rejected) == (None, 0, 1)


def test_absurd_times_do_not_overflow(tmp_path):
    far = 2**63 - 1
    rows = [
        sent(0, Queue.INFLATE, FIRST, (-far, 0, far, far, far, far, far)),
        *GUEST_ROWS[1:],
    ]
    inflate = stage_table(both(tmp_path, guest={"rows": rows})).direction(Queue.INFLATE)
    assert inflate.stage("allocate").total_ns == 15_000
    assert inflate.stage("send").total_ns == 15_000


def test_probe_cost_is_charged_to_the_stage_that_pays(tmp_path):
    trace = both(
        tmp_path,
        host={
            "probes": [
                probe("queues-pop", 500.0),
                probe("queues-push", 600.0),
                probe("madvise-enter", 10.0),
                probe("madvise-exit", 20.0),
                # The trace holds no fallocate call, so these were never hit in a request.
                probe("fallocate-enter", 1000.0),
            ]
        },
        guest={
            "probes": [
                probe("work-enter", 700.0),
                probe("send-enter", 800.0),
                probe("ack", 900.0, status="failed"),
            ]
        },
    )
    inflate = stage_table(trace).direction(Queue.INFLATE)
    assert inflate.stage("allocate").corrected_ns == 25_000 - 2 * 700
    assert inflate.stage("send").corrected_ns == 25_000 - 2 * (800 + 500 + 600)
    assert inflate.stage("translate").corrected_ns == 30_000 - 384 * 30
    assert inflate.stage("discard").corrected_ns == 40_000


def test_unknown_probe_cost_leaves_the_corrected_time_null(tmp_path):
    trace = both(tmp_path, host={"probes": [probe("queues-pop", None)]})
    inflate = stage_table(trace).direction(Queue.INFLATE)
    assert inflate.stage("send").total_ns == 25_000
    assert inflate.stage("send").corrected_ns is None
    assert inflate.corrected_seven_gib_ns is None
    assert inflate.stage("discard").corrected_ns == 40_000


def test_the_seeds_own_table_stands_beside_an_inflate_only(tmp_path):
    table = stage_table(both(tmp_path))
    inflate = table.direction(Queue.INFLATE)
    assert {s.letter: s.seed_percent for s in inflate.stages if s.letter} == SEED_PERCENT
    assert all(stage.seed_ns is None for stage in table.direction(Queue.DEFLATE).stages)
    for letter, share in SEED_PERCENT.items():
        assert SEED_NS[letter] == pytest.approx(SEED_TOTAL_NS * share / 100, abs=500_000)


def test_empty_trace_has_no_directions(tmp_path):
    table = stage_table(open_trace(write_host(tmp_path / "e.balloon", rows=[], calls=[])))
    assert table.directions == ()
    assert table.clock is None


def test_overlapping_requests_leave_no_time_between_them(tmp_path):
    times = ((1_000, 9_000, 0), (2_000, 3_000, 0), (10_000, 11_000, 0))
    rows = [received(seq, Queue.INFLATE, FIRST, ends, calls=1) for seq, ends in enumerate(times)]
    trace = open_trace(write_host(tmp_path / "o.balloon", rows=rows, calls=[]))
    inflate = stage_table(trace).direction(Queue.INFLATE)
    assert (inflate.wall_ns, inflate.other_ns) == (10_000, 1_000)
