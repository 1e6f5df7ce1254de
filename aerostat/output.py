"""What goes to stdout: one JSON document, or tables; and text made safe for a terminal."""

import json
import sys
from pathlib import Path
from typing import Any

from tracer.trace.errors import AerostatError


def printable(text: str) -> str:
    """Escape control characters: names and reasons may come from a guest or a trace file."""
    return "".join(
        char if char == "\n" or char.isprintable() else ascii(char)[1:-1] for char in text
    )


def emit_json(document: dict[str, Any]) -> None:
    """Write one JSON document to stdout; a NaN in it is a bug, not a value."""
    json.dump(document, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def refuse_existing(path: Path, *, force: bool) -> None:
    """Stop before work begins if its output would overwrite something.

    Args:
        path: Where the output will go.
        force: The user asked to replace it.

    Raises:
        AerostatError: The path exists and `force` is not set.
    """
    if not force and path.exists():
        raise AerostatError(
            f"will not overwrite {path}",
            reason="it already exists",
            remedy="give another name with -o, or --force to replace it",
        )
