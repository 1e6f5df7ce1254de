"""What was found wrong with a trace, without stopping at the first thing."""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """Whether numbers from the trace can still be trusted."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong with a trace.

    Attributes:
        code: A stable short name, listed in docs/trace-format.md.
        severity: An error means that numbers made from the trace may be wrong.
        text: One sentence for the user, with the place and the figures.
    """

    code: str
    severity: Severity
    text: str


def error(code: str, text: str) -> Finding:
    """Make a finding that puts the trace's numbers in doubt."""
    return Finding(code, Severity.ERROR, text)


def warning(code: str, text: str) -> Finding:
    """Make a finding that the user should know of."""
    return Finding(code, Severity.WARNING, text)
