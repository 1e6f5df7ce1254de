"""Two bundles become one, or both stay as they were."""

from dataclasses import replace

import pytest

from tests.unit.capture_bundle import (
    GUEST_ROWS,
    HOST_ROWS,
    OFFSET_NS,
    write_guest,
    write_host,
)
from tracer.account.merge import merge_sides, settle
from tracer.trace.errors import TornTraceError, TraceError
from tracer.trace.layout import read_manifest, write_manifest
from tracer.trace.manifest import Loss
from tracer.trace.reader import open_trace
from tracer.trace.schema import Side
from tracer.trace.writer import TraceWriter


@pytest.fixture
def bundles(tmp_path):
    return write_host(tmp_path / "vm.balloon"), write_guest(tmp_path / "guest.balloon")


def content(bundle):
    return {
        str(path.relative_to(bundle)): path.read_bytes()
        for path in sorted(bundle.rglob("*"))
        if path.is_file()
    }


def test_merged_trace_holds_both_sides_whole(bundles):
    host, guest = bundles
    before = read_manifest(host)
    returned = merge_sides(host, guest)
    trace = open_trace(host)
    assert trace.sides == (Side.HOST, Side.GUEST)
    assert trace.is_complete
    assert trace.findings == []
    assert len(trace.table("requests", Side.HOST)) == len(HOST_ROWS)
    assert len(trace.table("requests", Side.GUEST)) == len(GUEST_ROWS)
    assert trace.manifest == returned
    assert trace.manifest.session_id == before.session_id
    assert trace.manifest.sides["guest"] == read_manifest(guest).sides["guest"]


def test_merged_manifest_keeps_alignment_and_ledger(bundles):
    host, guest = bundles
    merge_sides(host, guest)
    manifest = read_manifest(host)
    assert manifest.alignment.consistent
    assert manifest.alignment.pairs == 4
    assert abs(manifest.alignment.offset_ns - OFFSET_NS) <= manifest.alignment.bound_ns
    found = {line.name: (line.pages, line.status) for line in manifest.ledger}
    assert found["inflate: host requests"] == (384, "equal")


def test_guest_bundle_is_only_read(bundles):
    host, guest = bundles
    before = content(guest)
    merge_sides(host, guest)
    assert content(guest) == before


def test_second_merge_is_refused_and_changes_nothing(bundles):
    host, guest = bundles
    merge_sides(host, guest)
    before = content(host)
    with pytest.raises(TraceError, match="already has a guest side"):
        merge_sides(host, guest)
    assert content(host) == before


def test_sides_in_the_wrong_order_are_refused(bundles):
    host, guest = bundles
    before = content(guest)
    with pytest.raises(TraceError, match="has no host side"):
        merge_sides(guest, host)
    with pytest.raises(TraceError, match="has no guest side"):
        merge_sides(host, host)
    assert content(guest) == before


def test_damaged_guest_segment_leaves_the_host_as_it_was(bundles):
    host, guest = bundles
    before = content(host)
    segment = guest / "requests" / "guest-00001.arrow"
    raw = bytearray(segment.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    segment.write_bytes(raw)
    with pytest.raises(TraceError):
        merge_sides(host, guest)
    after = content(host)
    assert {name: after[name] for name in before} == before
    assert not open_trace(host).manifest.sides.keys() - {"host"}


def test_unclosed_guest_bundle_is_refused(bundles, tmp_path):
    host, _ = bundles
    torn = tmp_path / "torn.balloon"
    closed = open_trace(write_guest(tmp_path / "whole.balloon"))
    manifest = replace(closed.manifest, segments=())
    with TraceWriter(torn, Side.GUEST, manifest=manifest) as writer:
        writer.append("requests", closed.table("requests").to_batches()[0])
        with pytest.raises(TornTraceError, match="was not closed"):
            merge_sides(host, torn)


def test_incomplete_guest_makes_the_merged_trace_incomplete(bundles):
    host, guest = bundles
    write_manifest(guest, replace(read_manifest(guest), complete=False, end_reason="salvaged"))
    merged = merge_sides(host, guest)
    assert not merged.complete
    assert "salvaged" in merged.end_reason


def test_losses_of_both_sides_are_kept(tmp_path):
    lost = {
        side: Loss(side=side, stream="requests", count=count, since_ns=None, until_ns=7)
        for side, count in (("host", 1), ("guest", 2))
    }
    host = write_host(tmp_path / "h.balloon", losses=[lost["host"]])
    guest = write_guest(tmp_path / "g.balloon", losses=[lost["guest"]])
    assert merge_sides(host, guest).losses == (lost["host"], lost["guest"])


def test_bundle_that_is_being_written_is_refused(bundles, tmp_path):
    _, guest = bundles
    busy = tmp_path / "busy.balloon"
    known = read_manifest(write_host(tmp_path / "known.balloon"))
    with (
        TraceWriter(busy, Side.HOST, manifest=replace(known, segments=())),
        pytest.raises(TraceError, match="being written"),
    ):
        merge_sides(busy, guest)


def test_one_side_alone_settles_with_a_ledger_and_no_alignment(bundles):
    host, _ = bundles
    settled = settle(host)
    assert settled.alignment is None
    assert read_manifest(host).ledger == settled.ledger
    assert any(line.status == "not observed" for line in settled.ledger)
