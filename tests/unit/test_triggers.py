"""What makes a flight recorder keep what it holds, and how often."""

import dataclasses

import pytest

from tests.unit.test_metrics import BUSY
from tests.unit.trace_samples import call, calls, request, requests
from tracer.record.live import UnderWay
from tracer.record.triggers import Kind, TriggerRules, Triggers
from tracer.trace.schema import Mark, Queue, Side

S = 10**9
MIB = 1 << 20
GIB = 1 << 30
RULES = TriggerRules(stuck_bytes=64 * MIB, stuck_ns=60 * S, stall_ns=S, quiet_ns=100 * S)


@pytest.fixture
def triggers():
    return Triggers(RULES)


def watch(triggers, steps):
    """Feed (second, actual, target) and return [(second, kind)] of what was due."""
    found = []
    for second, actual, target in steps:
        stats = dataclasses.replace(
            BUSY, ts_ns=second * S, actual_bytes=actual, target_bytes=target
        )
        triggers.stats(stats)
        incident = triggers.due(second * S)
        if incident is not None:
            found.append((second, incident.kind))
    return found


def test_a_target_that_is_never_reached(triggers):
    steps = [(second, 3 * GIB, 1 * GIB) for second in range(600)]
    assert watch(triggers, steps) == [(61, Kind.STUCK)]


def test_a_deflate_can_be_stuck_too(triggers):
    assert watch(triggers, [(s, GIB, 3 * GIB) for s in range(600)]) == [(61, Kind.STUCK)]


def test_slow_is_not_stuck(triggers):
    """2 MiB a second are 120 MiB in 60 s: nearer by more than the 64 that count."""
    steps = [(s, 3 * GIB - 2 * MIB * s, GIB) for s in range(1000)]
    assert watch(triggers, steps) == []


def test_slower_than_that_is(triggers):
    steps = [(s, 3 * GIB - MIB * s, GIB) for s in range(300)]
    assert watch(triggers, steps) == [(61, Kind.STUCK)]


def test_nearly_there_is_not_stuck(triggers):
    assert watch(triggers, [(s, GIB + 64 * MIB, GIB) for s in range(300)]) == []


def test_stuck_again_after_it_went_on(triggers):
    steps = [(s, 3 * GIB, GIB) for s in range(100)]
    steps += [(s, GIB, GIB) for s in range(100, 300)]
    steps += [(s, GIB, GIB // 2) for s in range(300, 400)]
    assert watch(triggers, steps) == [(61, Kind.STUCK), (361, Kind.STUCK)]


def test_a_new_target_begins_anew(triggers):
    steps = [(s, 3 * GIB, GIB - (s // 50) * MIB) for s in range(300)]
    assert watch(triggers, steps) == []


@pytest.mark.parametrize("missing", ["actual", "target"])
def test_what_is_not_observed_is_no_incident(triggers, missing):
    actual, target = (None, GIB) if missing == "actual" else (3 * GIB, None)
    assert watch(triggers, [(s, actual, target) for s in range(300)]) == []


def test_memory_taken_back_unasked(triggers):
    steps = [(0, 2 * GIB, GIB), (1, GIB + GIB // 2, GIB), (2, GIB, GIB)]
    steps += [(3, GIB, GIB), (4, GIB + MIB, GIB)]
    assert watch(triggers, steps) == [(4, Kind.OOM)]


def taking(triggers, steps):
    """Feed (second, pages inflated, pages deflated) of a VM whose target is not known."""
    found = []
    for second, inflated, deflated in steps:
        pages = {Queue.INFLATE: inflated, Queue.DEFLATE: deflated}
        stats = dataclasses.replace(
            BUSY, ts_ns=second * S, actual_bytes=None, target_bytes=None, pages=pages
        )
        triggers.stats(stats)
        incident = triggers.due(second * S)
        if incident is not None:
            found.append((second, incident.kind, incident.value))
    return found


def test_memory_taken_back_where_the_target_was_set_before_the_recording(triggers):
    steps = [(s, 0, 0) for s in range(20)] + [(s, 0, 256) for s in range(20, 30)]
    assert taking(triggers, steps) == [(20, Kind.OOM, MIB)]


def test_memory_taken_back_while_an_inflate_is_under_way_that_began_before(triggers):
    steps = [(s, 1000 * s, 0) for s in range(20)] + [(20, 19_000, 512), (21, 20_000, 512)]
    assert taking(triggers, steps) == [(20, Kind.OOM, 2 * MIB)]


def test_a_deflate_that_was_under_way_at_the_begin_is_no_oom(triggers):
    steps = [(s, 0, 1000 * s) for s in range(20)] + [(s, 0, 20_000) for s in range(20, 26)]
    assert taking(triggers, steps) == []
    assert taking(triggers, [(30, 0, 20_256)]) == [(30, Kind.OOM, MIB)]


def test_a_pause_in_a_deflate_that_was_under_way_at_the_begin_is_no_rest(triggers):
    steps = [(s, 0, 1000 * (s // 4)) for s in range(60)]
    assert taking(triggers, steps) == []


def test_seldom_looks_tell_memory_taken_back_too(triggers):
    steps = [(0, 0, 0), (60, 0, 0), (120, 0, 256)]
    assert taking(triggers, steps) == [(120, Kind.OOM, MIB)]


def test_pages_that_compaction_moves_are_not_taken_back(triggers):
    assert taking(triggers, [(s, 7 * s, 7 * s) for s in range(60)]) == []


def test_memory_given_back_on_request_is_no_oom(triggers):
    steps = [(s, GIB, GIB) for s in range(10)]
    steps += [(10 + s, GIB + 100 * s * MIB, 2 * GIB) for s in range(11)]
    assert watch(triggers, [*steps, (30, 2 * GIB, 2 * GIB)]) == []


def test_a_deflate_still_under_way_when_the_target_falls_is_no_oom(triggers):
    steps = [(0, GIB, 2 * GIB), (1, GIB + 100 * MIB, 2 * GIB)]
    steps += [(2, GIB + 150 * MIB, GIB), (3, GIB + 160 * MIB, GIB), (4, GIB + 90 * MIB, GIB)]
    assert watch(triggers, steps) == []


def test_the_guest_says_that_its_memory_was_short(triggers):
    triggers.mark(Mark.TARGET, 1)
    assert triggers.due(1) is None
    triggers.mark(Mark.OOM_DEFLATE, 5)
    incident = triggers.due(6)
    assert (incident.kind, incident.ts_ns) == (Kind.OOM, 5)
    assert triggers.due(7) is None


def test_a_stall_on_the_host(triggers):
    triggers.rows("requests", requests([request(0), request(1, pop_ns=5, push_ns=5 + S)]))
    assert triggers.due(0) is None
    slow = [request(2), request(3, pop_ns=5, push_ns=6 + S, queue=Queue.DEFLATE)]
    triggers.rows("requests", requests(slow))
    incident = triggers.due(0)
    assert (incident.kind, incident.ts_ns, incident.value) == (Kind.STALL, 6 + S, 1 + S)
    assert incident.text == "a request of the deflate queue took the host 1.00 s"


def test_a_stall_in_the_guest(triggers):
    columns = {"side": Side.GUEST, "pop_ns": None, "push_ns": None}
    triggers.rows("requests", requests([request(0, send_ns=0, wake_ns=3 * S, **columns)]))
    assert "took the guest 3.00 s" in triggers.due(0).text


def test_what_may_take_long_is_no_stall(triggers):
    """The device keeps a request of the stats queue until somebody asks."""
    for queue in (Queue.STATS, Queue.FREE_PAGE_HINT):
        rows = requests([request(0, pop_ns=0, push_ns=9 * S, queue=queue)])
        triggers.rows("requests", rows)
    triggers.rows("requests", requests([request(0, pop_ns=None, push_ns=None)]))
    triggers.rows("calls", calls([call(0, first_ns=0, last_ns=9 * S)]))
    assert triggers.due(0) is None


def test_a_vm_that_dies_is_due_at_the_end_whatever_was_before(triggers):
    triggers.mark(Mark.VM_EXIT, 7 * S)
    assert triggers.due(8 * S) is None
    incident = triggers.at_end(8 * S)
    assert (incident.kind, incident.ts_ns) == (Kind.EXIT, 7 * S)
    again = Triggers(RULES)
    stall(again, 10)
    assert again.due(10 * S).kind is Kind.STALL
    again.mark(Mark.OOM_DEFLATE, 11 * S)
    again.mark(Mark.VM_EXIT, 12 * S)
    incident = again.at_end(12 * S)
    assert incident.kind is Kind.OOM
    assert "not by a shutdown" in incident.text


@pytest.mark.parametrize("late", [True, False])
def test_a_vm_that_is_shut_down_is_no_incident(triggers, late):
    """Its run state may be read after its process was seen to have ended."""
    for mark in [Mark.VM_EXIT, Mark.RUN_STATE] if late else [Mark.RUN_STATE, Mark.VM_EXIT]:
        triggers.mark(mark, 5, "shutdown" if mark is Mark.RUN_STATE else "pid 7 ended")
    assert triggers.at_end(6) is None


def test_a_vm_that_goes_on_after_a_shutdown_can_die(triggers):
    for state in ("shutdown", "running"):
        triggers.mark(Mark.RUN_STATE, 5, state)
    triggers.mark(Mark.VM_EXIT, 6)
    assert triggers.at_end(6).kind is Kind.EXIT


def test_the_end_of_a_recording_is_no_incident(triggers):
    assert triggers.at_end(5) is None


@pytest.mark.parametrize("state", ["guest-panicked", "internal-error", "io-error", "watchdog"])
def test_a_run_state_that_is_a_fault(triggers, state):
    triggers.mark(Mark.RUN_STATE, 5, state)
    incident = triggers.due(6)
    assert (incident.kind, incident.text) == (Kind.FAULT, f"the VM went into run state {state}")


def test_a_run_state_that_is_none(triggers):
    for state in ("paused", "running", "finish-migrate", "number 99"):
        triggers.mark(Mark.RUN_STATE, 5, state)
    assert triggers.due(6) is None


def stall(triggers, second):
    triggers.rows("requests", requests([request(0, pop_ns=(second - 2) * S, push_ns=second * S)]))


def test_one_incident_that_goes_on_is_due_once(triggers):
    due = []
    for second in range(2, 500):
        if second < 300 and second % 10 == 0:
            stall(triggers, second)
        if triggers.due(second * S):
            due.append(second)
    assert due == [10]
    stall(triggers, 500)
    assert triggers.due(500 * S) is not None


def test_two_incidents_at_once_are_one(triggers):
    stall(triggers, 10)
    triggers.mark(Mark.OOM_DEFLATE, 10 * S)
    incident = triggers.due(10 * S)
    assert incident.kind is Kind.STALL
    assert "took the host" in incident.text
    assert "deflated" in incident.text
    assert triggers.due(10 * S) is None


def test_another_incident_waits_and_is_not_forgotten(triggers):
    stall(triggers, 10)
    assert triggers.due(10 * S).kind is Kind.STALL
    triggers.mark(Mark.OOM_DEFLATE, 30 * S)
    assert [second for second in range(30, 200) if triggers.due(second * S)] == [110]


def test_a_signal_is_due_at_once(triggers):
    stall(triggers, 10)
    assert triggers.due(10 * S)
    for second in (11, 12, 13):
        triggers.signal(second * S)
        assert triggers.due(second * S).kind is Kind.SIGNAL


OUTPUT = (Queue.INFLATE, Queue.DEFLATE)


def look(triggers, requests, seconds):
    """Show the same requests under way every second; [second] of what was due."""
    found = []
    for second in seconds:
        triggers.under_way(requests, second * S)
        if triggers.due(second * S) is not None:
            found.append(second)
    return found


def test_a_request_that_never_ends_is_one_stall(triggers):
    assert look(triggers, [UnderWay(OUTPUT, 5 * S)], range(5, 1000)) == [7]


def test_the_end_of_a_stall_that_was_seen_is_no_new_one(triggers):
    assert look(triggers, [UnderWay(OUTPUT, 5 * S)], range(5, 1000)) == [7]
    triggers.under_way([], 1000 * S)
    triggers.rows("requests", requests([request(0, pop_ns=5 * S, push_ns=999 * S)]))
    assert triggers.due(1001 * S) is None


def test_each_request_that_stalls_is_told_of_where_nothing_need_be_quiet():
    triggers = Triggers(dataclasses.replace(RULES, quiet_ns=0))
    assert look(triggers, [UnderWay(OUTPUT, 5 * S)], range(5, 50)) == [7]
    assert look(triggers, [UnderWay((Queue.REPORTING,), 50 * S)], range(50, 100)) == [52]


def test_short_requests_and_held_statistics_are_no_stall(triggers):
    for second in range(5, 100):
        short = UnderWay(OUTPUT, second * S - S)
        held = UnderWay((Queue.STATS,), S)
        assert look(triggers, [short, held, UnderWay((), S)], [second]) == []
