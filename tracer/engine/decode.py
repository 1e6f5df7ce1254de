"""Turns raw records of the rings into Arrow batches of the trace's tables, whole arrays at a time.

The layouts are those of bpf/records.h (tests/unit/test_wire_layout.py compares them). A time of 0
means "not observed" in a record and becomes null in the table.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tracer.engine.ring import Records
from tracer.trace.runs import encode_runs
from tracer.trace.schema import PFN_SHIFT, REQUESTS, RUNS, Queue, Side, Wire

PFNS = 256
ENTRIES = 64
CHUNKS = 4
UNKNOWN_QUEUE = 0xFFFF
NO_REQUEST = (1 << 64) - 1
FLAG_HINT_ID = 4
"""The one flag of a request record that tells of nothing missing (enum aerostat_flag)."""
HANDLER_QUEUES = (Queue.INFLATE, Queue.REPORTING, Queue.STATS, Queue.FREE_PAGE_HINT)
"""Queue that each handler of enum aerostat_handler serves; the first serves inflate and deflate."""

_PAYLOAD = ("payload", np.uint32, (PFNS,))

HOST_REQUEST = np.dtype(
    [
        ("token", np.uint64),
        ("vq", np.uint64),
        ("pop_ns", np.uint64),
        ("push_ns", np.uint64),
        ("discard_ns", np.uint64),
        ("discard_bytes", np.uint64),
        ("first_gpa", np.uint64),
        ("first_hva", np.uint64),
        ("discard_calls", np.uint32),
        ("tid", np.uint32),
        ("hint_id", np.uint32),
        ("total", np.uint32),
        ("queue_index", np.uint16),
        ("handler", np.uint16),
        ("wire", np.uint16),
        ("chunk", np.uint16),
        ("filled", np.uint32),
        ("flags", np.uint32),
        _PAYLOAD,
    ],
    align=True,
)

HOST_CALLS = np.dtype(
    [
        ("token", np.uint64),
        ("address", np.uint64),
        ("length_bytes", np.uint64),
        ("first_ns", np.uint64),
        ("last_ns", np.uint64),
        ("total_ns", np.uint64),
        ("worst_ns", np.uint64),
        ("count", np.uint32),
        ("step", np.int32),
        ("advice", np.int32),
        ("error", np.int32),
        ("call", np.uint32),
        ("tid", np.uint32),
        ("fd", np.uint32),
        ("pieces", np.uint32),
    ],
    align=True,
)

_GUEST_HEAD = [
    ("begin_ns", np.uint64),
    ("send_ns", np.uint64),
    ("kick_ns", np.uint64),
    ("ack_ns", np.uint64),
    ("wake_ns", np.uint64),
    ("free_ns", np.uint64),
    ("end_ns", np.uint64),
    ("puff_ns", np.uint64),
    ("vq", np.uint64),
    ("tid", np.uint32),
    ("total", np.uint32),
    ("filled", np.uint32),
    ("flags", np.uint32),
    ("queue", np.uint16),
    ("wire", np.uint16),
    ("caller", np.uint16),
    ("puffs", np.uint16),
]
GUEST_REQUEST = np.dtype([*_GUEST_HEAD, _PAYLOAD], align=True)
GUEST_SINGLE = np.dtype([*_GUEST_HEAD, ("pfn", np.uint32), ("pad", np.uint32)], align=True)
"""A request of one page: the first GUEST_SINGLE_BYTES of a struct guest_request."""


def from_singles(records: Records) -> Records:
    """Make GUEST_REQUEST[n] of GUEST_SINGLE[n]."""
    whole = np.zeros(len(records), GUEST_REQUEST)
    for name, _ in _GUEST_HEAD:
        whole[name] = records[name]
    whole["payload"][:, 0] = records["pfn"]
    return whole


def host_queues(records: Records) -> npt.NDArray[np.uint16]:
    """Name the queue of each host request by its handler and, for the first handler, its index.

    QEMU always adds the inflate queue first and the deflate queue second
    (virtio_balloon_device_realize of hw/virtio/virtio-balloon.c); each other handler serves one
    queue alone.
    """
    of_handler = np.array(HANDLER_QUEUES, np.uint16)
    handler = records["handler"]
    is_known = handler < len(of_handler)
    queue = of_handler[np.where(is_known, handler, 0)]
    queue = np.where(handler == 0, records["queue_index"], queue)
    is_known &= (handler != 0) | (queue == Queue.INFLATE) | (queue == Queue.DEFLATE)
    return np.where(is_known, queue, np.uint16(UNKNOWN_QUEUE)).astype(np.uint16)


def is_last_chunk(records: Records) -> npt.NDArray[np.bool_]:
    """Say of each host record whether no further record of its request can follow."""
    stored = records["chunk"].astype(np.int64) * PFNS + records["filled"]
    is_list = records["wire"] == Wire.SCATTERLIST
    is_last = is_list | (stored >= records["total"]) | (records["chunk"] == CHUNKS - 1)
    return np.asarray(is_last, np.bool_)


def is_partial(records: Records) -> npt.NDArray[np.bool_]:
    """Say of each record whether the request named more than the record could hold or read."""
    return np.asarray(records["flags"] & ~np.uint32(FLAG_HINT_ID) != 0, np.bool_)


def first_chunks(records: Records) -> npt.NDArray[np.bool_]:
    """Say of each host record whether it begins a request: its chunks follow each other."""
    first = np.ones(len(records), bool)
    first[1:] = records["token"][1:] != records["token"][:-1]
    return first


def host_requests(
    records: Records,
    first_seq: int,
    *,
    calls_observed: bool,
    guest_pfns: npt.NDArray[np.int64] | None,
) -> pa.RecordBatch:
    """Build rows of the requests table from host records.

    Args:
        records: HOST_REQUEST[n], the chunks of one request one after the other.
        first_seq: Number of the first row.
        calls_observed: Whether system calls were probed; if not, their columns are null.
        guest_pfns: int64[m, 2], first PFN and end of each region of guest memory, to count what a
            request names outside them; None without a memory map.

    Returns:
        One row per request.
    """
    first = first_chunks(records)
    row = np.cumsum(first) - 1
    head = records[first]
    runs, pages = _runs(records, row, len(head))
    rejected = None if guest_pfns is None else pages - _pages_inside(runs, guest_pfns)
    discards: dict[str, Any] = {}
    if calls_observed:
        discards = {name: head[name] for name in ("discard_calls", "discard_ns", "discard_bytes")}
    has_id = head["flags"] & FLAG_HINT_ID != 0
    return batch(
        REQUESTS,
        len(head),
        side=np.full(len(head), Side.HOST),
        seq=np.arange(first_seq, first_seq + len(head)),
        queue=host_queues(head),
        wire=head["wire"],
        tid=head["tid"],
        pages=pages,
        runs=runs,
        truncated_pages=_total_pages(records, head, pages) - pages,
        rejected_pages=rejected,
        hint_id=pa.array(head["hint_id"], pa.uint32(), mask=~has_id),
        pop_ns=times(head["pop_ns"]),
        push_ns=times(head["push_ns"]),
        **discards,
    )


def _pages_inside(runs: pa.ListArray, regions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Count, per row, the pages of its runs that lie in one of the regions [first PFN, end)."""
    pfn = runs.values.field(0).to_numpy().astype(np.int64)
    length = runs.values.field(1).to_numpy().astype(np.int64)
    begin = np.where(length < 0, pfn + length + 1, pfn)
    end = begin + np.abs(length)
    inside = np.zeros(len(pfn), np.int64)
    for low, high in regions:
        inside += np.maximum(np.minimum(end, high) - np.maximum(begin, low), 0)
    sums = np.concatenate(([0], np.cumsum(inside)))
    offsets = runs.offsets.to_numpy()
    return np.asarray(sums[offsets[1:]] - sums[offsets[:-1]], np.int64)


def guest_requests(records: Records, first_seq: int) -> pa.RecordBatch:
    """Build rows of the requests table from guest records.

    Args:
        records: GUEST_REQUEST[n].
        first_seq: Number of the first row: the guest's records are numbered as they are drained.
    """
    runs, pages = _runs(records, np.arange(len(records)), len(records))
    names = ("begin_ns", "send_ns", "kick_ns", "ack_ns", "wake_ns", "free_ns", "end_ns", "puff_ns")
    return batch(
        REQUESTS,
        len(records),
        side=np.full(len(records), Side.GUEST),
        seq=np.arange(first_seq, first_seq + len(records)),
        queue=records["queue"],
        wire=records["wire"],
        tid=records["tid"],
        pages=pages,
        runs=runs,
        truncated_pages=_total_pages(records, records, pages) - pages,
        caller=records["caller"],
        **{name: times(records[name]) for name in names},
    )


def known(column: npt.NDArray[Any], is_null: npt.NDArray[np.bool_]) -> pa.Array:
    """Make a column with nulls; the mask is only looked at where there are any."""
    values = np.ascontiguousarray(column)
    return pa.array(values, mask=is_null) if is_null.any() else pa.array(values)


def times(column: npt.NDArray[np.uint64]) -> pa.Array:
    """Make a column of times; 0 in a record becomes null."""
    return known(column.view(np.int64), column == 0)


def _entries(records: Records) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return first PFN and pages of each scatterlist slot: int64[n, ENTRIES] each."""
    words = np.ascontiguousarray(records["payload"]).view(np.uint64).reshape(-1, ENTRIES, 2)
    pages = np.minimum(words[:, :, 1] >> np.uint64(PFN_SHIFT), np.uint64(2**31 - 1))
    return (words[:, :, 0] >> np.uint64(PFN_SHIFT)).astype(np.int64), pages.astype(np.int64)


def _runs(
    records: Records, row: npt.NDArray[np.int64], rows: int
) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """Encode the payloads: the `runs` column and the pages of each row."""
    is_list = records["wire"] == Wire.SCATTERLIST
    limit = np.where(is_list, ENTRIES, PFNS)
    filled = np.minimum(records["filled"], limit).astype(np.int64)
    # PFN arrays: flat PFNs of all rows, rows with scatterlists counting as empty.
    pfn_counts = np.bincount(row, np.where(is_list, 0, filled), rows).astype(np.int64)
    held = (np.arange(PFNS) < filled[:, None]) & ~is_list[:, None]
    offsets = np.concatenate(([0], np.cumsum(pfn_counts)))
    run_offsets, run_pfn, run_pages = encode_runs(records["payload"][held], offsets)
    counts = np.diff(run_offsets)
    pages = pfn_counts
    if is_list.any():
        held = (np.arange(ENTRIES) < filled[:, None]) & is_list[:, None]
        entry_pfn, entry_pages = _entries(records)
        entry_rows = np.repeat(row, held.sum(axis=1))
        counts = counts + np.bincount(entry_rows, minlength=rows)
        pages = pages + np.bincount(entry_rows, entry_pages[held], rows).astype(np.int64)
        owner = np.concatenate((np.repeat(np.arange(rows), np.diff(run_offsets)), entry_rows))
        order = np.argsort(owner, kind="stable")
        run_pfn = np.concatenate((run_pfn, entry_pfn[held]))[order]
        run_pages = np.concatenate((run_pages, entry_pages[held]))[order]
    item = RUNS.value_field.type
    values = pa.StructArray.from_arrays(
        [pa.array(run_pfn.astype(np.uint64)), pa.array(run_pages.astype(np.int32))],
        fields=[item.field(0), item.field(1)],
    )
    starts = pa.array(np.concatenate(([0], np.cumsum(counts))).astype(np.int32))
    return pa.ListArray.from_arrays(starts, values, type=RUNS), pages


def _total_pages(
    records: Records, head: Records, pages: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Pages that each request named: what was stored, and what a record had no room for."""
    total = np.where(head["wire"] == Wire.SCATTERLIST, pages, head["total"].astype(np.int64))
    return np.maximum(total, pages)


def batch(schema: pa.Schema, rows: int, **columns: Any) -> pa.RecordBatch:
    """Make rows of a table; columns that are not given are null."""
    arrays = []
    for field in schema:
        column = columns.pop(field.name, None)
        if column is None:
            column = pa.nulls(rows, field.type)
        if not isinstance(column, pa.Array):
            column = pa.array(np.ascontiguousarray(column))
        if column.type != field.type:
            column = column.cast(field.type)
        arrays.append(column)
    if columns:
        raise TypeError(f"no such columns: {sorted(columns)}")
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
