"""What a recorder keeps of its privileges once every probe is attached."""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def then_drop(
    ready: Callable[[], None], given: dict[str, Any], say: Callable[[str], None]
) -> Callable[[], None]:
    """Have a recorder give up what it no longer needs, and only then say that it is ready.

    For a process that does nothing but record: privileges are given up for good, in every thread.

    Args:
        ready: Called by the recorder when every probe is attached.
        given: The options of `aerostat record`.
        say: Tells the user that they could not be given up.
    """

    def drop() -> None:
        from tracer.engine.privilege import ALL_VMS
        from tracer.engine.privilege_drop import drop_privileges, recording_needs, writing_needs
        from tracer.errors import ProbeError

        needs = recording_needs(given["output"], from_host=not given["guest"])
        places: tuple[Path | None, ...] = (given["ready_file"], given["metrics_file"])
        needs = needs.union(*(writing_needs(place) for place in places if place is not None))
        if given["every"]:
            # A VM that starts later is attached to like the first.
            needs |= ALL_VMS
        try:
            drop_privileges(needs)
        except ProbeError as error:
            say(str(error))
        ready()

    return drop
