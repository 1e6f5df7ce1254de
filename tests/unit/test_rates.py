"""What lies between two readings of a VM: rates over the true interval, and nulls."""

from dataclasses import replace

import pytest

from tests.unit.vm_stats import AFTER, BEFORE, S
from tracer.record.rates import rates, state
from tracer.trace.schema import Queue


def test_sums_become_rates_over_the_true_interval() -> None:
    found = rates(BEFORE, AFTER)
    assert found is not None
    assert found.interval_ns == 2 * S
    assert found.pages_per_s == {Queue.INFLATE: 256 * 500, Queue.DEFLATE: 0, Queue.REPORTING: 256}
    assert found.requests_per_s == {Queue.INFLATE: 500, Queue.DEFLATE: 0, Queue.REPORTING: 0.5}
    assert found.mean_run_pages == (256_000 + 512) / 3000
    assert (found.busy_share, found.translate_share, found.discard_share) == (0.6, 0.4, 0.2)
    assert found.discard_of_busy == pytest.approx(1 / 3)
    assert found.discards_per_s == 128_256
    assert found.discarded_bytes_per_s == 128_256 * 4096
    assert found.lost_per_s == 50
    assert found.probe_share == pytest.approx(0.03)
    assert found.probe_of_busy == pytest.approx(0.05)


def test_what_was_not_observed_is_none_and_not_zero() -> None:
    """A VMM whose handlers are unknown: calls alone. And a recording without system calls."""
    calls_alone = {"queues": frozenset(), "pages": {}, "requests": {}, "runs": 0, "busy_ns": 0}
    found = rates(replace(BEFORE, **calls_alone), replace(AFTER, **calls_alone))
    assert found is not None
    assert (found.pages_per_s, found.requests_per_s, found.mean_run_pages) == (None, None, None)
    assert (found.busy_share, found.translate_share, found.probe_of_busy) == (None, None, None)
    assert found.discards_per_s == 128_256
    assert found.moved_pages_per_s == 128_256

    no_calls = {"discard_calls": None, "discard_ns": None, "discard_bytes": None, "probe_ns": None}
    found = rates(replace(BEFORE, **no_calls), replace(AFTER, **no_calls))
    assert found is not None
    assert found.busy_share == 0.6
    assert (found.translate_share, found.discard_share, found.probe_share) == (None, None, None)
    assert found.discarded_bytes_per_s is None


def test_a_still_vm_has_rates_of_zero_and_shares_of_nothing() -> None:
    found = rates(AFTER, replace(AFTER, ts_ns=AFTER.ts_ns + S))
    assert found is not None
    assert set(found.pages_per_s.values()) == {0.0}
    assert (found.busy_share, found.lost_per_s) == (0.0, 0.0)
    assert (found.mean_run_pages, found.discard_of_busy, found.probe_of_busy) == (None, None, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"ts_ns": BEFORE.ts_ns},
        {"pid": 78},
        {"busy_ns": BEFORE.busy_ns - 1},
        {"pages": {}},
        {"discard_calls": 0},
        {"lost": {"ring": 99}},
    ],
    ids=str,
)
def test_readings_of_two_recordings_give_no_rates(changes) -> None:
    assert rates(BEFORE, replace(AFTER, **changes)) is None


def test_the_state_is_what_moves_most() -> None:
    moving = rates(BEFORE, AFTER)
    assert state(AFTER, None) == "new"
    assert state(AFTER, moving) == "inflating"
    later = replace(AFTER, ts_ns=AFTER.ts_ns + S, pages=AFTER.pages | {Queue.REPORTING: 9999})
    assert state(later, rates(AFTER, later)) == "reporting"


def test_a_target_that_is_not_reached_while_nothing_moves_is_a_stall() -> None:
    still = replace(AFTER, ts_ns=AFTER.ts_ns + S)
    nothing = rates(AFTER, still)
    assert state(still, nothing) == "stalled"
    assert state(replace(still, target_bytes=still.actual_bytes), nothing) == "still"
    assert state(replace(still, actual_bytes=None), nothing) == "still"


def test_a_vm_known_by_its_calls_alone_is_discarding() -> None:
    alone = {"queues": frozenset(), "pages": {}, "requests": {}, "busy_ns": 0, "runs": 0}
    now = replace(AFTER, **alone)
    assert state(now, rates(replace(BEFORE, **alone), now)) == "discarding"
