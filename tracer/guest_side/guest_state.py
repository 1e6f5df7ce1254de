"""What the guest's programs know at this moment, beside what they put into rings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tracer.engine.maps import Map
from tracer.record.live import UnderWay
from tracer.trace.schema import PAGE_BYTES, Queue

_QUEUES = frozenset(int(queue) for queue in Queue)


@dataclass(frozen=True, slots=True)
class BalloonSize:
    """How large the balloon is and is to be, as `tracer.record.triggers.Balloon` wants it.

    Attributes:
        ts_ns: When it was read, CLOCK_MONOTONIC.
        actual_bytes: What the balloon takes from the guest's memory, below 0; None where not known.
        target_bytes: What it is to take, likewise.
        taken_bytes: Not counted here: the driver itself tells of an OOM deflate.
    """

    ts_ns: int
    actual_bytes: int | None
    target_bytes: int | None
    taken_bytes: None = None


def balloon_size(state: Any, now_ns: int) -> BalloonSize:
    """Read the balloon's size and target.

    Args:
        state: struct guest_state of bpf/records.h.
        now_ns: CLOCK_MONOTONIC.
    """
    return BalloonSize(
        ts_ns=now_ns,
        actual_bytes=-state.actual_pages * PAGE_BYTES if state.actual_ns else None,
        target_bytes=-state.target_pages * PAGE_BYTES if state.target_known else None,
    )


def under_way(slots: Map) -> list[UnderWay]:
    """Read which requests were sent and are not answered, in no order.

    Args:
        slots: The map of that name of bpf/guest_threads.bpf.c: the threads in the driver.
    """
    requests = [leaf.request for _, leaf in slots.items() if leaf.sent]
    return [
        UnderWay((Queue(request.queue),), request.send_ns)
        for request in requests
        if request.send_ns and not request.wake_ns and request.queue in _QUEUES
    ]
