"""Errors of capture: what could not be found, attached or recorded."""

import traceback
from pathlib import Path

from tracer.trace.errors import AerostatError, MissingPrivilegeError

REPORT = "report this with the output of `aerostat doctor --json`"
"""The next step where nobody but us can mend it."""


class SymbolError(AerostatError):
    """A probe point cannot be found in a program file."""


class ProcessError(AerostatError):
    """A process is not there, not readable, or not a virtual machine monitor."""


class ProcessEndedError(ProcessError):
    """A process that was there has ended, even where another has its pid now."""


class ProbeError(MissingPrivilegeError):
    """A probe that the capture cannot do without does not attach."""


class BccError(MissingPrivilegeError):
    """BCC is missing, is another package of that name, or refuses a program."""


def foreseen(problem: Exception) -> AerostatError:
    """Return an error of ours as it is, and of any other make one that says where it came from.

    For whoever works for several VMs, and must not end for what is wrong with one.
    """
    if isinstance(problem, AerostatError):
        return problem
    frames = traceback.extract_tb(problem.__traceback__)
    place = f", at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    error = AerostatError(
        "recording has failed in an unforeseen way",
        reason=f"{type(problem).__name__}: {problem}{place}",
        remedy=REPORT,
    )
    error.__cause__ = problem
    return error
