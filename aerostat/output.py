"""What goes to stdout: one JSON document, or tables; and text made safe for a terminal."""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from tracer.trace.errors import AerostatError


def printable(text: str) -> str:
    """Escape control characters: names and reasons may come from a guest or a trace file."""
    return "".join(
        char if char == "\n" or char.isprintable() else ascii(char)[1:-1] for char in text
    )


def warn(text: str) -> None:
    """Say on stderr what makes the result on stdout less sure."""
    print(f"aerostat: warning: {printable(text)}", file=sys.stderr)


def emit_json(document: dict[str, Any]) -> None:
    """Write one JSON document to stdout; a NaN in it is a bug, not a value."""
    text = json.dumps(document, indent=2, allow_nan=False)  # whole before any of it is written
    sys.stdout.write(f"{text}\n")


def emit_text(text: str) -> None:
    """Write one finished text to stdout, as it is: no folding, no colour."""
    sys.stdout.write(text)


def refuse_existing(path: Path, *, force: bool) -> None:
    """Stop before work begins if its output would overwrite something.

    Args:
        path: Where the output will go.
        force: The user asked to replace it.

    Raises:
        AerostatError: The path exists and `force` is not set.
    """
    if not force and os.path.lexists(path):
        raise AerostatError(
            f"will not overwrite {path}",
            reason="it already exists",
            remedy="give another name with -o, or --force to replace it",
        )


def plain(value: Any) -> Any:
    """Turn what the libraries return into what JSON can say.

    Dataclasses become objects with their fields' names, enumerations their name in lower case.

    Args:
        value: Dataclass, enumeration, path, numpy scalar or array, container or plain value.

    Returns:
        The same out of dict, list, str, int, float, bool and None.
    """
    if isinstance(value, Enum):
        return value.name.lower()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    # numpy, without importing it: recording must not pay for it.
    return value.tolist() if hasattr(value, "tolist") else value
