"""Attaches the points of the catalogue: each by its first way that works, no way twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tracer.engine.loader import Program
from tracer.errors import ProbeError
from tracer.sites.probes import Kind, Point, Way
from tracer.trace.errors import AerostatError

Attach = Callable[[Program, Way], None]


@dataclass(frozen=True, slots=True)
class Attachment:
    """What became of one point.

    Attributes:
        point: The point.
        way: The way that attached, or None.
        reason: Why the cheaper ways, or all of them, did not; empty where the first one did.
    """

    point: Point
    way: Way | None
    reason: str


def attach_all(
    program: Program, points: tuple[Point, ...], mechanisms: Mapping[Kind, Attach]
) -> list[Attachment]:
    """Attach every point that can be.

    Args:
        program: The compiled source.
        points: What to attach.
        mechanisms: How to attach each kind that this program was compiled for; others are skipped.

    Returns:
        One entry per point, in order.

    Raises:
        ProbeError: A required point has no way that works; what was attached stays so until the
            program is closed.
    """
    done: set[Way] = set()
    found = []
    for point in points:
        attachment = _attach(program, point, mechanisms, done)
        if attachment.way is None and point.required:
            raise ProbeError(
                f"cannot attach the probe {point.name}, without which there is nothing to record",
                reason=attachment.reason,
                remedy="run `aerostat doctor`, which tries every way and says what mends it",
            )
        found.append(attachment)
    return found


def _attach(
    program: Program, point: Point, mechanisms: Mapping[Kind, Attach], done: set[Way]
) -> Attachment:
    reasons: list[str] = []
    for way in point.ways:
        mechanism = mechanisms.get(way.kind)
        if mechanism is None:
            continue
        if way in done:
            return Attachment(point, way, "; ".join(reasons))
        try:
            mechanism(program, way)
        except AerostatError as error:
            reasons.append(f"{way.kind.value} {way.target}: {error.reason or error.what}")
        else:
            done.add(way)
            return Attachment(point, way, "; ".join(reasons))
    return Attachment(point, None, "; ".join(reasons) or "this program has no way to it")
