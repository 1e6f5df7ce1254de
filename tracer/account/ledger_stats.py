"""Counts answers with statistics on both sides; they name no pages that could be held together."""

from dataclasses import dataclass

import numpy as np

from tracer.account.clocks import ClockFit
from tracer.account.join import NOT_OBSERVED
from tracer.account.ledger_sums import RequestSums
from tracer.trace.manifest import SideInfo
from tracer.trace.reader import Trace
from tracer.trace.schema import Queue, Side

_NEAR_NS = 500_000_000
"""QEMU asks once a second at most (guest-stats-polling-interval is in seconds), so an answer sent
and an answer received so near each other are the same one."""


@dataclass(frozen=True)
class StatsCounts:
    """Answers with statistics.

    Attributes:
        guest: Sent by the driver; None where the guest was not traced.
        host: Received by the device; None where the host was not traced.
        host_only: Of `host`, those that came while the guest was not recorded, or as its recording
            began or ended; None where the clocks were not fitted.
    """

    guest: int | None
    host: int | None
    host_only: int | None


def stats_counts(trace: Trace, sums: RequestSums, clock: ClockFit | None) -> StatsCounts:
    """Count the rows of the queue, and say which of the host's the guest could not see.

    Args:
        trace: A trace of one side or both.
        sums: Of its requests.
        clock: The guest's clock in the host's.
    """
    guest, host = (trace.manifest.sides.get(name) for name in ("guest", "host"))
    sent, received = (sums.of(side, Queue.STATS).pages.rows for side in (Side.GUEST, Side.HOST))
    host_only = None
    if guest is not None and guest.end_ns is not None and clock is not None:
        kick_ns = sums.stats_ns(Side.GUEST)
        kick_ns = np.sort(clock.to_host_ns(kick_ns[kick_ns != NOT_OBSERVED]))
        host_only = _outside(sums.stats_ns(Side.HOST), kick_ns, clock, guest)
    return StatsCounts(
        guest=None if guest is None else sent,
        host=None if host is None else received,
        host_only=host_only,
    )


def _outside(pop_ns: np.ndarray, kick_ns: np.ndarray, clock: ClockFit, guest: SideInfo) -> int:
    """Count pops without a kick near them, but those from well within the guest's recording."""
    assert guest.end_ns is not None
    begin_ns, end_ns = clock.to_host_ns(np.array([guest.begin_ns, guest.end_ns]))
    after = np.searchsorted(kick_ns, pop_ns - _NEAR_NS)
    before = np.searchsorted(kick_ns, pop_ns + _NEAR_NS, side="right")
    within = (pop_ns > begin_ns + _NEAR_NS) & (pop_ns < end_ns - _NEAR_NS)
    return int(np.count_nonzero((before == after) & ~within))
