"""Decides when a flight recorder should keep what it holds: one incident, one decision.

Pure: it is fed with rows, marks and figures, and asked what is due. It reads no clock.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from tracer.record.live import UnderWay
from tracer.trace.schema import Mark, Queue

_MIB = 1 << 20
_SETTLING_NS = 2 * 10**9
"""After a new target the guest may still be busy with the one before."""
_REST_NS = 5 * 10**9
"""A guest that takes no memory back for so long is not busy with a target that nobody here saw."""
_STALLS = ((("pop_ns", "push_ns"), "host"), (("send_ns", "wake_ns"), "guest"))
_STALL_QUEUES = (Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING)
_MOST_TEXT = 500
_FAULTS = ("guest-panicked", "internal-error", "io-error", "watchdog")
_IN_ORDER = "shutdown"
"""Run states of QEMU (qapi/run-state.json): what stops a VM, and what one that ends by itself or by
a signal comes through (softmmu/runstate.c qemu_cleanup, since 2.5), but not one that is killed."""


class Kind(StrEnum):
    """What an incident is."""

    STUCK = "stuck-target"
    OOM = "oom-deflate"
    STALL = "stall"
    FAULT = "vm-fault"
    EXIT = "vm-exit"
    SIGNAL = "signal"


@dataclass(frozen=True, slots=True)
class TriggerRules:
    """What counts as an incident.

    Attributes:
        stuck_bytes: A target is stuck if `actual` is further away from it than this, and has not
            come nearer by as much, for `stuck_ns`.
        stuck_ns: See there.
        stall_ns: A request took longer than this, from pop to push or from send to wake, or has
            been with the host for longer and is not returned yet.
        quiet_ns: After a decision nothing is due for so long. What goes on, with shorter breaks
            than this, is one incident.
    """

    stuck_bytes: int = 64 * _MIB
    stuck_ns: int = 60 * 10**9
    stall_ns: int = 10**9
    quiet_ns: int = 60 * 10**9


class Balloon(Protocol):
    """How large a balloon is, and is to be; `VmStats` says it too.

    Both sizes are the guest's memory less the balloon, None where not observed. Where they are
    counted from does not matter, as long as it is the same for both.
    """

    @property
    def ts_ns(self) -> int:
        """When, CLOCK_MONOTONIC."""

    @property
    def actual_bytes(self) -> int | None:
        """What it is."""

    @property
    def target_bytes(self) -> int | None:
        """What was asked of the guest."""

    @property
    def taken_bytes(self) -> int | None:
        """What the guest has taken back since the recording began, less what it gave."""


@dataclass(frozen=True, slots=True)
class Incident:
    """Why to keep what is held.

    Attributes:
        kind: The first thing that was seen of it.
        ts_ns: When, CLOCK_MONOTONIC.
        value: Bytes short of the target, bytes taken back, or the stall in ns; None for a signal.
        text: For the user; names all that was seen until the decision.
    """

    kind: Kind
    ts_ns: int
    value: int | None
    text: str


class Triggers:
    """Watches one VM."""

    def __init__(self, rules: TriggerRules) -> None:
        self._rules = rules
        self._last_seen_ns: dict[Kind, int] = {}
        self._pending: Incident | None = None
        self._quiet_until_ns: int | None = None
        self._target: tuple[int, int] | None = None
        self._nearest: tuple[int, int] | None = None
        self._lowest_bytes: int | None = None
        self._taken_bytes: int | None = None
        self._at_rest_since_ns = 0
        self._has_rested = False
        self._exited_ns: int | None = None
        self._is_shut_down = False
        self._stalled_ns: frozenset[int] = frozenset()

    def is_due(self, now_ns: int) -> bool:
        """Say whether `due` would say something now."""
        is_quiet = self._quiet_until_ns is not None and now_ns < self._quiet_until_ns
        return self._pending is not None and not is_quiet

    def due(self, now_ns: int) -> Incident | None:
        """Say whether to keep what is held now; each incident is said once.

        Args:
            now_ns: CLOCK_MONOTONIC.
        """
        incident = self._pending
        if not self.is_due(now_ns):
            return None
        self._pending = None
        self._quiet_until_ns = now_ns + self._rules.quiet_ns
        return incident

    def signal(self, ts_ns: int) -> None:
        """Somebody asks for it: that is due at once, whatever was before."""
        self._quiet_until_ns = None
        self._last_seen_ns.pop(Kind.SIGNAL, None)
        self._see(Kind.SIGNAL, ts_ns, None, "asked for by SIGUSR1")

    def at_end(self, now_ns: int) -> Incident | None:
        """Say whether to keep what is held, now that nothing more will come.

        A VM that ended without being shut down is an incident, however short the last one is ago:
        there will be no later chance. One that was shut down is none.
        """
        if self._exited_ns is not None and not self._is_shut_down:
            self._quiet_until_ns = None
            self._see(Kind.EXIT, self._exited_ns, None, "the VM's process ended, not by a shutdown")
        return self.due(now_ns)

    def mark(self, mark: Mark, ts_ns: int, text: str | None = None) -> None:
        """A mark was written; the guest's side tells of an OOM deflate that way."""
        if mark is Mark.OOM_DEFLATE:
            self._see(Kind.OOM, ts_ns, None, "the guest deflated because its memory was short")
        elif mark is Mark.VM_EXIT:
            self._exited_ns = ts_ns
        elif mark is Mark.RUN_STATE:
            self._is_shut_down = text == _IN_ORDER
            if text in _FAULTS:
                self._see(Kind.FAULT, ts_ns, None, f"the VM went into run state {text}")

    def rows(self, table: str, batch: pa.RecordBatch) -> None:
        """Rows were written; requests that took too long are a stall."""
        if table != "requests":
            return
        rows = batch.filter(pc.is_in(batch["queue"], pa.array(_STALL_QUEUES, pa.uint8())))
        for (begin, end), side in _STALLS:
            took_ns = pc.subtract(rows[end], rows[begin])
            longest_ns = pc.max(took_ns).as_py()
            if longest_ns is not None and longest_ns > self._rules.stall_ns:
                row = pc.index(took_ns, longest_ns).as_py()
                queue = Queue(rows["queue"][row].as_py()).name.lower()
                text = f"a request of the {queue} queue took the {side} {longest_ns / 1e9:.2f} s"
                self._see(Kind.STALL, rows[end][row].as_py(), longest_ns, text)

    def under_way(self, requests: Iterable[UnderWay], now_ns: int) -> None:
        """Look at the requests that the host has taken and not returned: a stall need not end.

        Args:
            requests: All of them, each time; what began at a time that was seen before is known.
            now_ns: CLOCK_MONOTONIC.
        """
        stalled = {
            request.begin_ns: " or ".join(queue.name.lower() for queue in request.queues)
            for request in requests
            if now_ns - request.begin_ns > self._rules.stall_ns
            and not set(request.queues).isdisjoint(_STALL_QUEUES)
        }
        for begin_ns in sorted(stalled.keys() - self._stalled_ns):
            took_ns = now_ns - begin_ns
            queues = stalled[begin_ns]
            text = f"a request of the {queues} queue is with the host for {took_ns / 1e9:.2f} s"
            self._see(Kind.STALL, now_ns, took_ns, f"{text}, and not returned")
        if stalled:
            self._last_seen_ns[Kind.STALL] = now_ns  # goes on: its end will be no new incident
        self._stalled_ns = frozenset(stalled)

    def stats(self, stats: Balloon) -> None:
        """New figures of the VM; a balloon that does not follow its target is an incident.

        A target is known from its first change on. Before that the requests alone tell that a guest
        takes memory back, and nothing tells that it should have moved.
        """
        actual, target = stats.actual_bytes, stats.target_bytes
        if target is None and stats.taken_bytes is not None:
            self._look_without_target(stats.taken_bytes, stats.ts_ns)
        if actual is None or target is None:
            return
        if self._target is None or self._target[0] != target:
            self._target = target, stats.ts_ns
            self._nearest = self._lowest_bytes = None
        self._look_whether_stuck(actual, target, stats.ts_ns)
        self._look_whether_unasked(actual, target, stats.ts_ns - self._target[1], stats.ts_ns)

    def _look_whether_stuck(self, actual: int, target: int, ts_ns: int) -> None:
        gap, step = abs(actual - target), self._rules.stuck_bytes
        if gap <= step:
            self._nearest = None
        elif self._nearest is None or gap <= self._nearest[0] - step:
            self._nearest = gap, ts_ns
        elif ts_ns - self._nearest[1] > self._rules.stuck_ns:
            waited_s = (ts_ns - self._nearest[1]) / 1e9
            text = f"{gap // _MIB} MiB from the target, and hardly nearer in {waited_s:.0f} s"
            self._see(Kind.STUCK, ts_ns, gap, text)

    def _look_whether_unasked(self, actual: int, target: int, age_ns: int, ts_ns: int) -> None:
        """Seen from the host, an OOM deflate is memory that nobody offered the guest."""
        lowest = self._lowest_bytes
        if lowest is None or age_ns < _SETTLING_NS:
            self._lowest_bytes = actual
        elif actual > max(lowest, target):
            taken = actual - lowest
            self._see(Kind.OOM, ts_ns, taken, f"the guest took {taken // 1024} KiB back unasked")
            self._lowest_bytes = actual
        else:
            self._lowest_bytes = min(actual, lowest)

    def _look_without_target(self, taken: int, ts_ns: int) -> None:
        """Look for memory taken back while the target is not known.

        The recorder may have begun in a deflate that was asked for before: that counts for nothing
        until the guest has rested once.

        Args:
            taken: What the guest has taken back since the recording began, less what it gave.
            ts_ns: When.
        """
        before, self._taken_bytes = self._taken_bytes, taken
        rise = 0 if before is None else taken - before
        if self._has_rested:
            if rise > 0:
                text = f"the guest took {rise // 1024} KiB back, with no target set meanwhile"
                self._see(Kind.OOM, ts_ns, rise, text)
        elif before is None or rise > 0:
            self._at_rest_since_ns = ts_ns
        else:
            self._has_rested = ts_ns - self._at_rest_since_ns >= _REST_NS

    def _see(self, kind: Kind, ts_ns: int, value: int | None, text: str) -> None:
        last_ns = self._last_seen_ns.get(kind)
        self._last_seen_ns[kind] = ts_ns
        if last_ns is not None and ts_ns - last_ns < self._rules.quiet_ns:
            return  # the same incident goes on
        if self._pending is None:
            self._pending = Incident(kind, ts_ns, value, text)
        else:
            both = f"{self._pending.text}; {text}"[:_MOST_TEXT]
            self._pending = replace(self._pending, text=both)
