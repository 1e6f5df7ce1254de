"""Bytes that nobody vouches for: a trace is refused with a sentence, or read within its bounds."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.trace_samples import write_trace
from tracer.trace.check import check_trace
from tracer.trace.errors import TraceError
from tracer.trace.ipc_bounds import claim, footer_blocks
from tracer.trace.manifest import Manifest
from tracer.trace.reader import open_trace
from tracer.trace.salvage import salvage
from tracer.trace.schema import TABLES

FILES = ("requests/host-00001.arrow", "calls/host-00001.arrow", "marks/host-00001.arrow")
flips = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=8)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "delta"])
def bundle(tmp_path_factory, request):
    path = tmp_path_factory.mktemp("whole") / "a.balloon"
    return write_trace(path, batches=3, rows=5, delta=request.param)


def flipped(raw, places):
    changed = bytearray(raw)
    for share, mask in places:
        changed[int(share * len(changed))] ^= mask
    return bytes(changed)


def use_everything(path):
    """Do to a trace what verbs do; only a TraceError may come out."""
    try:
        trace = open_trace(path)
    except TraceError:
        return
    for name in TABLES:
        try:
            assert trace.table(name).num_rows >= 0
            rows = trace.dataset(name).to_table().num_rows
        except TraceError as problem:
            assert str(problem)
        else:
            assert rows <= trace.table(name).num_rows
    check_trace(trace)


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from((*FILES, "manifest.json")), flips)
def test_flipped_bytes(bundle, file, places):
    place = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        copy = Path(shutil.copytree(bundle, place / "a.balloon"))
        (copy / file).write_bytes(flipped((bundle / file).read_bytes(), places))
        use_everything(copy)
        try:
            salvage(copy)
        except TraceError as problem:
            assert str(problem)
        else:
            use_everything(copy)
    finally:
        shutil.rmtree(place)


@settings(max_examples=60)
@given(st.sampled_from(FILES), st.binary(max_size=2000), st.booleans())
def test_random_segments(bundle, file, raw, with_magic):
    place = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        copy = Path(shutil.copytree(bundle, place / "a.balloon"))
        (copy / file).write_bytes(b"ARROW1\0\0" + raw if with_magic else raw)
        use_everything(copy)
    finally:
        shutil.rmtree(place)


@given(st.binary(max_size=400), st.binary(max_size=100))
def test_claims_of_random_messages(metadata, body):
    try:
        found = claim(metadata, memoryview(body))
    except ValueError:
        return
    assert 0 <= found.rows <= found.decoded_bytes * 8


@given(st.binary(max_size=300).map(lambda raw: raw + b"ARROW1"))
def test_random_footers(raw):
    try:
        blocks = footer_blocks(memoryview(raw))
    except ValueError:
        return
    assert len(blocks) * 24 <= len(raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)
KEYS = ("complete", "sides", "vm", "regions", "losses", "segments", "ledger", "alignment", "labels")


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), json_values, max_size=5))
def test_any_json_in_the_manifest(changes):
    import json

    raw = json.loads(Manifest().to_json())
    try:
        manifest = Manifest.from_json(json.dumps(raw | changes))
    except TraceError as problem:
        assert len(str(problem)) < 2000
        return
    assert Manifest.from_json(manifest.to_json()) == manifest
