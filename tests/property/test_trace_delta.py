"""Differences give back exactly what was stored, whatever numbers and gaps there are."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from tracer.trace.delta import Form
from tracer.trace.schema import TABLES

UNSIGNED = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 2**63, 2**64 - 1]))
SIGNED = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([-(2**63), 2**63 - 1]))
RUN = st.fixed_dictionaries({"pfn": UNSIGNED, "pages": st.integers(-(2**31), 2**31 - 1)})


def column(field):
    """Values of a column: any of its type."""
    kind = field.type
    if pa.types.is_list(kind):
        values = st.lists(RUN, max_size=4)
    elif kind in (pa.uint64(), pa.int64()):
        values = UNSIGNED if kind == pa.uint64() else SIGNED
    elif kind == pa.uint16():
        values = st.integers(0, 2**16 - 1)
    else:
        values = st.integers(0, 100)
    return st.one_of(st.none(), values) if field.nullable else values


def batches(table):
    row = st.fixed_dictionaries({field.name: column(field) for field in TABLES[table]})
    rows = st.lists(row, max_size=12)
    return rows.map(lambda rows: pa.RecordBatch.from_pylist(rows, schema=TABLES[table]))


def holds(table, batch):
    form = Form(table, delta=True)
    stored = form.stored(batch)
    stored.validate(full=True)
    assert stored.schema.equals(form.schema)
    back = form.restored(stored)
    back.validate(full=True)
    assert back.equals(batch)
    part = batch.slice(1)
    assert form.restored(form.stored(part)).equals(part)


@given(batches("calls"))
def test_calls_come_back(batch):
    holds("calls", batch)


@given(batches("requests"))
def test_requests_come_back(batch):
    holds("requests", batch)


@given(st.data())
def test_any_stored_numbers_give_some_rows(data):
    """A stranger's differences give rows without an error, which come back like any others."""
    form = Form("calls", delta=True)
    row = st.fixed_dictionaries({field.name: column(field) for field in form.schema})
    rows = data.draw(st.lists(row, max_size=12))
    stored = pa.RecordBatch.from_pylist(rows, schema=form.schema)
    back = form.restored(stored)
    back.validate(full=True)
    assert back.num_rows == stored.num_rows
    assert form.restored(form.stored(back)).equals(back)
