"""The doctor's table: a word for each state, one mark per point, each reason once, 100 columns."""

from dataclasses import replace

import pytest

from aerostat.verbs import doctor
from tracer.diagnosis.checks import (
    ENVIRONMENT,
    GUEST_DRIVER,
    HOST_CALLS,
    HOST_REQUESTS,
    Check,
    able,
    failed,
    with_choice,
    word,
)
from tracer.errors import ProbeError
from tracer.sites.probes import (
    GUEST_POINTS,
    HOST_CALL_POINTS,
    HOST_EVENT_POINTS,
    HOST_OTHER_CALL_POINTS,
    host_request_points,
)

GROUPS = {
    HOST_CALLS: (*HOST_CALL_POINTS, *HOST_OTHER_CALL_POINTS),
    HOST_REQUESTS: (*host_request_points((0, 1)), *HOST_EVENT_POINTS),
    GUEST_DRIVER: GUEST_POINTS,
}


def rows(**states: object) -> list[Check]:
    """Every way of the catalogue, each in the same state."""
    return [
        Check(group, point.name, word(way), required=point.required, **states)
        for group, points in GROUPS.items()
        for point in points
        for way in point.ways
    ]


def drawn(checks: list[Check], capsys: pytest.CaptureFixture[str]) -> str:
    doctor.draw(checks)
    return capsys.readouterr().out


def test_the_longest_rows_fit_a_hundred_columns(capsys):
    costs = {"cost_ns": 1234.5, "bystander_ns": 12.34, "reason": "no", "remedy": "do"}
    checks = rows(predicted=True, proven=True, fired=True, **costs)
    failing = [replace(check, proven=False, fired=None) for check in checks]
    for table in (checks, failing):
        lines = drawn(with_choice(table), capsys).splitlines()
        assert max(len(line.rstrip()) for line in lines) <= 100
        assert any("virtballoon_free_page_report" in line for line in lines)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"proven": True, "fired": True}, "✓ fired"),
        ({"proven": True}, "✓"),
        ({"proven": False}, "✗ no"),
        ({"predicted": True}, "✓ likely"),
        ({"predicted": False}, "✗ unlikely"),
        ({}, "-"),
    ],
)
def test_a_word_for_each_state(state, text, capsys):
    out = drawn([Check(HOST_CALLS, "madvise-enter", "kprobe x", **state)], capsys)
    (line,) = [line for line in out.splitlines() if "kprobe x" in line]
    assert line.split("kprobe x")[1].strip().startswith(text)


def test_each_reason_is_told_once_with_its_remedy(capsys):
    checks = [
        replace(
            check,
            proven=False,
            reason="no kprobes" if "probe" in check.way else "no BTF",
            remedy="boot",
        )
        for check in rows()
    ]
    out = drawn(checks, capsys)
    assert out.count("[1] no ") == out.count("[2] no ") == 1
    assert out.count("try: boot") == 2
    assert "[3]" not in out


def test_a_cost_of_an_empty_program_is_marked(capsys):
    out = drawn([Check(GUEST_DRIVER, "ack", "kprobe x", proven=True, floor_ns=120.0)], capsys)
    assert "120 ns+" in out


def test_the_first_working_way_of_each_point_is_marked_and_only_that():
    checks = rows()
    for index, check in enumerate(checks):
        checks[index] = replace(check, proven="tracepoint" in check.way or "uprobe" in check.way)
    chosen = [check for check in with_choice(checks) if check.chosen]
    assert {check.way.split()[0] for check in chosen} == {"tracepoint", "uprobe"}
    names = [check.name for check in chosen]
    assert len(names) == len(set(names))


def test_without_proof_the_first_likely_way_is_marked():
    checks = with_choice(rows(predicted=True))
    assert next(check for check in checks if check.chosen).way.startswith("fentry")
    nothing = with_choice(rows(predicted=False))
    assert not any(check.chosen for check in nothing)


def test_what_can_be_recorded_needs_every_required_point():
    assert set(able(rows(proven=True)).values()) == {True}
    assert set(able(rows(proven=False)).values()) == {False}
    assert set(able(rows(predicted=False)).values()) == {False}
    assert set(able(rows()).values()) == {None}
    checks = [
        replace(check, proven=check.name not in ("queues-push", "fallocate-enter"))
        for check in rows()
    ]
    assert able(checks) == {"qemu": False, "other_vmm": True, "guest": True}


def test_a_cause_that_files_told_is_kept_over_what_the_kernel_answers():
    error = ProbeError("cannot attach", reason="No such file", remedy="report it")
    told = Check(HOST_CALLS, "x", "kprobe y", predicted=False, reason="no kprobes", remedy="boot")
    assert failed(told, error).reason == "no kprobes"
    unsure = Check(HOST_CALLS, "x", "fentry y", reason="locked down", remedy="boot")
    assert failed(unsure, error).reason == "locked down"
    surprise = failed(Check(HOST_CALLS, "x", "kprobe y", predicted=True), error)
    assert surprise.reason == "cannot attach: No such file"
    assert surprise.remedy == "report it"
    assert failed(unsure, ProbeError("no word of it")).remedy == "boot"
    told_nothing = failed(Check(HOST_CALLS, "x", "kprobe y"), ProbeError("no word of it"))
    assert "aerostat doctor --json" in told_nothing.remedy


def test_environment_rows_have_no_costs(capsys):
    out = drawn([Check(ENVIRONMENT, "BCC", proven=True)], capsys)
    assert "✓" in out
    assert "a hit" not in out.split("\n\n")[0]
