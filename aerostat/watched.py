"""What the live view knows: each VM's two latest readings, and who is gone."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aerostat.output import plain
from tracer.record.live import VmStats
from tracer.record.rates import Rates, rates, state
from tracer.trace.schema import Queue

_REMEMBERED = 16
"""VMs that are gone; more have been told of in earlier updates."""


@dataclass(frozen=True)
class Watched:
    """One VM: its latest reading, and what happened since the one before."""

    now: VmStats
    moving: Rates | None

    @property
    def state(self) -> str:
        """What its balloon does, in a word."""
        return state(self.now, self.moving)

    @property
    def balloon_bytes(self) -> int | None:
        """Size of the balloon."""
        memory, actual = self.now.memory_bytes, self.now.actual_bytes
        return None if memory is None or actual is None else memory - actual

    @property
    def longest_ns(self) -> int | None:
        """The longest request since the probes went in; None where none was seen."""
        return self.now.longest_ns if any(self.now.requests.values()) else None

    def has_moved(self, queue: Queue) -> bool:
        """Whether a queue has ever named pages."""
        return self.now.pages.get(queue, 0) > 0


@dataclass(frozen=True)
class Gone:
    """A VM that is watched no more, and why."""

    name: str
    pid: int
    reason: str


@dataclass(frozen=True)
class Update:
    """The view at one moment.

    Attributes:
        number: Of updates that have rates, from 1; 0 before the first.
        realtime_ns: When, by the wall clock.
        vms: The busiest first.
        gone: Since the update before.
    """

    number: int
    realtime_ns: int
    vms: tuple[Watched, ...]
    gone: tuple[Gone, ...]


class Readings:
    """Makes updates of readings."""

    def __init__(self) -> None:
        self._before: dict[int | None, VmStats] = {}
        self._gone: list[Gone] = []
        self._number = -1

    def leave(self, gone: Gone) -> None:
        """Take note that a VM is watched no more."""
        self._gone = [*self._gone, gone][-_REMEMBERED:]
        self.forget(gone.pid)

    def forget(self, pid: int) -> None:
        """Take the next reading of this VM for its first."""
        self._before.pop(pid, None)

    def take(self, readings: Iterable[VmStats]) -> Update:
        """Take the readings of every VM that is watched now."""
        vms = []
        latest = {}
        for now in readings:
            before = self._before.get(now.pid)
            vms.append(Watched(now, rates(before, now) if before is not None else None))
            latest[now.pid] = now
        self._before = latest
        gone, self._gone = tuple(self._gone), []
        self._number += 1
        return Update(self._number, time.time_ns(), tuple(sorted(vms, key=_rank)), gone)


def _rank(vm: Watched) -> tuple[float, float, str]:
    """Sort by what moves, then by how busy the device is, then by name."""
    if vm.moving is None:
        return (0.0, 0.0, vm.now.name)
    return (-vm.moving.moved_pages_per_s, -(vm.moving.busy_share or 0.0), vm.now.name)


def document(update: Update) -> dict[str, Any]:
    """Make the JSON document of an update that docs/cli.md describes."""
    return {
        "update": update.number,
        "realtime_ns": update.realtime_ns,
        "vms": [_vm(vm) for vm in update.vms],
        "gone": plain(update.gone),
    }


def _vm(vm: Watched) -> dict[str, Any]:
    now, moving = vm.now, vm.moving
    return {
        "name": now.name,
        "pid": now.pid,
        "uuid": now.uuid,
        "state": vm.state,
        "memory_bytes": now.memory_bytes,
        "actual_bytes": now.actual_bytes,
        "target_bytes": now.target_bytes,
        "balloon_bytes": vm.balloon_bytes,
        "rates": plain(moving),
        "longest_ns": vm.longest_ns,
        "lost": plain(now.lost),
        "since_attach": {
            "pages": plain(now.pages),
            "requests": plain(now.requests),
            "runs": now.runs,
            "discard_calls": now.discard_calls,
            "discard_ns": now.discard_ns,
            "discard_bytes": now.discard_bytes,
            "busy_ns": now.busy_ns,
            "probe_ns": now.probe_ns,
        },
    }
