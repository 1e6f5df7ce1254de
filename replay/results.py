"""What a replay measured, kept as JSON with its own format version (docs/results-format.md)."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replay.environment import Environment
from replay.planning import Refused
from replay.rejections import Rejection
from tracer.trace.errors import AerostatError

RESULTS_FORMAT = "aerostat-results"
RESULTS_VERSION = "3.0"
MAX_RESULTS_BYTES = 256 << 20
"""No replay writes more; a file is refused before it is read."""
MAX_INT = 1 << 63
_REMEDY = "give a file that `aerostat replay TRACE -o FILE` wrote"


class ResultsError(AerostatError):
    """A results file cannot be read or written."""


@dataclass(frozen=True)
class TraceFacts:
    """Which trace was replayed. `name` is the bundle's name, without its directory.

    `rejected` is what the device model leaves out of its requests, or finds too much in them.
    """

    name: str
    session_id: str
    complete: bool
    lost_events: int
    requests: int
    pages: int
    memory_bytes: int
    rejected: tuple[Rejection, ...]

    @property
    def missing(self) -> str | None:
        """What it lacks, such as `misses 7 events`; None where it is whole."""
        told = [f"misses {self.lost_events:,} events"] if self.lost_events else []
        told += [] if self.complete else ["did not end as it should"]
        return " and ".join(told) or None


@dataclass(frozen=True)
class Settings:
    """How it was replayed.

    `thp` is never, madvise or always (`replay.residency.Thp`); `cpu` is the CPU of the executing
    thread, None where it ran free.
    """

    runs: int
    warmup: int
    seed: int
    backing: str
    thp: str
    siblings: int
    cpu: int | None
    per_operation: bool
    memory_limit_bytes: int | None
    residency: str
    requests_replayed: int
    resident_bytes: int
    cut_reason: str


@dataclass(frozen=True)
class Fidelity:
    """How closely the traced VMM's own strategy, replayed, reproduces the trace.

    Operation counts are over the whole trace, even where memory was too small to replay it all.
    `ratio` is replayed over captured stage d; None where the two cannot be set side by side.
    """

    strategy: str
    captured_operations: int | None
    planned_operations: int
    exact: bool | None
    captured_discard_ns: int | None
    replayed_discard_ns: int | None
    ratio: float | None
    note: str


@dataclass(frozen=True)
class OperationTimes:
    """Times of single operations of one run; that run's total compares with no other's."""

    p50_ns: int
    p90_ns: int
    p99_ns: int
    max_ns: int


@dataclass(frozen=True)
class RingCounts:
    """What stage b did on the virtqueues.

    Args:
        kicks: Times that the driver notified the device.
        interrupts: Times that the device notified the driver.
        descriptors: That the device read; an indirect table's are among them.
        bytes: That the device read to know what the requests say: descriptors and content.
    """

    kicks: int
    interrupts: int
    descriptors: int
    bytes: int


@dataclass(frozen=True)
class Run:
    """One replay of the trace under one strategy in one fresh process.

    Args:
        order: Place of this run among all runs, warm-up runs included.
        send_ns: Stage b: every wire request sent over a virtqueue to a device, and answered.
        send_cpu_ns: CPU time of both threads.
        translate_ns: Stage c: the same requests decoded, every address looked up.
        discard_ns: Stage d: the plan's operations executed.
        floor_ns: The loop of stage d over the same operations without the system calls.
        calls: System calls made, those repeated because one stopped short included.
        failures: Operations that failed.
        huge_pages: 4 KiB pages that lay in huge pages when stage d began.
        gone_pages: Pages that read as zero because they were discarded.
        still_resident_pages: Of those, pages that still had memory behind them.
        lazy_pages: Pages that the kernel may take when it needs memory (MADV_FREE).
    """

    order: int
    send_ns: int
    send_cpu_ns: int
    ring: RingCounts
    translate_ns: int
    translate_cpu_ns: int
    discard_ns: int
    discard_cpu_ns: int
    floor_ns: int
    calls: int
    failures: int
    first_errno: int
    minor_faults: int
    populate_ns: int
    huge_pages: int
    resident_before_pages: int
    resident_after_pages: int
    gone_pages: int
    still_resident_pages: int
    lazy_pages: int
    per_operation: OperationTimes | None

    @property
    def freed_pages(self) -> int:
        """Resident pages before stage d less those after."""
        return self.resident_before_pages - self.resident_after_pages

    @property
    def total_ns(self) -> int:
        """Stages b, c and d."""
        return self.send_ns + self.translate_ns + self.discard_ns


@dataclass(frozen=True)
class StrategyResult:
    """All runs of one strategy.

    `operations` are ranges, `calls` the system calls that they share, `threads` those that make
    them; `projected_send_ns` is stage b at the trace's own pace.
    """

    name: str
    protocol: str
    operations: int
    calls: int
    threads: int
    bytes: int
    pages: int
    wire_requests: int
    wire_bytes: int
    translated_entries: int
    rejected_entries: int
    projected_send_ns: int | None
    runs: tuple[Run, ...]
    warmups: tuple[Run, ...]


@dataclass(frozen=True)
class Results:
    """A replay: one trace, one machine, several strategies, several runs of each.

    `refused` are the strategies that cannot work on this memory or this kernel, and why.
    """

    created_utc: str
    aerostat_version: str
    trace: TraceFacts
    settings: Settings
    environment: Environment
    warnings: tuple[str, ...]
    fidelity: Fidelity | None
    strategies: tuple[StrategyResult, ...]
    refused: tuple[Refused, ...]

    def to_json(self) -> dict[str, Any]:
        """One JSON document; field names are keys, units stand at the end of keys."""
        head = {"format": RESULTS_FORMAT, "version": RESULTS_VERSION}
        return head | dataclasses.asdict(self)

    def save(self, path: Path, *, force: bool = False) -> None:
        """Write the results to a file, whole or not at all.

        Args:
            path: The file; its directory must exist.
            force: Replace a file that is there already.

        Raises:
            ResultsError: The file exists, or cannot be written.
        """
        refuse_overwrite(path, force)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("w") as file:
                json.dump(self.to_json(), file, indent=1)
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
    """Read results that `Results.save` wrote, here or elsewhere.

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
