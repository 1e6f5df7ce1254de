"""The three standard streams, whatever the caller left of them."""

import os
import sys
from io import BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from typing import Any, Final

STDOUT: Final = "stdout"
"""The file name of errors that came of writing there; the system call gives none."""


class _Stdout(FileIO):
    """File descriptor 1, whose errors say that they are its own."""

    def write(self, data: Any, /) -> int:
        """Write as a file does."""
        try:
            return super().write(data)
        except OSError as error:
            error.filename = STDOUT
            raise


def complete_streams() -> None:
    """Open what the caller closed onto nothing, and let stdout write what its encoding lacks.

    Python has no `sys.stdout` at all under `>&-`, and the next file to be opened would get its
    number. What a stdout that is not UTF-8 cannot say becomes `?`: better than no result.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the lowest number that is free is this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # for the life of the process
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, TextIOWrapper):
        sys.stdout = _named(sys.stdout)


def _named(stdout: TextIOWrapper) -> TextIOWrapper:
    raw: Any = _Stdout(stdout.fileno(), "w", closefd=False)
    return TextIOWrapper(
        raw if stdout.write_through else BufferedWriter(raw),
        encoding=stdout.encoding,
        errors="replace",
        line_buffering=stdout.line_buffering,
        write_through=stdout.write_through,
    )


def let_go_of_stdout() -> None:
    """Keep Python from complaining, when it flushes at exit, about a stdout that takes nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
