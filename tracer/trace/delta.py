"""A second form of two tables on the disk: addresses and times as differences (delta encoding).

lz4 finds nothing in 64-bit numbers whose low bytes change from row to row, and much in how far they
are from the row before. A fragmented guest, each page of which is a call of its own, takes 1.6
bytes a page so, and 9 as absolute numbers. What is left of a time is mostly its lowest 16 bits,
which have nothing in common with the next row's: they are a column of their own.

Columns of differences have names or types of their own, so that nobody takes them for what they are
not. They are modulo 2^64 and begin anew with every record batch, where the row before counts as
0: so any number can be stored, and a batch is read without the ones before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tracer.trace.schema import DELTA_RUNS, DELTA_TABLES, RUNS, TABLES

UInt64s = npt.NDArray[np.uint64]

_CHAINED = ("request_seq", "hva", "gpa")


@dataclass(frozen=True, slots=True)
class Form:
    """How a table's rows lie on the disk.

    Attributes:
        table: A name in schema.TABLES.
        delta: Whether as differences, if the table has that form.
    """

    table: str
    delta: bool = False

    @property
    def schema(self) -> pa.Schema:
        """Columns of the stored rows."""
        return (DELTA_TABLES if self._is_other else TABLES)[self.table]

    def stored(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Give rows of the table's own schema as they are stored."""
        if not self._is_other:
            return batch
        return _replaced(batch, _TO_DELTA[self.table](batch), self.schema)

    def restored(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Undo `stored`: of valid rows, whatever their origin, any numbers give some numbers."""
        if not self._is_other:
            return batch
        return _replaced(batch, _FROM_DELTA[self.table](batch), TABLES[self.table])

    @property
    def _is_other(self) -> bool:
        return self.delta and self.table in DELTA_TABLES


def form_of(table: str, stored: pa.Schema) -> Form:
    """Tell a table's form by the columns that were found, of whatever origin."""
    if table == "requests":
        return Form(table, "runs" in stored.names and stored.field("runs").type == DELTA_RUNS)
    own = {*DELTA_TABLES["calls"].names} - {*TABLES["calls"].names}
    return Form(table, table == "calls" and not own.isdisjoint(stored.names))


def _replaced(
    batch: pa.RecordBatch, made: dict[str, pa.Array], schema: pa.Schema
) -> pa.RecordBatch:
    columns = [made[field.name] if field.name in made else batch[field.name] for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _calls_to_delta(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    made = {}
    for name in _CHAINED:
        values, known = _numbers(batch[name]), _known(batch[name])
        step = np.zeros_like(values)
        step[known] = np.diff(values[known], prepend=np.uint64(0))
        made[f"{name}_delta"] = _column(step, pa.int64(), known)
    first, last, total, worst = (
        _numbers(batch[name]) for name in ("first_ns", "last_ns", "total_ns", "worst_ns")
    )
    before = np.concatenate([np.zeros(1, np.uint64), last[:-1]])[: len(last)]
    took = last - first
    made |= _split("first_ns_delta", first - before) | _split("last_ns_delta", took)
    made["total_ns_delta"] = _column(took - total, pa.int64())
    made["worst_ns_delta"] = _column(total - worst, pa.int64())
    return made


def _calls_from_delta(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    made = {}
    for name in _CHAINED:
        stored = batch[f"{name}_delta"]
        values = np.cumsum(_numbers(stored), dtype=np.uint64)
        made[name] = _column(values, pa.uint64(), _known(stored))
    took = _whole(batch, "last_ns_delta")
    last = np.cumsum(_whole(batch, "first_ns_delta") + took, dtype=np.uint64)
    total = took - _numbers(batch["total_ns_delta"])
    times = {
        "first_ns": last - took,
        "last_ns": last,
        "total_ns": total,
        "worst_ns": total - _numbers(batch["worst_ns_delta"]),
    }
    return made | {name: _column(values, pa.int64()) for name, values in times.items()}


def _split(name: str, values: UInt64s) -> dict[str, pa.Array]:
    return {
        f"{name}_low": pa.array(values.astype(np.uint16)),
        f"{name}_high": pa.array(values >> np.uint64(16)),
    }


def _whole(batch: pa.RecordBatch, name: str) -> UInt64s:
    low: npt.NDArray[np.uint16] = batch[f"{name}_low"].to_numpy()
    return (_numbers(batch[f"{name}_high"]) << np.uint64(16)) + low


def _requests_to_delta(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    column = batch["runs"]
    items = column.flatten()
    step = np.diff(_numbers(items.field("pfn")), prepend=np.uint64(0))
    return {"runs": _lists(column, _column(step, pa.int64()), items.field("pages"), DELTA_RUNS)}


def _requests_from_delta(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    column = batch["runs"]
    items = column.flatten()
    pfn = np.cumsum(_numbers(items.field("pfn_delta")), dtype=np.uint64)
    return {"runs": _lists(column, _column(pfn, pa.uint64()), items.field("pages"), RUNS)}


def _lists(like: pa.ListArray, pfn: pa.Array, pages: pa.Array, kind: pa.ListType) -> pa.ListArray:
    """Lists as long as those, and null where they are."""
    lengths = like.value_lengths().fill_null(0).to_numpy()
    offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
    items = pa.StructArray.from_arrays([pfn, pages], fields=[*kind.value_type])
    mask = like.is_null() if like.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets), items, type=kind, mask=mask)


def _numbers(column: pa.Array) -> UInt64s:
    """Integers of 64 bits modulo 2^64; 0 where null."""
    values = column.fill_null(0) if column.null_count else column
    return np.asarray(values.to_numpy()).view(np.uint64)


def _known(column: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False), np.bool_)


def _column(
    values: UInt64s, kind: pa.DataType, known: npt.NDArray[np.bool_] | None = None
) -> pa.Array:
    mask = None if known is None or known.all() else ~known
    return pa.array(values.view(kind.to_pandas_dtype()), mask=mask)


_TO_DELTA = {"requests": _requests_to_delta, "calls": _calls_to_delta}
_FROM_DELTA = {"requests": _requests_from_delta, "calls": _calls_from_delta}
