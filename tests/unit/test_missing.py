"""What a trace does not hold, in words; and what is refused because of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.capture_bundle import write_guest, write_host
from tests.unit.trace_samples import call, calls, described
from tracer.account.merge import merge_sides
from tracer.trace.errors import TraceError
from tracer.trace.manifest import Loss, Manifest, ProbeRecord, SideInfo
from tracer.trace.missing import (
    lost_events,
    missing_events,
    require_requests,
    require_seen_requests,
    unseen_requests,
)
from tracer.trace.reader import open_trace
from tracer.trace.schema import Side
from tracer.trace.writer import TraceWriter

UNSEEN = ProbeRecord("queues-pop", "", "", "failed", "no function fits")
SEEN = ProbeRecord("queues-pop", "uprobe", "0:pop", "attached")


def host_manifest(*probes: ProbeRecord) -> Manifest:
    return Manifest(sides={"host": SideInfo(4096, 0, probes=probes)})


def calls_alone(path: Path, *probes: ProbeRecord) -> Path:
    """A trace of a VMM whose handlers are not known: one row of calls, no request."""
    with TraceWriter(path, Side.HOST) as writer:
        writer.append("calls", calls([call(None)]))
        sides = {"host": SideInfo(4096, 0, 9, probes=probes or (UNSEEN,))}
        writer.close(replace(described(), sides=sides))
    return path


def test_losses_are_added_up_by_side_stream_and_cause():
    losses = [
        Loss("host", "requests", 3, 0, 1, "ring"),
        Loss("host", "requests", 4, 1, 2, "ring"),
        Loss("host", "requests", 5, 0, 2, "quota"),
        Loss("guest", "requests", 1, 0, 2),
    ]
    assert lost_events(losses) == {
        ("host", "requests", "ring"): 7,
        ("host", "requests", "quota"): 5,
        ("guest", "requests", ""): 1,
    }


def test_a_sentence_names_every_loss_with_its_cause(tmp_path):
    losses = [
        Loss("host", "requests", 1200, 0, 1, "ring"),
        Loss("host", "calls", 3, 0, 1),
    ]
    trace = open_trace(write_host(tmp_path / "a.balloon", losses=losses))
    assert missing_events(trace) == "misses 3 calls of the host, 1,200 requests of the host (ring)"
    assert missing_events(open_trace(write_host(tmp_path / "b.balloon"))) is None


def test_a_trace_without_its_end_says_so(tmp_path):
    path = write_host(tmp_path / "a.balloon")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    told = missing_events(open_trace(path))
    assert told is not None
    assert told.startswith("did not end as it should")


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (host_manifest(UNSEEN), "no function fits"),
        (host_manifest(SEEN), None),
        (host_manifest(), None),
        (Manifest(), None),
    ],
)
def test_the_probes_say_whether_requests_could_be_seen(manifest, reason):
    assert unseen_requests(manifest) == reason


def test_a_trace_of_calls_alone_is_refused_with_what_to_do(tmp_path):
    trace = open_trace(calls_alone(tmp_path / "a.balloon"))
    for refuse in (require_seen_requests, require_requests):
        with pytest.raises(TraceError, match="only system calls") as refused:
            refuse(trace)
        assert "no function fits" in refused.value.reason
        assert "record in the guest" in refused.value.remedy


def test_the_guests_requests_make_up_for_those_that_the_host_cannot_see(tmp_path):
    host = calls_alone(tmp_path / "host.balloon")
    merge_sides(host, write_guest(tmp_path / "guest.balloon"))
    require_requests(open_trace(host))


def test_a_balloon_that_kept_still_can_be_counted_and_not_replayed(tmp_path):
    trace = open_trace(calls_alone(tmp_path / "a.balloon", SEEN))
    require_seen_requests(trace)
    with pytest.raises(TraceError, match="holds no requests") as refused:
        require_requests(trace)
    assert refused.value.reason == "the balloon did not move while it was recorded"
