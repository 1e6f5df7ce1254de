"""The one exception tree of aerostat: what failed, on what, why, and what to do next."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the `aerostat` command tells the shell (docs/guide.md lists the same table)."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    REGRESSION = 3
    INCONCLUSIVE = 4
    CAPTURE_INCOMPLETE = 5
    MISSING_PRIVILEGE = 6


class AerostatError(Exception):
    """A failure the user can act on.

    Args:
        what: What failed and on which object, without a final full stop.
        reason: The reason from the layer below, as it was given.
        remedy: What the user can do next; printed after `try:`.
    """

    exit_code: ExitCode = ExitCode.FAILURE

    def __init__(self, what: str, *, reason: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        lines = [self.what]
        if self.reason:
            lines.append(f"  reason: {self.reason}")
        if self.remedy:
            lines.append(f"  try:    {self.remedy}")
        return "\n".join(lines)


class MissingPrivilegeError(AerostatError):
    """The user, the kernel or the machine lacks something a probe needs."""

    exit_code = ExitCode.MISSING_PRIVILEGE


class CaptureIncompleteError(AerostatError):
    """Events are missing, or the capture did not end as it should."""

    exit_code = ExitCode.CAPTURE_INCOMPLETE


class TraceError(AerostatError):
    """A trace cannot be read or written."""


class ForeignTraceError(TraceError):
    """The path holds something that is not an aerostat trace."""


class NewerTraceError(TraceError):
    """The trace was written by a newer major format version."""


class OlderTraceError(TraceError):
    """The trace was written by an older major format version that is no longer read."""


class TornTraceError(TraceError):
    """The trace was not closed; salvage can keep its whole batches."""

    exit_code = ExitCode.CAPTURE_INCOMPLETE


def salvage_remedy(bundle: object) -> str:
    """Say how to get what is whole out of a torn trace.

    Args:
        bundle: Its path, or a word that stands for it.
    """
    return f"salvage what is whole: aerostat import {bundle} -o WHOLE.balloon"
