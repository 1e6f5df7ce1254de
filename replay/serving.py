"""Stages b, c and d as a device does them: what a request asks is done before it is answered."""

from collections.abc import Sequence

import numpy as np

from replay import native
from replay.memory import GuestMemory, rules_for
from replay.native.exchange import exchange
from replay.native.types import Exchange, Operations, Service, Times, WireRequests
from tracer.trace.errors import AerostatError


def serve(
    memory: GuestMemory,
    sent: WireRequests,
    operations: Operations,
    op_end: Times,
    regions: Sequence[tuple[int, int, int]],
) -> Exchange:
    """Send requests to a device's thread that translates each and carries out its operations.

    Args:
        memory: What the operations act on; it keeps account of what pages must hold now.
        sent: What the driver sends.
        operations: One thread's, in order.
        op_end: int64[requests]: `replay.sending.operation_ends`.
        regions: (gpa, length_bytes, offset_bytes) of each region of guest memory.

    Raises:
        AerostatError: A request did not arrive as it was sent, an operation is impossible, or the
            kernel refused what two threads need.
    """
    rules = rules_for(memory.backing)
    found = exchange(sent, service=Service(memory.mapping, operations, rules, regions, op_end))
    served = found.served
    if served is None or found.refused or not np.array_equal(found.received, sent.wire):
        raise AerostatError(
            "requests did not come over the virtqueues as they were sent",
            reason=f"{found.refused} of {found.requests} buffers were refused",
            remedy="this is a defect of aerostat: report it",
        )
    native.expect(memory.mapping, operations, rules, served.outcome.failed, memory.state)
    return found
