"""What a trace does not hold, in words: lost events, a missing end, requests nobody could see."""

from collections.abc import Iterable

from tracer.trace.errors import TraceError
from tracer.trace.manifest import Loss, Manifest
from tracer.trace.reader import Trace
from tracer.trace.schema import Side

_REQUEST_POINTS = ("queues-pop", "queues-push")
"""Points of tracer/sites/probes.py without which the host sees no request."""


def lost_events(losses: Iterable[Loss]) -> dict[tuple[str, str, str], int]:
    """Add up losses by side, stream and cause; the cause is empty where it is not known."""
    totals: dict[tuple[str, str, str], int] = {}
    for loss in losses:
        key = (loss.side, loss.stream, loss.cause or "")
        totals[key] = totals.get(key, 0) + loss.count
    return totals


def missing_events(trace: Trace) -> str | None:
    """Say what a trace is known to lack, for a sentence that names the trace before it.

    Args:
        trace: Any trace.

    Returns:
        Such as `misses 1,200 requests of the host (ring)`; None for one that is whole. One that
        ended because its disk was full is not, though all may be there until then.
    """
    totals = lost_events(trace.losses)
    parts = [
        f"{count:,} {stream} of the {side}" + (f" ({cause})" if cause else "")
        for (side, stream, cause), count in sorted(totals.items())
    ]
    told = []
    if parts:
        told.append(f"misses {', '.join(parts)}")
    if not trace.is_complete:
        told.append("did not end as it should, and what is missing at its end is not known")
    elif trace.manifest.is_cut_short:
        told.append("ended as its disk was full, and what came after is not in it")
    return " and ".join(told) or None


def unseen_requests(manifest: Manifest) -> str | None:
    """Say why the host's recorder could see no request, only system calls.

    Args:
        manifest: Of any trace.

    Returns:
        The reason its probes give; None if it could see them, or if the host was not recorded.
    """
    host = manifest.sides.get("host")
    for probe in host.probes if host is not None else ():
        if probe.point in _REQUEST_POINTS and probe.status != "attached":
            return probe.reason or "the balloon's handlers were not probed"
    return None


def require_seen_requests(trace: Trace) -> None:
    """Refuse a trace whose recorder could see no request; a balloon that kept still is no fault.

    Raises:
        TraceError: It holds system calls alone.
    """
    unseen = unseen_requests(trace.manifest)
    if unseen is None or trace.table("requests").num_rows:
        return
    calls = trace.table("calls", Side.HOST).num_rows
    raise TraceError(
        f"{trace.path} holds no requests, only system calls ({calls:,} rows)",
        reason=f"the balloon's handlers in its VMM could not be probed: {unseen}",
        remedy="record in the guest at the same time, and aerostat import that: it has the"
        " requests",
    )


def require_requests(trace: Trace) -> None:
    """Refuse a trace in which there is nothing to do again.

    Raises:
        TraceError: It holds no request of either side.
    """
    require_seen_requests(trace)
    if not trace.table("requests").num_rows:
        raise TraceError(
            f"{trace.path} holds no requests",
            reason=missing_events(trace) or "the balloon did not move while it was recorded",
            remedy="record while the target changes, or while free pages are reported",
        )
