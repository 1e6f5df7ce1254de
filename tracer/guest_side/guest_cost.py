"""What the guest's probes cost: getting to a program by its mechanism, and the program itself."""

from __future__ import annotations

import time
from collections.abc import Iterable

from tracer.cost.function_cost import function_costs
from tracer.engine.attach import Attachment
from tracer.engine.attachments import Attachments
from tracer.engine.bpf_programs import RunStats
from tracer.errors import ProbeError

_ENOUGH_RUNS = 256
_LONGEST_S = 3600.0
_EVERY_S = 1.0
_OF_EACH_REQUEST = ("on_tell_enter", "on_leak_enter")
"""The first runs once for an inflate or a deflate, the second for a deflate alone."""


class GuestCost:
    """Measures, while the guest is recorded, what one hit of each of its probes costs.

    The mechanisms are timed once, at the begin, with empty programs. Our own programs are timed by
    the kernel, which adds two clock reads to every run of any BPF program of this guest. So that
    ends when enough inflates and deflates were seen, and after an hour in any case.

    Args:
        program: The programs, attached.
        attached: What became of each probe point.
    """

    def __init__(self, program: Attachments, attached: Iterable[Attachment]) -> None:
        self._program = program
        kinds = {attachment.way.kind for attachment in attached if attachment.way is not None}
        self._floors_ns = function_costs(kinds)
        self._begin_s = self._polled_s = time.monotonic()
        try:
            self._stats: RunStats | None = RunStats()
        except ProbeError:
            self._stats = None

    def poll(self) -> None:
        """Stop timing if it is time to; call it as often as you like."""
        now_s = time.monotonic()
        if self._stats is None or now_s - self._polled_s < _EVERY_S:
            return
        self._polled_s = now_s
        runs = (self._program.runs(function).count for function in _OF_EACH_REQUEST)
        if min(runs) >= _ENOUGH_RUNS or now_s - self._begin_s > _LONGEST_S:
            self.close()

    def hit_ns(self, attachment: Attachment) -> float | None:
        """Say what one hit of an attached probe costs the guest; ask before it is detached.

        Returns:
            Nanoseconds; None where its mechanism or its program was not timed.
        """
        way = attachment.way
        if way is None:
            return None
        floor_ns, body_ns = self._floors_ns.get(way.kind), self._program.runs(way.program).mean_ns
        return None if floor_ns is None or body_ns is None else floor_ns + body_ns

    def close(self) -> None:
        """Stop timing; what was counted stays readable while the programs are attached."""
        if self._stats is not None:
            self._stats.close()
            self._stats = None
