"""When a VM is recorded again whose recording ended before it did."""

import time
from pathlib import Path

import pytest

from tests.unit.test_recording import vmm
from tracer.host_side import again as again_module
from tracer.host_side.again import Again
from tracer.host_side.host_events import SUSPENDED
from tracer.host_side.host_session import Ended
from tracer.trace.errors import AerostatError, TraceError

BUNDLE = Path("web-7-001.balloon")
SOON_S = 0.05


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again_module, "_FIRST_S", SOON_S)


def failed(text: str = "no probe attaches", error: type[AerostatError] = AerostatError) -> Ended:
    return Ended(vmm("web"), None, text, error(text))


def waited_s(again: Again) -> float:
    """How long it is until a VM is due."""
    begin_s = time.monotonic()
    while not again.due():
        assert time.monotonic() - begin_s < 5
        time.sleep(0.002)
    return time.monotonic() - begin_s


def test_a_vm_that_was_suspended_is_due_at_once_and_once() -> None:
    again = Again(None)
    assert again.note(Ended(vmm("web"), BUNDLE, SUSPENDED))
    assert [vm.name for vm in again.due()] == ["web"]
    assert again.due() == []


@pytest.mark.parametrize("reason", ["vm-exited", "vm-migrated", "budget", "stopped"])
def test_what_ended_as_it_should_is_not_due(reason: str) -> None:
    again = Again(None)
    assert again.note(Ended(vmm("web"), BUNDLE, reason))
    time.sleep(2 * SOON_S)
    assert again.due() == []


def test_each_failure_of_one_vm_makes_the_next_wait_longer() -> None:
    again = Again(None)
    waits = []
    for _ in range(4):
        again.note(failed())
        assert again.due() == []
        waits.append(waited_s(again))
    wanted = [SOON_S, 2 * SOON_S, 4 * SOON_S, 8 * SOON_S]
    for waited, least_s in zip(waits, wanted, strict=True):
        assert least_s * 0.9 < waited < least_s + 1


def test_the_wait_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again_module, "_LATEST_S", SOON_S)
    again = Again(None)
    for _ in range(5):
        again.note(failed())
        assert waited_s(again) < SOON_S + 0.5


def test_a_failure_that_lasts_is_told_once() -> None:
    again = Again(None)
    assert again.note(failed())
    assert not again.note(failed())
    assert again.note(failed("another reason"))
    assert again.note(Ended(vmm("other", pid=8), None, "x", AerostatError("x")))
    torn = Ended(vmm("web"), BUNDLE, "another reason", AerostatError("another reason"))
    assert again.note(torn), "there is a trace of it"


def test_another_process_with_the_pid_is_another_vm() -> None:
    import dataclasses

    again = Again(None)
    again.note(failed())
    other = dataclasses.replace(vmm("web"), start_ticks=2)
    assert again.note(Ended(other, None, "no probe attaches", AerostatError("no probe attaches")))
    time.sleep(2 * SOON_S)
    assert sorted(vm.start_ticks for vm in again.due()) == [1, 2]


@pytest.mark.parametrize(
    "end",
    [Ended(vmm("web"), BUNDLE, "disk-full"), failed("cannot write the trace", TraceError)],
    ids=["full", "failed"],
)
def test_without_room_it_waits_and_with_room_not_for_long(
    end: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound is moved, not the disk: tests/kernel/all_vms/test_stays_on.py fills a real one."""
    again = Again(tmp_path)
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(again_module, "_LEAST_ROOM_BYTES", 1 << 60)
            patch.setattr(again_module, "_MOST_ROOM_BYTES", 1 << 60)
            again.note(end)
            time.sleep(2 * SOON_S)
            assert again.due() == []
        assert [vm.name for vm in again.due()] == ["web"]
        again.note(end)
        assert waited_s(again) < SOON_S + 0.2


def test_nothing_is_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    again = Again(None)
    for pid in range(100):
        again.note(Ended(vmm("web", pid=pid), None, "x", AerostatError("x")))
    time.sleep(2 * SOON_S)
    assert len(again.due()) == 100
    monkeypatch.setattr(again_module, "_LATEST_S", 0.0)
    again.due()
    assert again._failures == {}


def test_a_vm_that_is_there_no_more_is_let_go() -> None:
    again = Again(None)
    again.note(Ended(vmm("web"), BUNDLE, SUSPENDED))
    again.forget([vmm("web")])
    again.note(failed())
    again.forget([vmm("other"), vmm("web")])
    time.sleep(2 * SOON_S)
    assert again.due() == []
