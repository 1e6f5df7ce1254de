"""Errors of capture: what could not be found, attached or recorded."""

from tracer.trace.errors import AerostatError, MissingPrivilegeError


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
