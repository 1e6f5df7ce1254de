"""What `aerostat doctor` finds: one row for each requirement and each way to a probe point."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tracer.diagnosis.predict import Prediction
from tracer.errors import REPORT
from tracer.sites.probes import Point, Way
from tracer.trace.errors import AerostatError

ENVIRONMENT = "environment"
HOST_CALLS = "host calls"
HOST_REQUESTS = "host requests"
GUEST_DRIVER = "guest driver"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that recording needs, or one way to one probe point.

    Attributes:
        group: environment, host calls, host requests or guest driver.
        name: What is checked; for a probe its point.
        way: Mechanism and target of a probe; empty for the environment.
        required: Whether nothing of its group can be recorded without it.
        predicted: What the files of this machine say; None where nothing tells beforehand.
        proven: Whether it worked when tried, or is plain to see; None where it was not tried.
        fired: Whether the attached probe ran when it was provoked; None where nothing provoked it.
        chosen: Whether `aerostat record` would go this way.
        cost_ns: Measured cost of one hit to the traced VM, our own program included.
        floor_ns: Measured cost of one hit with an empty program, where ours could not be timed.
        bystander_ns: Measured cost to every system call of every other process.
        reason: Why it does not work.
        remedy: The one command or step that mends it.
    """

    group: str
    name: str
    way: str = ""
    required: bool = False
    predicted: bool | None = None
    proven: bool | None = None
    fired: bool | None = None
    chosen: bool = False
    cost_ns: float | None = None
    floor_ns: float | None = None
    bystander_ns: float | None = None
    reason: str = ""
    remedy: str = ""


def word(way: Way) -> str:
    """Name a way as a reader of the table knows it."""
    return f"{way.kind.value} {way.target.rpartition('syscalls:')[2]}"


def predicted_check(group: str, point: Point, way: Way, prediction: Prediction) -> Check:
    """Return the row of a way that has not been tried."""
    return Check(
        group,
        point.name,
        word(way),
        required=point.required,
        predicted=prediction.works,
        reason=prediction.reason,
        remedy=prediction.remedy,
    )


def failed(check: Check, error: AerostatError) -> Check:
    """Return the row of a way that was tried in vain.

    What files say beforehand names the cause and its remedy better than what the kernel answers.
    """
    reason = f"{error.what}: {error.reason}" if error.reason else error.what
    if check.reason:
        return replace(check, proven=False)
    return replace(check, proven=False, reason=reason, remedy=error.remedy or REPORT)


def with_choice(checks: Iterable[Check]) -> list[Check]:
    """Mark, for each point, the way that a recorder would go: the first that works."""
    rows = list(checks)
    taken: set[tuple[str, str]] = set()
    for wanted in (_is_proven, _is_predicted):
        for index, check in enumerate(rows):
            place = (check.group, check.name)
            if check.way and wanted(check) and place not in taken:
                rows[index] = replace(check, chosen=True)
                taken.add(place)
    return rows


def _is_proven(check: Check) -> bool:
    return check.proven is True


def _is_predicted(check: Check) -> bool:
    return check.proven is None and check.predicted is True


def able(checks: Iterable[Check]) -> dict[str, bool | None]:
    """Say what can be recorded here.

    Returns:
        qemu (requests and discards, from the host), other_vmm (discards alone, from the host) and
        guest (the driver's requests, from inside): True or False as proven, None where nothing was
        tried that would tell.
    """
    rows = list(checks)
    calls = [row for row in rows if row.group == HOST_CALLS and row.name.startswith("madvise-")]
    return {
        "qemu": _works(row for row in rows if row.group == HOST_REQUESTS and row.required),
        "other_vmm": _works(calls),
        "guest": _works(row for row in rows if row.group == GUEST_DRIVER and row.required),
    }


def _works(rows: Iterable[Check]) -> bool | None:
    """Whether every point has a way that works."""
    points: dict[str, list[Check]] = {}
    for row in rows:
        points.setdefault(row.name, []).append(row)
    if points and all(any(row.proven for row in ways) for ways in points.values()):
        return True
    if any(all(_is_hopeless(row) for row in ways) for ways in points.values()):
        return False
    return None


def _is_hopeless(check: Check) -> bool:
    return check.proven is False or (check.proven is None and check.predicted is False)
