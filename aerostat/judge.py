"""Says whether a capture is whole; a capture that is not ends with an exit code of its own."""

from pathlib import Path
from typing import TYPE_CHECKING

from tracer.trace.errors import CaptureIncompleteError

if TYPE_CHECKING:
    from tracer.ledger import Ledger
    from tracer.trace.manifest import Manifest


def require_whole(path: Path, manifest: "Manifest", account: "Ledger | None" = None) -> None:
    """Let a whole capture pass.

    Args:
        path: The bundle, for the message.
        manifest: As the recorder closed it.
        account: The ledger, where it was closed.

    Raises:
        CaptureIncompleteError: It was not closed, events were lost, or its ledger does not balance.
    """
    lost = sum(loss.count for loss in manifest.losses)
    if not manifest.complete:
        reason = manifest.end_reason or "the recording did not end as it should"
    elif manifest.end_reason == "disk-full":
        reason = "the disk was full"
    elif lost:
        reason = f"{lost} events were lost"
    elif account is not None and account.balanced is False:
        reason = "its ledger does not balance"
    else:
        return
    raise CaptureIncompleteError(
        f"{path} is not whole",
        reason=reason,
        remedy=f"aerostat show {path} says what is missing and where",
    )
