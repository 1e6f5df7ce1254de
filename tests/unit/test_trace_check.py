"""Each rule of check_trace: a trace that keeps it and one that breaks it."""

from dataclasses import replace

import pytest

from tests.unit.trace_samples import (
    GIB,
    call,
    calls,
    described,
    request,
    requests,
    tell,
    torn_trace,
    write_trace,
)
from tracer.trace.check import Severity, check_trace
from tracer.trace.layout import write_manifest
from tracer.trace.manifest import Loss, Region
from tracer.trace.reader import open_trace
from tracer.trace.schema import Mark, Queue, Side
from tracer.trace.writer import TraceWriter

LAST = 2 * GIB // 4096 - 1


def codes(trace):
    return {finding.code for finding in check_trace(trace)}


def written(tmp_path, rows, call_rows=(), side=Side.HOST, losses=(), **manifest):
    writer = TraceWriter(tmp_path / "a.balloon", side)
    writer.append("requests", requests(rows))
    writer.append("calls", calls(call_rows))
    tell(writer, losses)
    writer.close(described(side, **manifest))
    return open_trace(writer.path)


def test_a_sound_trace_has_no_findings(tmp_path):
    assert check_trace(open_trace(write_trace(tmp_path / "a.balloon", rotate_bytes=1))) == []


@pytest.mark.parametrize(
    ("code", "rows"),
    [
        ("seq-order", [request(2), request(1)]),
        ("seq-repeated", [request(1), request(1)]),
        ("time-order", [request(1, pop_ns=9, push_ns=8)]),
        ("time-order", [request(1, send_ns=9, kick_ns=8)]),
        ("time-order", [request(1, kick_ns=9, wake_ns=8)]),
        ("time-order", [request(1, begin_ns=9, send_ns=8)]),
        ("pages-sum", [request(1) | {"pages": 255}]),
        ("pages-sum", [request(1, ((5, -(1 << 31)),)) | {"pages": 5}]),
        ("run-empty", [request(1, ((5, 0), (6, 1)))]),
        ("pfn-bounds", [request(1, ((LAST, 2),))]),
        ("pfn-bounds", [request(1, ((LAST + 1, 1),))]),
        ("pfn-bounds", [request(1, ((0, -2),))]),
        ("pfn-bounds", [request(1, (((1 << 64) - 1, 3),))]),
        ("pfn-bounds", [request(1, ((LAST + 1, -(1 << 31)),))]),
        ("code-unknown", [request(1, queue=77)]),
        ("code-unknown", [request(1, caller=77)]),
    ],
)
def test_broken_requests(tmp_path, code, rows):
    assert code in codes(written(tmp_path, rows))


@pytest.mark.parametrize(
    "rows",
    [
        [request(1, ((LAST, 1), (0, 1), (LAST, -5), (1, -2)))],
        [request(1, ()), request(5, ()) | {"runs": None}],
        [request(1, truncated_pages=40)],
        [request(1, pop_ns=None), request(2, push_ns=None)],
        [request(1, pop_ns=8, push_ns=8)],
    ],
)
def test_unusual_requests_that_are_right(tmp_path, rows):
    assert codes(written(tmp_path, rows)) == set()


@pytest.mark.parametrize(
    ("code", "columns"),
    [
        ("call-orphan", {"request_seq": 2}),
        ("gpa-bounds", {"gpa": 2 * GIB - 4096, "count": 2}),
        ("gpa-bounds", {"gpa": 4096, "count": 3, "step": -1}),
        ("gpa-bounds", {"gpa": 0, "length_bytes": (1 << 64) - 1, "count": (1 << 32) - 1}),
        ("code-unknown", {"call": 9}),
        (None, {"request_seq": None, "gpa": None}),
        (None, {"gpa": 4096, "count": 2, "step": -1}),
        (None, {"gpa": 0, "length_bytes": 2 * GIB, "count": 1, "step": 0}),
        (None, {"gpa": 1 << 60, "errno": 22}),
    ],
)
def test_calls(tmp_path, code, columns):
    assert codes(written(tmp_path, [request(1)], [call(1) | columns])) == ({code} - {None})


def test_an_orphan_beside_a_loss_is_only_a_warning(tmp_path):
    loss = Loss("host", "requests", 1, 0, 5)
    trace = written(tmp_path, [request(1)], [call(2)], losses=(loss,))
    severity = {finding.code: finding.severity for finding in check_trace(trace)}
    assert severity == {"loss": Severity.ERROR, "call-orphan": Severity.WARNING}


def test_memory_in_two_regions_that_touch(tmp_path):
    regions = (
        Region("low", 0, None, GIB, "anon", 4096),
        Region("high", GIB, None, GIB, "anon", 4096),
    )
    across = [request(1, ((GIB // 4096 - 1, 2),))]
    assert codes(written(tmp_path, across, regions=regions)) == set()


def test_memory_with_a_hole(tmp_path):
    regions = (
        Region("low", 0, None, GIB, "anon", 4096),
        Region("high", 4 * GIB, None, GIB, "anon", 4096),
    )
    into_the_hole = [request(1, ((GIB // 4096 - 1, 2),)), request(2, ((4 * GIB // 4096, 1),))]
    trace = written(tmp_path, into_the_hole, regions=regions)
    assert [finding.text for finding in check_trace(trace)] == ["1 runs leave the guest's memory"]


def test_without_a_memory_map_nothing_is_out_of_bounds(tmp_path):
    assert codes(written(tmp_path, [request(1, ((1 << 60, 1),))], regions=())) == set()


def test_losses_have_to_be_told_twice(tmp_path):
    writer = TraceWriter(tmp_path / "a.balloon", Side.HOST)
    writer.loss("calls", 3, 0, 5)
    writer.close(described())
    assert codes(open_trace(writer.path)) == {"loss"}
    manifest = open_trace(writer.path).manifest
    write_manifest(writer.path, replace(manifest, losses=()))
    assert codes(open_trace(writer.path)) == {"loss-rows"}


def test_rows_after_the_end(tmp_path):
    writer = TraceWriter(tmp_path / "a.balloon", Side.HOST)
    writer.mark(Mark.END, 5)
    writer.close(described())
    assert codes(open_trace(writer.path)) == {"end-early"}


def test_a_torn_trace_says_so(tmp_path):
    torn_trace(tmp_path / "a.balloon")
    found = check_trace(open_trace(tmp_path / "a.balloon"))
    assert [finding.code for finding in found] == ["not-complete", "end-missing", "part-open"]


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("segment-rows", lambda segment: replace(segment, rows=59)),
        ("segment-bytes", lambda segment: replace(segment, bytes=59)),
        ("segment-hash", lambda segment: replace(segment, sha256="0" * 64)),
    ],
)
def test_segments_are_what_the_manifest_says(tmp_path, code, change):
    path = write_trace(tmp_path / "a.balloon")
    manifest = open_trace(path).manifest
    first, *others = manifest.segments
    write_manifest(path, replace(manifest, segments=(change(first), *others)))
    assert codes(open_trace(path)) == {code}


def test_a_segment_that_is_gone(tmp_path):
    path = write_trace(tmp_path / "a.balloon")
    (path / "calls" / "host-00001.arrow").unlink()
    assert "segment-missing" in codes(open_trace(path))


def test_a_deflate_on_the_guest_side(tmp_path):
    rows = [request(0, ((9, -4),), side=Side.GUEST, queue=Queue.DEFLATE, pop_ns=None, push_ns=None)]
    assert codes(written(tmp_path, rows, side=Side.GUEST)) == set()
