"""Draws what the recorder did: losses, checks, and the probes with their cost."""

import re
from collections.abc import Iterable, Sequence

from aerostat import render
from tracer.trace.findings import Finding
from tracer.trace.manifest import Loss, Manifest, ProbeRecord
from tracer.trace.missing import lost_events
from tracer.trace.shared_hits import has_shared_hits

_CAUSES = {
    "ring": "the ring was full",
    "quota": "the VM was over its quota",
    "disk": "the disk was full or failed",
    "budget": "the disk budget was spent",
    "partial": "its pages could not be read whole",
    "stranger": "of a queue that is not known",
}
_MOST_STRETCHES = 3


def draw_losses(losses: Sequence[Loss], manifest: Manifest, *, is_complete: bool) -> None:
    """Draw what is missing, why and when, or say that nothing is known to be.

    Args:
        losses: Of a trace.
        manifest: Tells when each side began.
        is_complete: Whether the trace was closed in order; else nobody knows that none were.
    """
    if not losses:
        told = "none" if is_complete else "none recorded up to here; the trace is not complete"
        render.say(f"Losses: {told}.")
        render.say()
        return
    rows = []
    for (side, stream, cause), count in lost_events(losses).items():
        alike = [
            loss
            for loss in losses
            if (loss.side, loss.stream, loss.cause or "") == (side, stream, cause)
        ]
        info = manifest.sides.get(side)
        begin_ns = info.begin_ns if info is not None else None
        stretches = [_stretch(loss, begin_ns) for loss in alike[:_MOST_STRETCHES]]
        if len(alike) > _MOST_STRETCHES:
            stretches[1:] = [f"{len(alike) - 2} more", _stretch(alike[-1], begin_ns)]
        because = _CAUSES.get(cause, cause) or render.NOT_OBSERVED
        rows.append((side, stream, render.count(count), because, ", ".join(stretches)))
    columns = ("<side", "<events of", "lost", "<because", "<when, since the recording began")
    render.draw("LOSSES: events are missing", columns, rows)


def _stretch(loss: Loss, begin_ns: int | None) -> str:
    """When the events were lost: from the recording's begin, where that is known."""
    if begin_ns is None:
        return render.NOT_OBSERVED
    since = "?" if loss.since_ns is None else render.after(loss.since_ns - begin_ns)
    return f"{since} to {render.after(loss.until_ns - begin_ns)}"


def draw_findings(findings: Sequence[Finding]) -> None:
    """Draw what the checks found wrong with the trace; nothing if they found nothing."""
    if findings:
        rows = [(finding.severity, finding.code, finding.text) for finding in findings]
        render.draw("checks", ("<severity", "<code", "<what"), rows)


def draw_probes(manifest: Manifest) -> None:
    """Draw every probe of every side with what it costs; each reason once, below."""
    notes: dict[str, tuple[int, list[str]]] = {}
    rows = [
        _probe_row(side, probe, notes)
        for side, info in manifest.sides.items()
        for probe in info.probes
    ]
    if not rows:
        return
    columns = ("<side", "<probe", "<way", "<note", "hits", "a hit", "in all", "others", "<where")
    render.draw("probes", columns, rows, spare=("where",))
    for reason, (number, points) in notes.items():
        render.say_note(f"[{number}]", f"{_listed(points)}: {reason}")
    render.say(
        "hits: how often the traced VM ran into it. a hit: what one costs the VM, in all: what all"
        " did. others: what a probe adds to every system call of every other process."
    )
    if any(has_shared_hits(manifest.version, side) for side in manifest.sides):
        render.say(
            f"Recorders of format {manifest.format_version} counted the host's probes together: how"
            " often each was hit, and what that took in all, is not known."
        )
    render.say()


def _probe_row(
    side: str, probe: ProbeRecord, notes: dict[str, tuple[int, list[str]]]
) -> tuple[str, ...]:
    mark = ""
    if probe.reason:
        number, points = notes.setdefault(_generic(probe), (len(notes) + 1, []))
        points.append(probe.point)
        mark = f"[{number}]"
    way = probe.way if probe.status == "attached" else probe.status
    in_all_ns = None
    if probe.cost_ns is not None and probe.hits is not None:
        in_all_ns = probe.cost_ns * probe.hits
    costs = (render.ns(probe.cost_ns), render.ns(in_all_ns), render.ns(probe.bystander_ns))
    return (side, probe.point, way, mark, render.count(probe.hits), *costs, probe.target)


def _generic(probe: ProbeRecord) -> str:
    """Give a reason without the name of its point's function, so that alike ones are one."""
    name = probe.point.rpartition("-")[0] or probe.point
    reason = re.sub(rf"(?<=[a-z0-9]_){re.escape(name)}\b", "*", probe.reason)
    if probe.status != "attached":
        return reason
    return f"not by {reason}"


def _listed(points: Iterable[str]) -> str:
    """Join the points' names, `-enter` and `-exit` of one function as one."""
    names = list(dict.fromkeys(points))
    both = {
        name.removesuffix("-enter")
        for name in names
        if name.endswith("-enter") and f"{name.removesuffix('-enter')}-exit" in names
    }
    short = (name.rpartition("-")[0] if name.rpartition("-")[0] in both else name for name in names)
    return ", ".join(dict.fromkeys(short))
