"""What QEMU says of itself while it is recorded: targets, actual, run states; and what follows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from tracer.engine.vm_probes import Event, VmProbes
from tracer.record.residency import residency_batch
from tracer.trace.errors import AerostatError
from tracer.trace.manifest import Region
from tracer.trace.schema import Mark
from tracer.trace.sink import Sink

_RUN_STATES = (
    "debug",
    "inmigrate",
    "internal-error",
    "io-error",
    "paused",
    "postmigrate",
    "prelaunch",
    "finish-migrate",
    "restore-vm",
    "running",
    "save-vm",
    "shutdown",
    "suspended",
    "watchdog",
    "guest-panicked",
)
"""RunState of qapi/run-state.json, in order: the same from QEMU 2.0 to 10.0."""
SUSPENDED = "vm-suspended"
_END_STATES = {"paused": SUSPENDED, "suspended": SUSPENDED, "postmigrate": "vm-migrated"}
"""States that end a trace: the guest's time stands still, or goes on elsewhere."""
_SNAPSHOT_SHARE = 20
"""A residency snapshot may take one part in so many of the recorder's time."""


class VmEvents:
    """Writes the marks of one VM's events.

    Args:
        probes: Where the events are counted.
        writer: Where the marks go.
        pid: The VMM.
        regions: Says where guest memory lies, whose residency is kept when the target changes.

    Attributes:
        target_bytes: The latest target, None before the first change.
        end_reason: Why the VM's state ends its trace, or None.
    """

    def __init__(
        self, probes: VmProbes, writer: Sink, pid: int, regions: Callable[[], tuple[Region, ...]]
    ) -> None:
        self._probes, self._writer, self._pid, self._regions = probes, writer, pid, regions
        self._seen = dict.fromkeys(Event, 0)
        self._marked_actual: int | None = None
        self._next_snapshot_s = 0.0
        self._actual: tuple[int, int] | None = None
        self.target_bytes: int | None = None
        self.end_reason: str | None = None

    def look(self) -> None:
        """Write what happened since the last look. `actual` waits: a guest drives its rate."""
        actions: dict[Event, Callable[[int, int, str | None], None]] = {
            Event.TARGET: self._on_target,
            Event.ACTUAL: self._on_actual,
            Event.RUN_STATE: self._on_run_state,
        }
        for event, log in zip(Event, self._probes.events(), strict=True):
            fresh = log.count - self._seen[event]
            self._seen[event] = log.count
            unseen = fresh - len(log.latest)
            text = f"{unseen} before it were not seen" if unseen > 0 else None
            for value, ts_ns in log.latest[-fresh:] if fresh else ():
                actions[event](value, ts_ns, text)
                text = None

    def mark_actual(self) -> None:
        """Write where `actual` has got to, if it moved since the last mark."""
        if self._actual is not None and self._actual[0] != self._marked_actual:
            value, ts_ns = self._actual
            self._marked_actual = value
            self._writer.mark(Mark.ACTUAL, ts_ns, value=value)

    @property
    def actual_bytes(self) -> int | None:
        """The device's latest `actual`, None before the first change.

        None too where that is below 0: the guest tells how large the balloon is, and QEMU takes it
        off the memory's size unseen. The marks have it as it is.
        """
        return None if self._actual is None or self._actual[0] < 0 else self._actual[0]

    def _on_target(self, value: int, ts_ns: int, text: str | None) -> None:
        if value <= 0:
            return  # QEMU refuses it (qmp_balloon): it is no target.
        self.target_bytes = value
        self._writer.mark(Mark.TARGET, ts_ns, value=value, text=text)
        self._snapshot()

    def _on_actual(self, value: int, ts_ns: int, text: str | None) -> None:
        is_first = self._actual is None
        self._actual = (value, ts_ns)
        if is_first:
            self.mark_actual()  # What the ledger counts from.

    def _on_run_state(self, value: int, ts_ns: int, text: str | None) -> None:
        state = _RUN_STATES[value] if value < len(_RUN_STATES) else f"number {value}"
        self._writer.mark(Mark.RUN_STATE, ts_ns, text=state)
        self.end_reason = _END_STATES.get(state, self.end_reason)

    def _snapshot(self) -> None:
        """Keep what is resident now that the balloon is about to move."""
        begin_s = time.monotonic()
        if begin_s < self._next_snapshot_s:
            return
        with contextlib.suppress(AerostatError):
            batch = residency_batch(self._pid, self._regions(), time.monotonic_ns())
            self._writer.append("residency", batch)
        self._next_snapshot_s = begin_s + (time.monotonic() - begin_s) * _SNAPSHOT_SHARE


class QuotaEpisodes:
    """Writes one mark for each span of time in which a VM was over its quota.

    Args:
        refused: Counts the records that were refused so far.
        writer: Where the marks go.
    """

    def __init__(self, refused: Callable[[], int], writer: Sink) -> None:
        self._refused, self._writer = refused, writer
        self._looked_ns = time.monotonic_ns()
        self._seen = 0
        self._since_ns: int | None = None
        self._before = 0

    def look(self) -> None:
        """Open a span where records were refused since the last look; close it where none were."""
        now_ns, count = time.monotonic_ns(), self._refused()
        if count > self._seen and self._since_ns is None:
            self._since_ns, self._before = self._looked_ns, self._seen
        elif count == self._seen:
            self.close()
        self._seen, self._looked_ns = count, now_ns

    def close(self) -> None:
        """End the span that is open, if one is."""
        if self._since_ns is not None:
            refused = self._refused() - self._before
            text = "refused by the VM's quota"
            self._writer.mark(
                Mark.QUOTA, self._looked_ns, since_ns=self._since_ns, value=refused, text=text
            )
            self._since_ns = None
