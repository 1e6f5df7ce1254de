"""Bounds on what an ELF file says of itself, and one error for whatever else is wrong with it.

Any user's program may call itself a VMM and be looked at by root.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracer.errors import SymbolError

LONGEST_FUNCTION_BYTES = 256 << 10
"""The balloon's functions in QEMU have a few hundred."""
MOST_SECTIONS = 1 << 12
MOST_REFERENCES = 256
"""The variables and functions that are looked for are named a few times in all of QEMU."""
REMEDY = "record this VM from inside its guest"
_LONGEST_SECTION_BYTES = 64 << 20
"""Several times the code of a distribution's QEMU, whose code is its largest section."""


@contextlib.contextmanager
def odd_file(path: Path) -> Iterator[None]:
    """Make one error of whatever is wrong with a program file that is read in here.

    Args:
        path: The file, for the error.

    Raises:
        SymbolError: elftools, or we, could not make sense of it.
    """
    try:
        yield
    except SymbolError:
        raise
    except Exception as error:
        # elftools has errors of its own for some of what may be wrong, and Python's for the rest.
        raise SymbolError(
            f"cannot make sense of the program file {path}",
            reason=f"{type(error).__name__}: {error}",
            remedy=REMEDY,
        ) from error


def is_empty(section: Any) -> bool:
    """Say whether a section takes no room in the file, as most of a debug file's."""
    return bool(section["sh_type"] == "SHT_NOBITS")


def bounded(section: Any, path: Path) -> Any:
    """Let a section of elftools pass that lies in the file as it is, and is no larger than QEMU's.

    Raises:
        SymbolError: It is another.
    """
    size = int(section["sh_size"])
    if size <= _LONGEST_SECTION_BYTES and not section.compressed and not is_empty(section):
        return section
    kind = "compressed" if section.compressed else section["sh_type"]
    raise SymbolError(
        f"cannot read the section {section.name} of {path}",
        reason=f"it says that it has {size} bytes, {kind}",
        remedy=REMEDY,
    )
