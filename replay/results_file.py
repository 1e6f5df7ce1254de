"""Results on disk: written whole or not at all, read with suspicion."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from pathlib import Path
from typing import Any

from replay.results import RESULTS_FORMAT, RESULTS_VERSION, Results
from tracer.trace.errors import AerostatError

MAX_RESULTS_BYTES = 256 << 20
"""No replay writes more; a file is refused before it is read."""
MAX_INT = 1 << 63
_REMEDY = "give a file that `aerostat replay TRACE -o FILE` wrote"


class ResultsError(AerostatError):
    """A results file cannot be read or written."""


def save_results(results: Results, path: Path, *, force: bool = False) -> None:
    """Write results to a file, whole or not at all.

    Args:
        results: Of a replay.
        path: The file; its directory must exist.
        force: Replace a file that is there already.

    Raises:
        ResultsError: The file exists, or cannot be written.
    """
    refuse_overwrite(path, force)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w") as file:
            json.dump(results.to_json(), file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        # A link fails where the name has come to exist meanwhile; a rename would replace it.
        if force:
            part.replace(path)
        else:
            path.hardlink_to(part)
    except OSError as error:
        raise ResultsError(
            f"cannot write results to {path}",
            reason=str(error),
            remedy="free space there, or give another name with -o",
        ) from error
    finally:
        part.unlink(missing_ok=True)


def refuse_overwrite(path: Path, force: bool) -> None:
    """Raise ResultsError where results cannot go: before the work that makes them."""
    if path.is_dir():
        raise ResultsError(
            f"{path} is a directory",
            reason="results are one file, and a directory is never replaced",
            remedy="give the name of a file with -o",
        )
    if path.exists() and not force:
        raise ResultsError(
            f"{path} exists already",
            reason="nothing is overwritten unasked",
            remedy="choose another name, or --force to replace it",
        )
    if not path.parent.is_dir():
        raise ResultsError(
            f"cannot write results to {path}",
            reason=f"there is no directory {path.parent}",
            remedy="make the directory first, or give another name with -o",
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
