"""Notices that this machine slept, or that its wall clock was set, by three clocks read together.

CLOCK_MONOTONIC is the clock of a trace: it stands still while the machine sleeps, and nobody can
set it. CLOCK_BOOTTIME goes on in sleep (kernel/time/timekeeping.c, since 2.6.39), so boottime less
monotonic is the time slept. CLOCK_REALTIME is set by people and by time daemons. A slow correction
(adjtime, NTP) changes the pace of all three alike, so realtime less boottime changes only in steps.
"""

import time
from typing import NamedTuple

from tracer.trace.schema import Mark

LEAST_NS = 1_000_000
"""Smaller steps are not told: that is how far two readings may be apart on a busy machine."""
_TRIES = 5


class ClockEvent(NamedTuple):
    """What a clock did, in the columns of the marks table.

    Attributes:
        mark: SUSPEND or CLOCK_STEP.
        ts_ns: When it was noticed, CLOCK_MONOTONIC.
        since_ns: When all was still well, CLOCK_MONOTONIC.
        value: Nanoseconds slept, or by which the wall clock was set, negative for back.
    """

    mark: Mark
    ts_ns: int
    since_ns: int
    value: int


class _Reading(NamedTuple):
    monotonic_ns: int
    slept_ns: int
    wall_ns: int
    error_ns: int


class ClockWatch:
    """Compares the clocks at each `check` with those of the check before."""

    def __init__(self) -> None:
        self._before = _read()

    def check(self) -> list[ClockEvent]:
        """Say what the clocks did since the last check; cheap enough for every second.

        Two opposite steps between two checks are not seen, nor are steps below LEAST_NS.
        """
        before, now = self._before, _read()
        self._before = now
        least_ns = LEAST_NS + before.error_ns + now.error_ns
        events = []
        for mark, value in (
            (Mark.SUSPEND, now.slept_ns - before.slept_ns),
            (Mark.CLOCK_STEP, now.wall_ns - before.wall_ns),
        ):
            if abs(value) >= least_ns:
                events.append(ClockEvent(mark, now.monotonic_ns, before.monotonic_ns, value))
        return events


def _read() -> _Reading:
    """Read the clocks between two looks at one of them, and keep the closest of a few tries."""
    return min((_read_once() for _ in range(_TRIES)), key=lambda reading: reading.error_ns)


def _read_once() -> _Reading:
    first_ns = time.monotonic_ns()
    boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    wall_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
    last_ns = time.monotonic_ns()
    middle_ns = (first_ns + last_ns) // 2
    return _Reading(last_ns, boot_ns - middle_ns, wall_ns - boot_ns, last_ns - first_ns)
