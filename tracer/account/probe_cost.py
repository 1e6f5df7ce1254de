"""What the probes themselves cost, and which stage paid for it."""

from collections.abc import Mapping

from tracer.trace.manifest import Manifest
from tracer.trace.schema import Queue

CALL_POINTS = ("madvise", "fallocate")


def charged_ns(
    manifest: Manifest, queue: Queue, stage: str, requests: int, calls: Mapping[str, float]
) -> int | None:
    """Sum what the attached probes cost within one stage.

    A program that opens a stage reads the clock first, so its cost falls into that stage. The one
    on a discard's entry reads it last and the one on its exit first, so both fall into translate.

    Args:
        manifest: Names the probes and their cost per hit.
        queue: The stage's direction.
        stage: The stage's word.
        requests: Requests summed in the stage: hits of a probe that fires once a request.
        calls: Discard calls in those requests, by system call: hits of that call's two probes.

    Returns:
        Nanoseconds, or None if an attached probe in this stage has no measured cost.
    """
    hits: dict[str, float] = dict.fromkeys(_points(queue, stage), requests)
    if stage == "translate":
        hits = {f"{name}-{end}": calls[name] for name in CALL_POINTS for end in ("enter", "exit")}
    total = 0.0
    for side in manifest.sides.values():
        for probe in side.probes:
            if probe.status != "attached" or not hits.get(probe.point):
                continue
            if probe.cost_ns is None:
                return None
            total += probe.cost_ns * hits[probe.point]
    return round(total)


def _points(queue: Queue, stage: str) -> tuple[str, ...]:
    """Points of tracer/sites/probes.py that fire once a request and whose cost is in this stage."""
    reporting, deflate = queue is Queue.REPORTING, queue is Queue.DEFLATE
    host = "reporting" if reporting else "queues"
    ways = {
        "send to pop": ("report-enter" if reporting else "send-enter", f"{host}-pop"),
        "push to wake": (f"{host}-push", "ack", "kick-exit"),
    }
    if stage == "send":
        return tuple(point for points in ways.values() for point in points)
    others = {
        "allocate": ("leak-enter",) if deflate else ("work-enter", "target-enter", "target-exit"),
        "free": ("send-exit",),
        "config write": ("leak-exit",) if deflate else ("send-exit",),
    }
    return (ways | others).get(stage, ())
