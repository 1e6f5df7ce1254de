"""The manifest of a trace: what was recorded, where, by which probes, and what is missing.

Every key is described in docs/trace-format.md. None means not observed.
"""

import json
import re
import time
import uuid
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from tracer.trace.errors import (
    ForeignTraceError,
    NewerTraceError,
    OlderTraceError,
    TornTraceError,
    salvage_remedy,
)
from tracer.trace.json_fields import (
    MAX_BYTES,
    flag,
    many,
    mapping,
    one_of,
    optional,
    reads,
    record,
    refuse,
    text,
    time_ns,
    to_jsonable,
)
from tracer.trace.manifest_parts import (
    SIDES,
    Alignment,
    LedgerLine,
    Loss,
    ProbeRecord,
    Region,
    Segment,
    SideInfo,
    VmInfo,
)
from tracer.trace.schema import FORMAT_NAME, FORMAT_VERSION
from tracer.trace.shared_hits import without_shared_hits

__all__ = [
    "Alignment",
    "LedgerLine",
    "Loss",
    "Manifest",
    "ProbeRecord",
    "Region",
    "Segment",
    "SideInfo",
    "VmInfo",
]

MAX_MANIFEST_BYTES = 16 << 20
DISK_FULL = "disk-full"
"""End reason of a recording that found no room for more."""
MAX_DEPTH = 32
"""Objects and lists within each other; aerostat's own manifests need 5."""
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})", re.ASCII)


@dataclass(frozen=True)
class Manifest:
    """Everything about a trace that is not a row of a table.

    Attributes:
        complete: The writer closed the trace in order. Losses are apart: see `losses`.
        end_reason: Why the recording ended, or why it is not complete.
        sides: By name, host and guest, those that were recorded.
        ledger: The closing account; None if it was not made.
        alignment: The clock fit of the two sides; None if it was not made.
        scenario: What the lab did to the VM.
        labels: The user's own words.
        tool: Name and version of the recorder.
        created_realtime_ns: CLOCK_REALTIME when the bundle was made; None if salvage cannot tell.
    """

    sides: dict[str, SideInfo] = field(
        default_factory=dict, metadata=reads(mapping(record(SideInfo), keys=one_of(*SIDES)))
    )
    vm: VmInfo | None = field(default=None, metadata=reads(optional(record(VmInfo))))
    regions: tuple[Region, ...] = field(default=(), metadata=reads(many(record(Region), 4096)))
    losses: tuple[Loss, ...] = field(default=(), metadata=reads(many(record(Loss))))
    segments: tuple[Segment, ...] = field(default=(), metadata=reads(many(record(Segment))))
    ledger: tuple[LedgerLine, ...] | None = field(
        default=None, metadata=reads(optional(many(record(LedgerLine), 4096)))
    )
    alignment: Alignment | None = field(default=None, metadata=reads(optional(record(Alignment))))
    complete: bool = field(default=False, metadata=reads(flag))
    end_reason: str = field(default="", metadata=reads(text))
    scenario: str | None = field(default=None, metadata=reads(optional(text)))
    labels: dict[str, str] = field(default_factory=dict, metadata=reads(mapping(text)))
    tool: str = field(default="aerostat", metadata=reads(text))
    session_id: str = field(default_factory=lambda: str(uuid.uuid4()), metadata=reads(text))
    created_realtime_ns: int | None = field(
        default_factory=time.time_ns, metadata=reads(optional(time_ns))
    )
    format: str = field(default=FORMAT_NAME, metadata=reads(text))
    format_version: str = field(default=FORMAT_VERSION, metadata=reads(text))
    extra: dict[str, Any] = field(default_factory=dict, kw_only=True)

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor number of `format_version`."""
        return _version(self.format_version)

    @property
    def is_newer_minor(self) -> bool:
        """Whether a newer aerostat of the same major format wrote it, perhaps with more columns."""
        return self.version > _version(FORMAT_VERSION)

    @property
    def is_cut_short(self) -> bool:
        """Whether a full disk ended the recording, which nobody chose: what came after is missing.

        A budget with the policy to stop, a duration and the end of a VM were chosen.
        """
        return self.end_reason == DISK_FULL

    def to_json(self) -> str:
        """Return the text of manifest.json, the same for the same content."""
        head = {"format": self.format, "format_version": self.format_version}
        return json.dumps({**head, **to_jsonable(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, raw: str | bytes) -> "Manifest":
        """Read and check the text of a manifest.json.

        Args:
            raw: UTF-8 bytes or text, from anybody.

        Returns:
            The manifest; keys it does not know are in `extra` and written back by `to_json`. Hits
            that an older version counted for several probes together are None.

        Raises:
            TornTraceError: It is not whole JSON.
            ForeignTraceError: It is not a manifest of aerostat.
            OlderTraceError: Of an older major format.
            NewerTraceError: Of a newer major format.
            TraceError: A value is of the wrong type, out of range or contradicts another.
        """
        document = _parse(raw)
        _check_version(document)
        manifest: Manifest = record(cls)(document, "manifest.json")
        _check_regions(manifest.regions)
        _check_segments(manifest.segments)
        return replace(manifest, sides=without_shared_hits(manifest.version, manifest.sides))


def _parse(raw: str | bytes) -> dict[str, Any]:
    if len(raw) > MAX_MANIFEST_BYTES:
        raise refuse("manifest.json", f"is larger than {MAX_MANIFEST_BYTES >> 20} MiB")
    try:
        document = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as problem:
        raise TornTraceError(
            "manifest.json is damaged",
            reason=str(problem)[:200],
            remedy=salvage_remedy("TORN.balloon"),
        ) from problem
    if not isinstance(document, dict) or document.get("format") != FORMAT_NAME:
        raise ForeignTraceError(
            "manifest.json is not of an aerostat trace",
            reason=f'it does not say "format": "{FORMAT_NAME}"',
            remedy="give the path of a NAME.balloon directory that aerostat recorded",
        )
    _check_depth(document)
    return document


def _check_depth(document: dict[str, Any]) -> None:
    """Refuse nesting so deep that writing the manifest back would exhaust the stack."""
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        holders = [item.values() if isinstance(item, dict) else item for item in level]
        level = [value for holder in holders for value in holder if isinstance(value, dict | list)]
        if not level:
            return
    raise refuse("manifest.json", f"is nested more than {MAX_DEPTH} deep")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _version(value: str) -> tuple[int, int]:
    match = _VERSION.fullmatch(value)
    if match is None:
        raise refuse("manifest.json.format_version", "is not MAJOR.MINOR")
    return int(match[1]), int(match[2])


def _check_version(document: dict[str, Any]) -> None:
    """Refuse another major version; a newer minor one only adds."""
    stated = text(document.get("format_version"), "manifest.json.format_version")
    major, own = _version(stated)[0], _version(FORMAT_VERSION)[0]
    if major > own:
        raise NewerTraceError(
            f"the trace has format {stated}, newer than this aerostat can read",
            reason=f"this aerostat reads format {own}.x",
            remedy="upgrade aerostat",
        )
    if major < own:
        raise OlderTraceError(
            f"the trace has format {stated}, older than this aerostat can read",
            reason=f"this aerostat reads format {own}.x",
            remedy="read it with an older aerostat; docs/trace-format.md has the history",
        )


def _check_regions(regions: tuple[Region, ...]) -> None:
    """Refuse regions past the end of the address space, and regions that overlap."""
    for index, region in enumerate(regions):
        for start in (region.gpa, region.hva or 0):
            if start + region.length_bytes > MAX_BYTES:
                raise refuse(f"manifest.json.regions[{index}]", "ends beyond 16 EiB")
    by_gpa = sorted(regions, key=lambda region: region.gpa)
    for low, high in pairwise(by_gpa):
        if low.gpa + low.length_bytes > high.gpa:
            raise refuse("manifest.json.regions", f"overlap at gpa {high.gpa:#x}")


def _check_segments(segments: tuple[Segment, ...]) -> None:
    """Refuse a segment listed twice, and one whose path contradicts its table or side."""
    seen: set[str] = set()
    for index, segment in enumerate(segments):
        place = f"manifest.json.segments[{index}]"
        if not segment.file.startswith(f"{segment.table}/{segment.side}-"):
            raise refuse(place, "names a file of another table or side")
        if segment.file in seen:
            raise refuse(place, "lists a file a second time")
        seen.add(segment.file)
