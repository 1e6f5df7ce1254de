"""What a process that records or watches keeps of its privileges once every probe is attached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracer.engine.privilege import Needs


def then_drop(
    ready: Callable[[], None], needs: Callable[[], Needs], say: Callable[[str], None]
) -> Callable[[], None]:
    """Have a process give up what it no longer needs, and only then say that it is ready.

    For a process that does nothing else: privileges are given up for good, in every thread.

    Args:
        ready: Called by the recorder when every probe is attached.
        needs: Says what is kept.
        say: Tells the user that they could not be given up.
    """

    def drop() -> None:
        from tracer.engine.privilege_drop import drop_privileges
        from tracer.errors import ProbeError

        try:
            drop_privileges(needs())
        except ProbeError as error:
            say(str(error))
        ready()

    return drop


def recorder_needs(given: dict[str, Any]) -> Needs:
    """Say what a recorder keeps.

    Args:
        given: The options of `aerostat record`.
    """
    from tracer.engine.privilege import ALL_VMS
    from tracer.engine.privilege_drop import recording_needs, writing_needs

    needs = recording_needs(given["output"], from_host=not given["guest"])
    places: tuple[Path | None, ...] = (given["ready_file"], given["metrics_file"])
    needs = needs.union(*(writing_needs(place) for place in places if place is not None))
    if given["every"]:
        # A VM that starts later is attached to like the first.
        needs |= ALL_VMS
    return needs


def watcher_needs() -> Needs:
    """Say what `aerostat top` keeps: one VM too is attached to anew when it was suspended."""
    from tracer.engine.privilege import ALL_VMS
    from tracer.engine.privilege_drop import reading_needs

    return ALL_VMS | reading_needs()
