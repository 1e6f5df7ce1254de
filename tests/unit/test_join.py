"""Pairing rows of real bundles, and the clock fit they give."""

import numpy as np
import pytest

from tests.unit.capture_bundle import (
    GUEST_ROWS,
    HOST_ROWS,
    OFFSET_NS,
    SECOND,
    received,
    sent,
    write_guest,
    write_host,
)
from tracer.account.align import content_hashes
from tracer.account.join import join, notice_ns
from tracer.account.merge import merge_sides
from tracer.trace.reader import open_trace
from tracer.trace.schema import Queue


def joined(tmp_path, *, host=HOST_ROWS, guest=GUEST_ROWS):
    path = write_host(tmp_path / "vm.balloon", rows=host)
    merge_sides(path, write_guest(tmp_path / "guest.balloon", rows=guest))
    trace = open_trace(path)
    return trace, join(trace)


def seqs(trace, rows):
    return trace.table("requests").column("seq").take(rows).to_pylist()


def test_every_request_is_paired_once(tmp_path):
    trace, found = joined(tmp_path)
    pairs = list(zip(seqs(trace, found.guest_row), seqs(trace, found.host_row), strict=True))
    assert sorted(pairs) == [(0, 10), (1, 11), (2, 12), (3, 13)]
    assert [pairs.queue for pairs in found.queues] == [
        Queue.INFLATE,
        Queue.DEFLATE,
        Queue.REPORTING,
    ]
    assert all(not len(p.guest_only) and not len(p.host_only) for p in found.queues)


def test_true_offset_lies_within_the_bound(tmp_path):
    _, found = joined(tmp_path)
    times = np.array([20_000, 295_000, 404_000, 500_000])
    assert found.clock.consistent
    error = np.abs(found.clock.difference_ns(times) - OFFSET_NS)
    assert error.max() <= found.clock.bound_ns
    # Each side of a request leaves at most 23 us; the fit must do better than the widest request.
    assert found.clock.bound_ns < 55_000


def test_rows_of_one_side_alone_stay_unpaired(tmp_path):
    trace, found = joined(tmp_path, host=HOST_ROWS[1:], guest=GUEST_ROWS[:1] + GUEST_ROWS[2:])
    inflate = found.queues[0]
    assert len(inflate.guest_row) == 0
    assert seqs(trace, inflate.guest_only) == [0]
    assert seqs(trace, inflate.host_only) == [11]


def test_same_pages_on_another_queue_or_in_another_order_are_no_pair(tmp_path):
    guest = [sent(0, Queue.INFLATE, SECOND, (1, 2, 3, 4, 5, None, 6))]
    host = [
        received(0, Queue.DEFLATE, SECOND, (10, 20, 1), calls=1),
        received(1, Queue.INFLATE, [(4873, 128)], (30, 40, 1), calls=1),
    ]
    _, found = joined(tmp_path, host=host, guest=guest)
    assert len(found.guest_row) == 0
    assert found.clock is None


def test_interrupt_counts_only_inside_its_request(tmp_path):
    rows = [
        sent(0, Queue.INFLATE, SECOND, (1, 20, 25, 30, 40, None, 50)),
        sent(1, Queue.INFLATE, SECOND, (1, 20, 25, 19, 40, None, 50)),
        sent(2, Queue.INFLATE, SECOND, (1, 20, 25, 41, 40, None, 50)),
        sent(3, Queue.INFLATE, SECOND, (1, 20, 25, None, 40, None, 50)),
    ]
    trace = open_trace(write_guest(tmp_path / "g.balloon", rows=rows))
    assert notice_ns(trace.table("requests")).tolist() == [30, 40, 40, 40]


@pytest.mark.parametrize("step_ns", [10**9, -(10**9)])
def test_a_clock_step_is_said_aloud(tmp_path, step_ns):
    host = [dict(row) for row in HOST_ROWS]
    for row in host[1:]:
        row["pop_ns"] += 2 * 10**9 + step_ns
        row["push_ns"] += 2 * 10**9 + step_ns
    for row in host[:1]:
        row["pop_ns"] += 2 * 10**9
        row["push_ns"] += 2 * 10**9
    _, found = joined(tmp_path, host=host)
    assert len(found.guest_row) == 4
    assert not found.clock.consistent
    assert found.clock.violations > 0
    assert found.clock.bound_ns > 10**8


def test_forged_equal_hashes_do_not_make_a_pair(tmp_path, monkeypatch):
    # A true collision takes a guest that inverts the hash; hash everything alike instead.
    monkeypatch.setattr(
        "tracer.account.join.content_hashes",
        lambda *columns: np.zeros_like(content_hashes(*columns)),
    )
    host = [received(0, Queue.INFLATE, [(77, 128)], (1_000_100, 1_000_200, 1), calls=1)]
    _, found = joined(tmp_path, host=host, guest=GUEST_ROWS[1:2])
    assert len(found.guest_row) == 0
