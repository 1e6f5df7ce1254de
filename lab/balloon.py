"""Moves the balloon and times the move, by what the device itself says.

`actual` is polled, not awaited as an event: QEMU sends BALLOON_CHANGE at most once a second.
"""

import time
from dataclasses import dataclass

from lab.errors import LabError
from lab.qmp import QmpClient

POLL_SHORTEST_S = 0.001
POLL_LONGEST_S = 0.02
POLL_SHARE = 1 / 200
"""A poll's wait over the time since the target was set. It bounds the error of a move's time to
half a percent, without a busy loop that would take a CPU from an emulated guest."""
STALL_S = 5.0
MOVE_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Move:
    """One change of the balloon's target.

    Attributes:
        target_bytes: Guest memory asked for.
        start_bytes: Guest memory (`actual`) before.
        end_bytes: Guest memory (`actual`) when the wait ended.
        wall_ns: From just before the target was set to when `actual` last came nearer, as seen by
            polling (half a percent late at most, 1 ms at least); CLOCK_MONOTONIC.
    """

    target_bytes: int
    start_bytes: int
    end_bytes: int
    wall_ns: int

    @property
    def is_reached(self) -> bool:
        """Whether the guest got to the target."""
        return self.end_bytes == self.target_bytes

    @property
    def is_inflate(self) -> bool:
        """Whether the target took memory from the guest."""
        return self.target_bytes < self.start_bytes


def try_move(
    qmp: QmpClient,
    target_bytes: int,
    *,
    stall_s: float = STALL_S,
    timeout_s: float = MOVE_TIMEOUT_S,
) -> Move:
    """Set the target and wait until it is reached, or `actual` comes no nearer, or time is over.

    Args:
        qmp: QEMU's monitor.
        target_bytes: Guest memory to ask for, a multiple of 4 KiB.
        stall_s: Seconds without coming nearer after which to give up.
        timeout_s: Seconds after which to give up in any case.

    Raises:
        LabError: QEMU's monitor failed.
    """
    start_bytes = last_bytes = qmp.query_balloon()
    nearest_bytes = abs(start_bytes - target_bytes)
    start_ns = last_ns = time.monotonic_ns()
    qmp.balloon(target_bytes)
    while last_bytes != target_bytes:
        waited_s = (time.monotonic_ns() - start_ns) / 1e9
        time.sleep(min(max(waited_s * POLL_SHARE, POLL_SHORTEST_S), POLL_LONGEST_S))
        actual_bytes = qmp.query_balloon()
        now_ns = time.monotonic_ns()
        last_bytes = actual_bytes
        # A guest that deflates on OOM swings to and fro; only coming nearer counts.
        if abs(actual_bytes - target_bytes) < nearest_bytes:
            nearest_bytes, last_ns = abs(actual_bytes - target_bytes), now_ns
        elif now_ns - last_ns > stall_s * 1e9:
            break
        if now_ns - start_ns > timeout_s * 1e9:
            break
    return Move(target_bytes, start_bytes, last_bytes, last_ns - start_ns)


def move(qmp: QmpClient, target_bytes: int) -> Move:
    """Set the target and wait until it is reached.

    Raises:
        LabError: The guest stopped short of it, or QEMU's monitor failed.
    """
    done = try_move(qmp, target_bytes)
    if not done.is_reached:
        raise LabError(
            f"the balloon stopped at {done.end_bytes} bytes on its way to {target_bytes}",
            reason="the guest has no more memory to give, or its driver is stuck",
            remedy="give the lab VM more memory",
        )
    return done
