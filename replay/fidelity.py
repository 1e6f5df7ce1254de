"""Does a replay of the traced VMM's own strategy reproduce the trace?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from replay.results import Fidelity
from tracer.trace.schema import Queue, Side

if TYPE_CHECKING:
    from tracer.trace.reader import Trace

TRACED_STRATEGY = "qemu"
"""What the VMM did whose discards can be recorded today."""


def captured_discards(trace: Trace) -> tuple[int | None, int | None]:
    """Sum the discards a trace recorded.

    The entry probe reads the clock last and the exit probe first, so the programs' own time is not
    in the sum and nothing is taken off it.

    Returns:
        Operations and their time in ns, None where the trace has neither calls nor their sums.
    """
    calls = trace.table("calls")
    # A VMM's thread also advises on memory of its own; only guest memory has an address here.
    ours = pc.and_(pc.is_valid(calls["request_seq"]), pc.is_valid(calls["gpa"]))
    calls = calls.filter(pc.and_(pc.equal(calls["side"], int(Side.HOST)), ours))
    if calls.num_rows:
        return _total(calls["count"]), _total(calls["total_ns"])
    # The ranges of requests, which are most of a table, are not to be copied.
    requests = trace.table("requests").select(["side", "discard_calls", "discard_ns"])
    requests = requests.filter(pc.equal(requests["side"], int(Side.HOST)))
    return _total(requests["discard_calls"]), _total(requests["discard_ns"])


def _total(column: pa.ChunkedArray) -> int | None:
    total = pc.sum(column).as_py()
    return None if total is None else int(total)


def send_time_ns(trace: Trace) -> float | None:
    """Mean time a balloon request spends between the sides, the device's own work taken off.

    Guest: wake - send; host: push - pop. Each difference is of one clock, so no clocks are aligned.

    Returns:
        ns a request, or None unless both sides saw the balloon's requests.
    """
    times = ["send_ns", "wake_ns", "pop_ns", "push_ns"]
    table = trace.table("requests").select(["side", "queue", *times])
    balloon = pc.is_in(table["queue"], pa.array([Queue.INFLATE, Queue.DEFLATE], pa.uint8()))
    table = table.filter(balloon)
    guest = table.filter(pc.equal(table["side"], int(Side.GUEST)))
    host = table.filter(pc.equal(table["side"], int(Side.HOST)))
    away = pc.mean(pc.subtract(guest["wake_ns"], guest["send_ns"])).as_py()
    device = pc.mean(pc.subtract(host["push_ns"], host["pop_ns"])).as_py()
    if away is None or device is None or away < device:
        return None
    return float(away - device)


def judge(trace: Trace, planned_operations: int, replayed_ns: int | None, note: str) -> Fidelity:
    """Set a replay beside the trace.

    Args:
        trace: What was recorded.
        planned_operations: Operations of the traced strategy's plan over the whole trace.
        replayed_ns: Median stage d of that strategy; None where it is no counterpart of the trace.
        note: Why the times cannot be set side by side; empty where they can.
    """
    operations, discard_ns = captured_discards(trace)
    return Fidelity(
        strategy=TRACED_STRATEGY,
        captured_operations=operations,
        planned_operations=planned_operations,
        exact=None if operations is None else operations == planned_operations,
        captured_discard_ns=discard_ns,
        replayed_discard_ns=replayed_ns,
        ratio=replayed_ns / discard_ns if replayed_ns is not None and discard_ns else None,
        note=note if discard_ns else "the trace holds no discard times",
    )
