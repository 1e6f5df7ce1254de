"""How `aerostat top` ends: with what it could not see, and why it stopped."""

import dataclasses
import threading

import pytest

from aerostat.top_outputs import Output
from aerostat.watching import Watching
from tests.unit.test_metrics import BUSY
from tests.unit.test_recording import vmm
from tracer.host_side.host_events import SUSPENDED
from tracer.host_side.host_session import Ended as HostEnded
from tracer.record.live import VmStats
from tracer.trace.errors import ExitCode


class Silent(Output):
    """Shows nothing."""

    def update(self, update: object) -> None:
        """Take an update."""


def watched(*readings: list[VmStats]) -> Watching:
    watching = Watching(Silent(), threading.Event(), count=None, is_one=False)
    for stats in readings:
        watching._told(stats)
    return watching


def having_lost(pid: int, **causes: int) -> VmStats:
    return dataclasses.replace(BUSY, pid=pid, lost=causes)


def test_events_that_were_lost_change_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    first = [having_lost(1, ring=0, quota=3), having_lost(2)]
    then = [having_lost(1, ring=1200, quota=34)]
    assert watched(first, then).conclude() == ExitCode.CAPTURE_INCOMPLETE
    assert "1,234 events were lost" in capsys.readouterr().err


def test_a_vm_that_lost_events_and_left_still_counts() -> None:
    assert watched([having_lost(1, ring=5)], []).conclude() == ExitCode.CAPTURE_INCOMPLETE


def test_what_was_lost_before_a_vm_was_suspended_still_counts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    watching = watched([having_lost(1, ring=5)])
    watching._ended(HostEnded(vmm("a", pid=1), None, SUSPENDED))
    watching._told([having_lost(1, ring=2)])
    watching._told([])
    assert watching.conclude() == ExitCode.CAPTURE_INCOMPLETE
    assert "7 events were lost" in capsys.readouterr().err


def test_nothing_lost_is_nothing_to_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert watched([having_lost(1, ring=0)]).conclude() == ExitCode.OK
    assert capsys.readouterr().err == ""
