"""What the probes themselves cost, and which stage paid for it."""

from tracer.trace.manifest import Manifest

_PER_REQUEST = {
    "work": ("allocate",),
    "leak": ("allocate", "config write"),
    "tell": ("send",),
    "report": ("send",),
    "kick": ("send",),
    "ack": ("send",),
    "pop": ("send",),
    "push": ("send",),
}
_PER_CALL = ("madvise", "fallocate", "call", "calls", "discard", "sys")
"""Words of a probe point's name that say where it sits; see docs/measuring.md."""


def charged_ns(manifest: Manifest, stage: str, requests: int, calls: int) -> int | None:
    """Sum what the attached probes cost within one stage.

    A program reads the clock first where it opens a stage, so its cost falls into the stage that it
    opens; the one on a discard's entry reads it last and the one on its exit first, so theirs falls
    into c.

    Args:
        manifest: Names the probes and their cost per hit.
        stage: The stage's word.
        requests: Requests summed in the stage: hits of a probe that fires once a request.
        calls: Discard calls in those requests: hits of a probe that fires once a call.

    Returns:
        Nanoseconds, or None if an attached probe in this stage has no measured cost.
    """
    total = 0.0
    for side in manifest.sides.values():
        for probe in side.probes:
            hits = _hits(probe.point, stage, requests, calls)
            if not hits or probe.status != "attached":
                continue
            if probe.cost_ns is None:
                return None
            total += probe.cost_ns * hits
    return round(total)


def _hits(point: str, stage: str, requests: int, calls: int) -> int:
    words = point.replace("-", ".").replace("_", ".").split(".")
    if stage == "translate" and any(word in _PER_CALL for word in words):
        return calls
    return requests * any(stage in _PER_REQUEST.get(word, ()) for word in words)
