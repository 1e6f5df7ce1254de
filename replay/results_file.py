"""Results on disk: written whole or not at all, read with suspicion."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import secrets
import stat
import types
import typing
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from replay.results import RESULTS_FORMAT, RESULTS_VERSION, Results
from tracer.trace.errors import AerostatError

MAX_RESULTS_BYTES = 256 << 20
"""No replay writes more; a file is refused before it is read."""
MAX_INT = 1 << 63
_REMEDY = "give a file that `aerostat replay TRACE -o FILE` wrote"


class ResultsError(AerostatError):
    """A results file cannot be read or written."""


class UnsavedError(ResultsError):
    """Results are there and could not be written; `results` holds them, for they took long."""

    def __init__(self, results: Results, what: str, *, reason: str, remedy: str) -> None:
        super().__init__(what, reason=reason, remedy=remedy)
        self.results = results


class ResultsFile(AbstractContextManager["ResultsFile"]):
    """A file for results, begun before the work that makes them; whole or not there at the end.

    Args:
        path: The file; its directory must exist.
        force: Replace a file that is there already.

    Raises:
        ResultsError: The file exists, or cannot be written here.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        refuse_overwrite(path, force)
        self._path, self._force = path, force
        self._part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            self._file = self._part.open("x")
        except OSError as error:
            raise ResultsError(
                f"cannot write results to {path}",
                reason=error.strerror or str(error),
                remedy="give a name in a directory that can be written with -o",
            ) from error

    def save(self, results: Results) -> None:
        """Write the results, and give the file its name.

        Raises:
            UnsavedError: The disk is full, say, or another has made a file of that name meanwhile.
        """
        try:
            json.dump(results.to_json(), self._file, indent=1)
            self._file.write("\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            refuse_overwrite(self._path, self._force)
            if self._force:
                self._part.replace(self._path)
            else:
                _take_name(self._part, self._path)
        except (OSError, ResultsError) as error:
            told = error.what if isinstance(error, ResultsError) else error.strerror
            raise UnsavedError(
                results,
                f"cannot write results to {self._path}",
                reason=told or str(error),
                remedy="free space there, or give another name with -o",
            ) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # What went wrong before is told already, or else the file has its name.
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._part.unlink(missing_ok=True)


def _take_name(part: Path, path: Path) -> None:
    """Give a file a name that nobody has. A rename would replace what came to have it meanwhile."""
    try:
        path.hardlink_to(part)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: the name is taken first
        path.open("x").close()
        part.replace(path)


def save_results(results: Results, path: Path, *, force: bool = False) -> None:
    """Write results to a file, whole or not at all.

    Args:
        results: Of a replay.
        path: The file; its directory must exist.
        force: Replace a file that is there already.

    Raises:
        ResultsError: The file exists, or cannot be written.
    """
    with ResultsFile(path, force=force) as file:
        file.save(results)


def refuse_overwrite(path: Path, force: bool) -> None:
    """Raise ResultsError where results cannot go: before the work that makes them.

    A link counts as what it is: a rename replaces it, and leaves alone what it leads to.
    """
    if not path.parent.is_dir():
        raise ResultsError(
            f"cannot write results to {path}",
            reason=f"there is no directory {path.parent}",
            remedy="make the directory first, or give another name with -o",
        )
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ResultsError(
            f"cannot write results to {path}",
            reason=error.strerror or str(error),
            remedy="give another name with -o",
        ) from error
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
        raise ResultsError(
            f"{path} is {kind}",
            reason="results are one file, and only a regular file is ever replaced",
            remedy="give the name of a file with -o",
        )
    if not force:
        raise ResultsError(
            f"{path} exists already",
            reason="nothing is overwritten unasked",
            remedy="choose another name, or --force to replace it",
        )


def load_results(path: Path | str) -> Results:
    """Read results that `save_results` wrote, here or elsewhere.

    Raises:
        ResultsError: The file is no results file, of a newer major version, or has a value of the
            wrong kind; the message names the key.
    """
    path = Path(path)
    document = _read(path)
    try:
        _check_version(document)
        decoded = _decode(Results, document, "results")
    except ValueError as error:
        raise ResultsError(
            f"{path} is not a results file that can be used",
            reason=str(error),
            remedy="write a new one with `aerostat replay TRACE -o FILE`",
        ) from error
    assert isinstance(decoded, Results)
    return decoded


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_RESULTS_BYTES:
            raise ResultsError(
                f"{path} is too large for a results file",
                reason=f"more than {MAX_RESULTS_BYTES >> 20} MiB",
                remedy=_REMEDY,
            )
        return json.loads(path.read_text())
    except OSError as error:
        raise ResultsError(f"cannot read {path}", reason=str(error), remedy=_REMEDY) from error
    except (ValueError, RecursionError) as error:
        raise ResultsError(
            f"{path} is not a results file", reason=f"not JSON: {error}", remedy=_REMEDY
        ) from error


def _check_version(document: Any) -> None:
    if not isinstance(document, dict) or document.get("format") != RESULTS_FORMAT:
        raise ValueError(f"its format is not {RESULTS_FORMAT!r}")
    version = document.get("version")
    major = version.split(".")[0] if isinstance(version, str) else ""
    if major != RESULTS_VERSION.split(".", maxsplit=1)[0]:
        raise ValueError(f"its version is {version!r}; this aerostat reads {RESULTS_VERSION}")


def _decode(kind: Any, value: Any, key: str) -> Any:
    """Turn JSON into the dataclass or value `kind` says; ValueError names the key that is wrong."""
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        inner = [each for each in typing.get_args(kind) if each is not type(None)]
        return None if value is None else _decode(inner[0], value, key)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{key} is not a list")
        item = typing.get_args(kind)[0]
        return tuple(_decode(item, each, f"{key}[{i}]") for i, each in enumerate(value))
    if dataclasses.is_dataclass(kind):
        return _decode_fields(kind, value, key)
    return _decode_scalar(kind, value, key)


def _decode_fields(kind: Any, value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{key} is not an object")
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        if field.name not in value:
            if field.default is not dataclasses.MISSING:  # added by a minor version
                continue
            raise ValueError(f"{key}.{field.name} is missing")
        found[field.name] = _decode(hints[field.name], value[field.name], f"{key}.{field.name}")
    return kind(**found)


def _decode_scalar(kind: Any, value: Any, key: str) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{key} is not a finite number")
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{key} is not of type {kind.__name__}")
    if kind is int and not 0 <= value < MAX_INT:
        raise ValueError(f"{key} is negative or too large")
    return value
