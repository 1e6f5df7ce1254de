"""How a VM's balloon does at this moment: two readings of its figures, and what lies between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tracer.record.live import VmStats
from tracer.trace.schema import PAGE_BYTES, Queue

_NS_PER_S = 1e9
_NEAR_BYTES = 1 << 20
"""A target is reached when `actual` is this near: guests round it, to huge pages at the most."""
_MOVES = {
    Queue.INFLATE: "inflating",
    Queue.DEFLATE: "deflating",
    Queue.REPORTING: "reporting",
    Queue.FREE_PAGE_HINT: "hinting",
}


@dataclass(frozen=True)
class Rates:
    """Between two readings; None where it was not observed.

    Attributes:
        interval_ns: Time between them.
        pages_per_s: 4 KiB pages named by requests, by queue.
        requests_per_s: Virtqueue buffers, by queue.
        discards_per_s: System calls that gave memory back, or advised on it.
        discarded_bytes_per_s: What they covered.
        mean_run_pages: Pages of a run of adjacent pages; None where none moved.
        busy_share: Share of the time in which the device was at requests, 0 to 1.
        translate_share: Share of the time in requests and not in their discards.
        discard_share: Share of the time in discards.
        discard_of_busy: The same as a share of the busy time; None where there was none.
        lost_per_s: Events lost.
        probe_share: Share of the time that the probes themselves took from the VM.
        probe_of_busy: The same as a share of the busy time; None where there was none.
    """

    interval_ns: int
    pages_per_s: dict[Queue, float] | None
    requests_per_s: dict[Queue, float] | None
    discards_per_s: float | None
    discarded_bytes_per_s: float | None
    mean_run_pages: float | None
    busy_share: float | None
    translate_share: float | None
    discard_share: float | None
    discard_of_busy: float | None
    lost_per_s: float
    probe_share: float | None
    probe_of_busy: float | None

    @property
    def moved_pages_per_s(self) -> float:
        """How active it is: pages of requests, or of discards where no request can be seen."""
        if self.pages_per_s is not None:
            return sum(self.pages_per_s.values())
        return (self.discarded_bytes_per_s or 0.0) / PAGE_BYTES


def rates(before: VmStats, after: VmStats) -> Rates | None:
    """Say what happened between two readings of one VM.

    Args:
        before: The earlier one.
        after: The later one.

    Returns:
        Over the true time between them; None if they are no two readings of one recording.
    """
    interval_ns = after.ts_ns - before.ts_ns
    if interval_ns <= 0 or before.pid != after.pid or _went_back(before, after):
        return None
    seen = bool(after.queues)
    naming = after.queues - {Queue.STATS}
    pages = {queue: _grown(before.pages, after.pages, queue) for queue in naming}
    requests = {queue: _grown(before.requests, after.requests, queue) for queue in after.queues}
    busy_ns = after.busy_ns - before.busy_ns if seen else None
    discard_ns = _difference(before.discard_ns, after.discard_ns)
    probe_ns = _difference(before.probe_ns, after.probe_ns)
    runs = after.runs - before.runs
    translate_ns = None
    if busy_ns is not None and discard_ns is not None:
        translate_ns = max(busy_ns - discard_ns, 0)

    def per_s(amount: float | None) -> float | None:
        return None if amount is None else amount * _NS_PER_S / interval_ns

    def share(part_ns: float | None) -> float | None:
        return None if part_ns is None else part_ns / interval_ns

    calls = _difference(before.discard_calls, after.discard_calls)
    discarded = _difference(before.discard_bytes, after.discard_bytes)
    lost = sum(after.lost.values()) - sum(before.lost.values())
    return Rates(
        interval_ns=interval_ns,
        pages_per_s=_each_per_s(pages, interval_ns) if seen else None,
        requests_per_s=_each_per_s(requests, interval_ns) if seen else None,
        discards_per_s=per_s(calls),
        discarded_bytes_per_s=per_s(discarded),
        mean_run_pages=sum(pages.values()) / runs if runs else None,
        busy_share=share(busy_ns),
        translate_share=share(translate_ns),
        discard_share=share(discard_ns),
        discard_of_busy=discard_ns / busy_ns if discard_ns is not None and busy_ns else None,
        lost_per_s=lost * _NS_PER_S / interval_ns,
        probe_share=share(probe_ns),
        probe_of_busy=probe_ns / busy_ns if probe_ns is not None and busy_ns else None,
    )


def state(now: VmStats, moving: Rates | None) -> str:
    """Say in a word what a VM's balloon does.

    Args:
        now: The latest reading.
        moving: What happened up to it.

    Returns:
        A queue's word while pages move; `discarding` where only system calls are seen; `stalled`
        if the target is not reached and nothing moves; else `still`; `new` after one reading.
    """
    if moving is None:
        return "new"
    pages = moving.pages_per_s or {}
    busiest = max(_MOVES, key=lambda queue: pages.get(queue, 0.0))
    if pages.get(busiest, 0.0) > 0:
        return _MOVES[busiest]
    if moving.pages_per_s is None and moving.discards_per_s:
        return "discarding"
    if now.actual_bytes is not None and now.target_bytes is not None:
        short = abs(now.actual_bytes - now.target_bytes)
        if short > _NEAR_BYTES:
            return "stalled"
    return "still"


def _went_back(before: VmStats, after: VmStats) -> bool:
    """Whether a sum has fallen: the VM was taken up anew between the two."""
    return (
        after.busy_ns < before.busy_ns
        or after.runs < before.runs
        or (after.discard_calls or 0) < (before.discard_calls or 0)
        or any(after.pages.get(queue, 0) < pages for queue, pages in before.pages.items())
        or any(after.lost.get(cause, 0) < count for cause, count in before.lost.items())
    )


def _grown(before: Mapping[Queue, int], after: Mapping[Queue, int], queue: Queue) -> int:
    return after.get(queue, 0) - before.get(queue, 0)


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _each_per_s(amounts: Mapping[Queue, int], interval_ns: int) -> dict[Queue, float]:
    return {queue: amounts[queue] * _NS_PER_S / interval_ns for queue in sorted(amounts)}
