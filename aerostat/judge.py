"""Says whether a capture is whole; a capture that is not ends with an exit code of its own."""

from pathlib import Path
from typing import TYPE_CHECKING

from tracer.trace.errors import CaptureIncompleteError

if TYPE_CHECKING:
    from tracer.trace.manifest import Manifest

_DIFFERS = "differs"
"""How the status of a ledger's line begins that does not agree (tracer/account/ledger.py)."""


def why_not_whole(manifest: "Manifest") -> str | None:
    """Say what is wrong with a capture: its end, its losses or its ledger.

    Args:
        manifest: As the recorder closed it, with the ledger where it was settled.

    Returns:
        None for a whole one.
    """
    lost = sum(loss.count for loss in manifest.losses)
    if not manifest.complete:
        return manifest.end_reason or "the recording did not end as it should"
    if manifest.is_cut_short:
        return "it ended as its disk was full, and what came after is not in it"
    if lost:
        return f"{lost} events were lost"
    for line in manifest.ledger or ():
        if line.status.startswith(_DIFFERS):
            return f"its ledger does not balance: {line.name} {line.status}"
    return None


def require_whole(path: Path, manifest: "Manifest") -> None:
    """Let a whole capture pass.

    Args:
        path: The bundle, for the message.
        manifest: As for `why_not_whole`.

    Raises:
        CaptureIncompleteError: It was not closed, events were lost, or its ledger does not balance.
    """
    reason = why_not_whole(manifest)
    if reason is not None:
        raise CaptureIncompleteError(
            f"{path} is not whole",
            reason=reason,
            remedy=f"aerostat show {path} says what is missing and where",
        )
