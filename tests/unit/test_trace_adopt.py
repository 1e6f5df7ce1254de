"""Two captures of one session become one trace, or nothing happens."""

import pytest

from tests.unit.trace_samples import described, torn_trace, write_trace
from tracer.trace.adopt import adopt_segments
from tracer.trace.check import check_trace
from tracer.trace.errors import TornTraceError, TraceError
from tracer.trace.manifest import Loss
from tracer.trace.reader import open_trace
from tracer.trace.schema import Side
from tracer.trace.writer import TraceWriter


def snapshot(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_both_sides_in_one_trace(tmp_path):
    host = write_trace(tmp_path / "host.balloon")
    loss = Loss("guest", "requests", 2, 0, 5)
    guest = write_trace(
        tmp_path / "guest.balloon",
        Side.GUEST,
        rotate_bytes=1,
        losses=(loss,),
        manifest=described(Side.GUEST, labels={"in": "guest"}, vm=None),
    )
    before = snapshot(guest)
    manifest = adopt_segments(host, guest, Side.GUEST)
    trace = open_trace(host)
    assert trace.manifest == manifest
    assert trace.sides == (Side.HOST, Side.GUEST)
    assert trace.is_complete
    assert trace.losses == (loss,)
    assert trace.manifest.vm.name == "vm0"
    assert trace.manifest.labels == {"in": "guest"}
    assert trace.table("requests", Side.GUEST).num_rows == 60
    assert [finding.code for finding in check_trace(trace)] == ["loss"]
    assert snapshot(guest) == before


def test_a_side_is_never_replaced(tmp_path):
    host = write_trace(tmp_path / "host.balloon")
    guest = write_trace(tmp_path / "guest.balloon", Side.GUEST)
    adopt_segments(host, guest, Side.GUEST)
    before = snapshot(host)
    with pytest.raises(TraceError, match="already has a guest side"):
        adopt_segments(host, guest, Side.GUEST)
    assert snapshot(host) == before


def test_the_other_trace_must_have_the_side(tmp_path):
    host = write_trace(tmp_path / "host.balloon")
    with pytest.raises(TraceError, match="has no guest side"):
        adopt_segments(host, write_trace(tmp_path / "other.balloon"), Side.GUEST)


def test_an_open_trace_is_salvaged_first(tmp_path):
    host = write_trace(tmp_path / "guest.balloon", Side.GUEST)
    torn_trace(tmp_path / "torn.balloon")
    with pytest.raises(TornTraceError, match="was not closed"):
        adopt_segments(host, tmp_path / "torn.balloon", Side.HOST)


def test_a_damaged_segment_is_not_copied(tmp_path):
    host = write_trace(tmp_path / "host.balloon")
    guest = write_trace(tmp_path / "guest.balloon", Side.GUEST)
    file = guest / "requests" / "guest-00001.arrow"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 255
    file.write_bytes(raw)
    with pytest.raises(TraceError, match="damaged"):
        adopt_segments(host, guest, Side.GUEST)
    assert open_trace(host).sides == (Side.HOST,)
    assert open_trace(host).is_complete


def test_an_incomplete_side_makes_an_incomplete_trace(tmp_path):
    host = write_trace(tmp_path / "host.balloon")
    with TraceWriter(tmp_path / "guest.balloon", Side.GUEST, manifest=described(Side.GUEST)):
        pass
    adopt_segments(host, tmp_path / "guest.balloon", Side.GUEST)
    trace = open_trace(host)
    assert not trace.is_complete
    assert trace.manifest.end_reason == "the guest's trace is not complete: left without close"
