"""When a VM that runs on, though its recording has ended, is taken up again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tracer.host_side.host_events import SUSPENDED
from tracer.host_side.host_session import Ended
from tracer.trace.errors import TraceError
from tracer.trace.manifest import DISK_FULL
from tracer.vms.vmm import Vmm

_FIRST_S = 10.0
_LATEST_S = 3600.0
_LEAST_ROOM_BYTES = 4 << 20
_MOST_ROOM_BYTES = 1 << 30
_ROOM_SHARE = 20
"""One part in so many of a file system is to be free, within these bounds, before a recording that
its lack of room has ended goes on: what is free for a moment would be a trace of a moment."""


@dataclass(slots=True)
class _Failure:
    """What is known of a VM that was not recorded to its end; times are CLOCK_MONOTONIC."""

    vmm: Vmm
    text: str
    wait_s: float
    due_s: float
    wants_room: bool
    is_waiting: bool = True


class Again:
    """The VMs of `record_all` that are to be recorded again.

    A VM that was suspended is at once. One whose recording failed is after 10 s, and each time it
    fails again after twice as long, up to an hour; where the disk is at fault, as soon as there is
    room, but not within 10 s.

    Args:
        directory: Where the bundles lie; None where nothing is written.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._suspended: list[Vmm] = []
        self._failures: dict[tuple[int, int], _Failure] = {}

    def note(self, end: Ended) -> bool:
        """Take note of a VM that is recorded no more.

        Returns:
            Whether it is news: that a VM still cannot be recorded, for the same reason, is none.
        """
        key = end.vmm.pid, end.vmm.start_ticks
        before = self._failures.pop(key, None)
        if end.reason == SUSPENDED:
            self._suspended.append(end.vmm)
        elif end.error is not None or end.reason == DISK_FULL:
            of_disk = end.reason == DISK_FULL or isinstance(end.error, TraceError)
            wait_s = _FIRST_S
            if before is not None and not of_disk:
                wait_s = min(2 * before.wait_s, _LATEST_S)
            due_s = time.monotonic() + wait_s
            self._failures[key] = _Failure(end.vmm, end.reason, wait_s, due_s, of_disk)
        return before is None or end.trace is not None or end.reason != before.text

    def forget(self, ended: Iterable[Vmm]) -> None:
        """Let go of VMs that are there no more: their process may be another VM's by now."""
        for vmm in ended:
            self._suspended = [other for other in self._suspended if other != vmm]
            self._failures.pop((vmm.pid, vmm.start_ticks), None)

    def due(self) -> list[Vmm]:
        """Take the VMs whose time has come; one that has ended meanwhile may be among them."""
        now_s = time.monotonic()
        due, self._suspended = self._suspended, []
        for key, failure in list(self._failures.items()):
            if now_s < failure.due_s:
                continue
            if failure.is_waiting and not (failure.wants_room and self._is_full()):
                failure.is_waiting = False
                due.append(failure.vmm)
            elif now_s > failure.due_s + 2 * _LATEST_S and not failure.is_waiting:
                del self._failures[key]  # It has been recorded since, or has ended.
        return due

    def _is_full(self) -> bool:
        if self._directory is None:
            return False
        try:
            status = os.statvfs(self._directory)
        except OSError:
            return False  # Who writes there says it better.
        wanted = status.f_blocks * status.f_frsize // _ROOM_SHARE
        wanted = min(max(wanted, _LEAST_ROOM_BYTES), _MOST_ROOM_BYTES)
        return status.f_bavail * status.f_frsize < wanted
