"""Columns, codes and the version of the trace format: docs/trace-format.md is held against it.

Times are CLOCK_MONOTONIC nanoseconds of the side that saw the event. Null means not observed.
Enumerations are small integers (Arrow's file format refuses a changing dictionary).
"""

import hashlib
from enum import IntEnum

import pyarrow as pa

FORMAT_NAME = "aerostat-trace"
FORMAT_VERSION = "1.3"
FINGERPRINT = "0fcdf0ec32a5e19f"
"""`fingerprint()` of this version. A change of columns or codes needs both lines changed."""
PFN_SHIFT = 12
"""A balloon page is 4 KiB whatever the guest's page size (VIRTIO_BALLOON_PFN_SHIFT)."""
PAGE_BYTES = 1 << PFN_SHIFT


class Side(IntEnum):
    """Which kernel saw the event."""

    HOST = 0
    GUEST = 1


class Queue(IntEnum):
    """The balloon device's queues, numbered as `enum virtio_balloon_vq` of Linux."""

    INFLATE = 0
    DEFLATE = 1
    STATS = 2
    FREE_PAGE_HINT = 3
    REPORTING = 4


class Caller(IntEnum):
    """Why the guest's driver sent the request."""

    OTHER = 0
    TARGET = 1
    OOM = 2
    MIGRATION = 3
    REMOVE = 4
    REPORTING = 5


class Wire(IntEnum):
    """The form in which a request named its pages."""

    PFNS = 0
    RANGE_WORDS = 1
    SCATTERLIST = 2


class Call(IntEnum):
    """System call that gave memory back, or asked for it."""

    MADVISE = 0
    FALLOCATE = 1
    PROCESS_MADVISE = 2
    MMAP = 3


class Mark(IntEnum):
    """What a row of the marks table says."""

    ATTACH = 0
    DETACH = 1
    END = 2
    LOSS = 3
    TARGET = 4
    OUT_OF_PUFF = 5
    OOM_DEFLATE = 6
    MIGRATION = 7
    VM_EXIT = 8
    RUN_STATE = 9
    SUSPEND = 10
    CLOCK_STEP = 11
    QUOTA = 12
    TRIGGER = 13
    ACTUAL = 14


def _field(name: str, kind: pa.DataType, unit: str, *, null: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable=null, metadata={"unit": unit})


def _runs(pfn: str, kind: pa.DataType) -> pa.DataType:
    """Lists of two numbers, neither of them ever null: what tells a PFN, and pages."""
    items = [pa.field(pfn, kind, nullable=False), pa.field("pages", pa.int32(), nullable=False)]
    return pa.list_(pa.field("item", pa.struct(items), nullable=False))


RUNS = _runs("pfn", pa.uint64())
"""Pages in wire order. A run of PFNs that rise by one has positive pages; a run that falls by one
starts at `pfn` and has negative pages. A scatterlist entry is one item, never merged. So the exact
content of the request can be rebuilt from the runs and the wire form."""

REQUESTS = pa.schema(
    [
        _field("side", pa.uint8(), "Side", null=False),
        _field("seq", pa.uint64(), "count", null=False),
        _field("queue", pa.uint8(), "Queue", null=False),
        _field("wire", pa.uint8(), "Wire", null=False),
        _field("tid", pa.int32(), "thread id"),
        _field("pages", pa.uint32(), "4 KiB pages", null=False),
        _field("runs", RUNS, "PFN, 4 KiB pages"),
        _field("truncated_pages", pa.uint32(), "4 KiB pages"),
        _field("rejected_pages", pa.uint32(), "4 KiB pages"),
        _field("hint_id", pa.uint32(), "command id"),
        # guest side
        _field("caller", pa.uint8(), "Caller"),
        _field("begin_ns", pa.int64(), "ns"),
        _field("send_ns", pa.int64(), "ns"),
        _field("kick_ns", pa.int64(), "ns"),
        _field("ack_ns", pa.int64(), "ns"),
        _field("wake_ns", pa.int64(), "ns"),
        _field("free_ns", pa.int64(), "ns"),
        _field("end_ns", pa.int64(), "ns"),
        _field("puff_ns", pa.int64(), "ns"),
        # host side
        _field("pop_ns", pa.int64(), "ns"),
        _field("push_ns", pa.int64(), "ns"),
        _field("discard_calls", pa.uint32(), "count"),
        _field("discard_ns", pa.int64(), "ns"),
        _field("discard_bytes", pa.uint64(), "bytes"),
    ]
)

CALLS = pa.schema(
    [
        _field("side", pa.uint8(), "Side", null=False),
        _field("request_seq", pa.uint64(), "count"),
        _field("tid", pa.int32(), "thread id", null=False),
        _field("call", pa.uint8(), "Call", null=False),
        _field("advice", pa.int32(), "madvise value, or fallocate mode", null=False),
        _field("hva", pa.uint64(), "bytes"),
        _field("gpa", pa.uint64(), "bytes"),
        _field("length_bytes", pa.uint64(), "bytes", null=False),
        _field("step", pa.int8(), "+1 rising, -1 falling, 0 a single call", null=False),
        _field("count", pa.uint32(), "count", null=False),
        _field("first_ns", pa.int64(), "ns", null=False),
        _field("last_ns", pa.int64(), "ns", null=False),
        _field("total_ns", pa.int64(), "ns", null=False),
        _field("worst_ns", pa.int64(), "ns", null=False),
        _field("errno", pa.int32(), "errno", null=False),
        _field("pieces", pa.uint32(), "count"),
    ]
)

SAMPLES = pa.schema(
    [
        _field("side", pa.uint8(), "Side", null=False),
        _field("ts_ns", pa.int64(), "ns", null=False),
        _field("balloon_actual_bytes", pa.uint64(), "bytes"),
        _field("balloon_target_bytes", pa.uint64(), "bytes"),
        _field("rss_bytes", pa.uint64(), "bytes"),
        _field("pss_bytes", pa.uint64(), "bytes"),
        _field("anon_huge_bytes", pa.uint64(), "bytes"),
        _field("minor_faults", pa.uint64(), "count"),
        _field("mem_available_bytes", pa.uint64(), "bytes"),
        _field("balloon_inflate_pages", pa.uint64(), "4 KiB pages"),
        _field("balloon_deflate_pages", pa.uint64(), "4 KiB pages"),
        _field("psi_some_us", pa.uint64(), "us"),
        _field("psi_full_us", pa.uint64(), "us"),
        _field("balloon_migrate_pages", pa.uint64(), "4 KiB pages"),
        _field("major_faults", pa.uint64(), "count"),
        _field("alloc_stalls", pa.uint64(), "count"),
    ]
)

MARKS = pa.schema(
    [
        _field("side", pa.uint8(), "Side", null=False),
        _field("ts_ns", pa.int64(), "ns", null=False),
        _field("since_ns", pa.int64(), "ns"),
        _field("mark", pa.uint8(), "Mark", null=False),
        _field("value", pa.int64(), "count, bytes or ns: see Mark"),
        _field("text", pa.string(), "text"),
        _field("cause", pa.string(), "text"),
    ]
)

RESIDENCY = pa.schema(
    [
        _field("ts_ns", pa.int64(), "ns", null=False),
        _field("pfn", pa.uint64(), "PFN", null=False),
        _field("pages", pa.uint64(), "4 KiB pages", null=False),
        _field("resident", pa.bool_(), "bool", null=False),
        _field("huge", pa.bool_(), "bool"),
    ]
)

TABLES: dict[str, pa.Schema] = {
    "requests": REQUESTS,
    "calls": CALLS,
    "samples": SAMPLES,
    "marks": MARKS,
    "residency": RESIDENCY,
}

DELTA_RUNS = _runs("pfn_delta", pa.int64())
_DELTA_UNITS = {
    "runs": "PFN less that of the run before, 4 KiB pages",
    "request_seq": "count, less the one known before",
    "hva": "bytes, less the one known before",
    "gpa": "bytes, less the one known before",
    "first_ns": "ns, less last_ns of the row before",
    "last_ns": "ns, less first_ns",
    "total_ns": "ns, by which last_ns less first_ns is more",
    "worst_ns": "ns, by which total_ns is more",
}
_SPLIT = ("first_ns", "last_ns")
"""Differences that nearly always fit 16 bits, which lz4 cannot shorten: the rest is apart."""


def _as_difference(column: pa.Field) -> list[pa.Field]:
    unit = _DELTA_UNITS.get(column.name)
    if unit is None:
        return [column]
    if pa.types.is_list(column.type):
        return [pa.field(column.name, DELTA_RUNS, metadata={"unit": unit})]
    name = f"{column.name}_delta"
    if column.name in _SPLIT:
        return [
            _field(f"{name}_low", pa.uint16(), unit, null=False),
            _field(f"{name}_high", pa.uint64(), f"2^16 {unit}", null=False),
        ]
    return [_field(name, pa.int64(), unit, null=column.nullable)]


DELTA_TABLES: dict[str, pa.Schema] = {
    table: pa.schema([stored for column in TABLES[table] for stored in _as_difference(column)])
    for table in ("requests", "calls")
}
"""The second form that these tables may have on the disk: tracer/trace/delta.py."""

CODES: tuple[type[IntEnum], ...] = (Side, Queue, Caller, Wire, Call, Mark)


def fingerprint() -> str:
    """Digest of every column, type, unit and code: what a version number stands for.

    Returns:
        The first 16 hex digits of a SHA-256.
    """
    lines = [
        f"{table}.{column.name} {column.type} {column.nullable} {column.metadata[b'unit'].decode()}"
        for table, schema in TABLES.items()
        for column in schema
    ]
    lines += [
        f"{table}, delta: {column.name} {column.type} {column.metadata[b'unit'].decode()}"
        for table, schema in DELTA_TABLES.items()
        for column in schema
    ]
    lines += [f"{kind.__name__}.{code.name} {code.value}" for kind in CODES for code in kind]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
