"""The parts of a manifest: sides, probes, memory, losses, segments, clock fit, ledger.

Every key is described in docs/trace-format.md. None means not observed.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from tracer.trace.json_fields import (
    MAX_BYTES,
    amount,
    count,
    flag,
    many,
    mapping,
    number,
    one_of,
    optional,
    reads,
    record,
    refuse,
    text,
    time_ns,
    whole,
)
from tracer.trace.schema import TABLES

SIDES = ("host", "guest")
SEGMENT_FILE = re.compile(rf"({'|'.join(TABLES)})/({'|'.join(SIDES)})-(\d{{5,9}})\.arrow", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}")

_side = one_of(*SIDES)
_page_bytes = whole(1, 1 << 40)
_signed = whole(-(1 << 63), (1 << 64) - 1)


def _segment_file(value: Any, place: str) -> str:
    """Read a segment's path: only the form the writer makes, so none leads out of the bundle."""
    if not isinstance(value, str) or not SEGMENT_FILE.fullmatch(value):
        raise refuse(place, "is not TABLE/SIDE-NUMBER.arrow")
    return value


def _sha256(value: Any, place: str) -> str:
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise refuse(place, "is not a SHA-256 in lower-case hex")
    return value


def _anchor(value: Any, place: str) -> tuple[int, int]:
    pair = many(time_ns, at_most=2)(value, place)
    if len(pair) != 2:
        raise refuse(place, "is not a pair [monotonic_ns, realtime_ns]")
    return pair[0], pair[1]


@dataclass(frozen=True)
class ProbeRecord:
    """One probe point: how it was reached and what it costs.

    Attributes:
        point: Logical point of the catalogue.
        way: How it was reached, such as fentry, kprobe, uprobe.
        target: Function, tracepoint or file and offset.
        status: attached, failed or skipped.
        reason: Why it did not attach.
        cost_ns: Measured cost of one hit.
        bystander_ns: What it adds to every system call of a process that is not traced.
        hits: How often it fired.
    """

    point: str = field(metadata=reads(text))
    way: str = field(metadata=reads(text))
    target: str = field(metadata=reads(text))
    status: str = field(metadata=reads(one_of("attached", "failed", "skipped")))
    reason: str = field(default="", metadata=reads(text))
    cost_ns: float | None = field(default=None, metadata=reads(optional(amount)))
    bystander_ns: float | None = field(default=None, metadata=reads(optional(amount)))
    hits: int | None = field(default=None, metadata=reads(optional(count)))
    extra: dict[str, Any] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class SideInfo:
    """One kernel's side of a session.

    Attributes:
        page_size_bytes: That kernel's base page.
        begin_ns: When recording began, by `clock`.
        end_ns: When it ended; None in a trace that was not closed.
        clock: The clock of this side's times.
        realtime_anchors: Pairs of the same instant by `clock` and by CLOCK_REALTIME, ns.
        cpu_model: The CPU's own name, as that kernel has it.
        detail: How much was recorded: requests, discards or calls.
        thp: The setting of transparent huge pages.
        counters: The kernel's and the device's own counts, before and after; ring drops.
    """

    page_size_bytes: int = field(metadata=reads(_page_bytes))
    begin_ns: int = field(metadata=reads(time_ns))
    end_ns: int | None = field(default=None, metadata=reads(optional(time_ns)))
    kernel_release: str | None = field(default=None, metadata=reads(optional(text)))
    arch: str | None = field(default=None, metadata=reads(optional(text)))
    cpus: int | None = field(default=None, metadata=reads(optional(whole(1, 1 << 20))))
    cpu_model: str | None = field(default=None, metadata=reads(optional(text)))
    boot_id: str | None = field(default=None, metadata=reads(optional(text)))
    thp: str | None = field(default=None, metadata=reads(optional(text)))
    clock: str = field(default="CLOCK_MONOTONIC", metadata=reads(text))
    realtime_anchors: tuple[tuple[int, int], ...] = field(default=(), metadata=reads(many(_anchor)))
    detail: str | None = field(default=None, metadata=reads(optional(text)))
    probes: tuple[ProbeRecord, ...] = field(default=(), metadata=reads(many(record(ProbeRecord))))
    counters: dict[str, int] = field(default_factory=dict, metadata=reads(mapping(_signed)))
    extra: dict[str, Any] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class VmInfo:
    """The virtual machine and the process that runs it, as the host saw them.

    Attributes:
        build_id: GNU build id of `exe`, in hex.
        accel: kvm, tcg or another accelerator.
        manager: Who started the VMM: libvirt, proxmox, openstack, kubevirt or another.
        features: Negotiated virtio-balloon feature bits by name; None if not observed.
    """

    name: str | None = field(default=None, metadata=reads(optional(text)))
    uuid: str | None = field(default=None, metadata=reads(optional(text)))
    pid: int | None = field(default=None, metadata=reads(optional(whole(1, 1 << 31))))
    exe: str | None = field(default=None, metadata=reads(optional(text)))
    build_id: str | None = field(default=None, metadata=reads(optional(text)))
    vmm: str | None = field(default=None, metadata=reads(optional(text)))
    vmm_version: str | None = field(default=None, metadata=reads(optional(text)))
    memory_bytes: int | None = field(default=None, metadata=reads(optional(whole(0, MAX_BYTES))))
    vcpus: int | None = field(default=None, metadata=reads(optional(whole(0, 1 << 20))))
    accel: str | None = field(default=None, metadata=reads(optional(text)))
    manager: str | None = field(default=None, metadata=reads(optional(text)))
    features: tuple[str, ...] | None = field(
        default=None, metadata=reads(optional(many(text, at_most=256)))
    )
    extra: dict[str, Any] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class Region:
    """One contiguous part of guest memory.

    Attributes:
        gpa: Guest physical address of its first byte.
        hva: Address of the same byte in the VMM; None if not observed.
        backing: anon, memfd, shmem, hugetlb or file-private.
        page_size_bytes: Page size of the backing.
        file_offset_bytes: Offset of the first byte in the file behind it; None if there is none.
    """

    name: str = field(metadata=reads(text))
    gpa: int = field(metadata=reads(count))
    hva: int | None = field(metadata=reads(optional(count)))
    length_bytes: int = field(metadata=reads(whole(1, MAX_BYTES)))
    backing: str = field(metadata=reads(text))
    page_size_bytes: int = field(metadata=reads(_page_bytes))
    file_offset_bytes: int | None = field(default=None, metadata=reads(optional(count)))
    extra: dict[str, Any] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class Loss:
    """Events known to be missing.

    Attributes:
        side: host or guest.
        stream: What they were events of: requests, calls, ...
        count: How many.
        cause: ring, quota, disk, budget, partial or stranger: docs/trace-format.md.
        since_ns: Begin of the span in which they were lost, by that side's clock.
        until_ns: End of that span.
    """

    side: str = field(metadata=reads(_side))
    stream: str = field(metadata=reads(text))
    count: int = field(metadata=reads(whole(1, (1 << 63) - 1)))
    since_ns: int | None = field(metadata=reads(optional(time_ns)))
    until_ns: int = field(metadata=reads(time_ns))
    cause: str | None = field(default=None, metadata=reads(optional(text)))
    extra: dict[str, Any] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class Segment:
    """One closed file of one table and side; `bytes` and `sha256` are of the file."""

    table: str = field(metadata=reads(one_of(*TABLES)))
    side: str = field(metadata=reads(_side))
    file: str = field(metadata=reads(_segment_file))
    rows: int = field(metadata=reads(whole(0, (1 << 63) - 1)))
    bytes: int = field(metadata=reads(whole(0, (1 << 63) - 1)))
    sha256: str = field(metadata=reads(_sha256))
    extra: dict[str, Any] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class Alignment:
    """The guest's clock in the host's: host = guest + offset + drift * (guest - origin).

    Attributes:
        offset_ns: Host minus guest at `origin_ns`.
        drift: Growth of that difference per guest nanosecond.
        origin_ns: Guest time at which `offset_ns` holds.
        begin_ns: First guest time that the fit covers.
        end_ns: Last guest time that the fit covers.
        bound_ns: Greatest possible error of the line.
        pairs: Pairs of requests that bound the line.
        violations: Pairs that the line cannot satisfy.
        consistent: Whether one line satisfies every pair.
    """

    offset_ns: int = field(metadata=reads(whole(-(1 << 63), (1 << 63) - 1)))
    drift: float = field(metadata=reads(number))
    origin_ns: int = field(metadata=reads(time_ns))
    begin_ns: int = field(metadata=reads(time_ns))
    end_ns: int = field(metadata=reads(time_ns))
    bound_ns: int = field(metadata=reads(time_ns))
    pairs: int = field(metadata=reads(count))
    violations: int = field(metadata=reads(count))
    consistent: bool = field(metadata=reads(flag))
    extra: dict[str, Any] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class LedgerLine:
    """One count of the ledger; `pages` is 4 KiB pages unless `source` says otherwise."""

    name: str = field(metadata=reads(text))
    pages: int | None = field(metadata=reads(optional(whole(-(1 << 80), 1 << 80))))
    source: str = field(metadata=reads(text))
    status: str = field(metadata=reads(text))
    extra: dict[str, Any] = field(default_factory=dict, kw_only=True)
