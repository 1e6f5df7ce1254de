"""What a capture needs of the user who starts it."""

import os

from tracer.trace.errors import MissingPrivilegeError


def require_root(what: str) -> None:
    """Refuse early where the user cannot load BPF programs.

    Raises:
        MissingPrivilegeError: Not root.
    """
    if os.geteuid() != 0:
        raise MissingPrivilegeError(
            f"cannot record {what} without root",
            reason=f"effective user id is {os.geteuid()}; BPF needs CAP_BPF, CAP_PERFMON",
            remedy="run with sudo; `aerostat replay` and `aerostat show` need no privilege",
        )
