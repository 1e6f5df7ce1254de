"""The manifest, whole, foreign, hostile and of other versions."""

import json

import pytest

from tests.unit.trace_samples import described
from tracer.trace.errors import (
    ForeignTraceError,
    NewerTraceError,
    OlderTraceError,
    TornTraceError,
    TraceError,
)
from tracer.trace.manifest import (
    MAX_MANIFEST_BYTES,
    Alignment,
    LedgerLine,
    Loss,
    Manifest,
    ProbeRecord,
    Region,
    Segment,
    SideInfo,
)

FULL = described(
    losses=(Loss("host", "calls", 3, None, 9),),
    segments=(Segment("requests", "host", "requests/host-00001.arrow", 1, 2, "a" * 64),),
    ledger=(LedgerLine("inflate", None, "guest", "not observed"),),
    alignment=Alignment(-5, 1e-7, 1, 1, 2, 3, 4, 0, True),
    scenario="stepwise",
    labels={"ticket": "17"},
)


def document(**changes):
    return json.loads(FULL.to_json()) | changes


def read(**changes):
    return Manifest.from_json(json.dumps(document(**changes)))


def test_round_trip():
    side = SideInfo(
        page_size_bytes=65536,
        begin_ns=1,
        cpus=4,
        realtime_anchors=((1, 2), (3, 4)),
        probes=(ProbeRecord("guest.send", "fentry", "tell_host", "failed", "no BTF", 1.5, 7),),
        counters={"actual_bytes_begin": 1 << 40, "delta": -3},
    )
    manifest = Manifest(sides={"guest": side}, labels={"a": "é"})
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Manifest.from_json(FULL.to_json().encode()) == FULL


def test_unknown_keys_come_back():
    raw = document(colour="red", format_version="1.9")
    raw["sides"]["host"]["moon"] = {"phase": [1, None]}
    raw["segments"][0]["note"] = "x"
    manifest = Manifest.from_json(json.dumps(raw))
    assert manifest.is_newer_minor
    assert json.loads(manifest.to_json()) == raw


@pytest.mark.parametrize(
    ("version", "kind"),
    [("2.0", NewerTraceError), ("0.9", OlderTraceError), ("1", TraceError), (1.0, TraceError)],
)
def test_other_versions(version, kind):
    with pytest.raises(TraceError) as caught:
        read(format_version=version)
    assert type(caught.value) is kind
    assert caught.value.reason
    assert caught.value.remedy


@pytest.mark.parametrize("raw", ["[]", "{}", '{"format": "pcap"}', "7", "null"])
def test_foreign(raw):
    with pytest.raises(ForeignTraceError):
        Manifest.from_json(raw)


@pytest.mark.parametrize(
    "raw", ["", "{", FULL.to_json()[:-9], b"\xff\xfe\x00", '{"a": NaN}', "[" * 100_000, "9" * 5000]
)
def test_torn(raw):
    with pytest.raises(TornTraceError):
        Manifest.from_json(raw)


def test_size_and_depth_are_bounded():
    with pytest.raises(TraceError, match="16 MiB"):
        Manifest.from_json(" " * (MAX_MANIFEST_BYTES + 1))
    deep = []
    for _ in range(50):
        deep = [deep]
    with pytest.raises(TraceError, match="deep"):
        read(extra_thing=deep)


SEGMENT = document()["segments"][0]
REGION = document()["regions"][0]
HOST = {"page_size_bytes": 4096, "begin_ns": 0}
PROBE = {"point": "queues-pop", "way": "uprobe", "target": "0:pop", "status": "attached"}


@pytest.mark.parametrize(
    "changes",
    [
        {"complete": 1},
        {"session_id": 5},
        {"session_id": "x" * 5000},
        {"end_reason": "\ud800"},
        {"created_realtime_ns": -1},
        {"created_realtime_ns": True},
        {"created_realtime_ns": 1 << 63},
        {"sides": {"moon": {"page_size_bytes": 4096, "begin_ns": 0}}},
        {"sides": {"host": {"begin_ns": 0}}},
        {"sides": {"host": {"page_size_bytes": 0, "begin_ns": 0}}},
        {"sides": {"host": {"page_size_bytes": 4096, "begin_ns": 0, "counters": {"a": 1.5}}}},
        {"sides": {"host": HOST | {"probes": [PROBE | {"cost_ns": -0.5}]}}},
        {"sides": {"host": HOST | {"probes": [PROBE | {"bystander_ns": -1}]}}},
        {"sides": {"host": HOST | {"probes": [PROBE | {"cost_ns": True}]}}},
        {"sides": {"host": HOST | {"probes": [PROBE | {"hits": -1}]}}},
        {"sides": []},
        {"vm": {"memory_bytes": (1 << 64) + 1}},
        {"vm": {"pid": 0}},
        {"regions": [REGION | {"length_bytes": 0}]},
        {"regions": [REGION | {"gpa": -4096}]},
        {"regions": [REGION | {"gpa": (1 << 64) - 4096, "length_bytes": 8192}]},
        {"regions": [REGION, REGION | {"gpa": 4096}]},
        {"regions": [REGION] * 5000},
        {"losses": [{"side": "host", "stream": "calls", "count": 0, "since_ns": 0, "until_ns": 1}]},
        {"segments": [SEGMENT | {"file": "requests/../../../etc/passwd"}]},
        {"segments": [SEGMENT | {"file": "/etc/passwd"}]},
        {"segments": [SEGMENT | {"file": "requests/host-00001.arrow\n"}]},
        {"segments": [SEGMENT | {"file": "calls/host-00001.arrow"}]},
        {"segments": [SEGMENT | {"file": "requests/guest-00001.arrow"}]},
        {"segments": [SEGMENT | {"table": "passwords"}]},
        {"segments": [SEGMENT | {"rows": -1}]},
        {"segments": [SEGMENT | {"sha256": "A" * 64}]},
        {"segments": [SEGMENT, SEGMENT]},
        {"alignment": {"offset_ns": 0}},
        {"labels": {"a": 1}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_hostile_values_are_refused(changes):
    with pytest.raises(TraceError) as caught:
        read(**changes)
    assert type(caught.value) is TraceError
    assert "manifest.json" in caught.value.what
    assert len(str(caught.value)) < 1000


def test_a_cost_of_nothing_is_one():
    probe = PROBE | {"cost_ns": 0, "bystander_ns": 0.0, "hits": 0}
    (kept,) = read(sides={"host": HOST | {"probes": [probe]}}).sides["host"].probes
    assert (kept.cost_ns, kept.bystander_ns, kept.hits) == (0, 0, 0)


@pytest.mark.parametrize(("version", "known"), [("1.0", False), ("1.1", False), ("1.2", True)])
def test_hits_that_older_recorders_added_up_are_of_no_one_probe(version, known):
    points = ("madvise-enter", "fallocate-exit", "queues-pop", "reporting-push", "target")
    probes = [PROBE | {"point": point, "hits": 7, "cost_ns": 2.5} for point in points]
    sides = {name: HOST | {"probes": probes} for name in ("host", "guest")}
    found = read(format_version=version, sides=sides)
    hits = {name: [probe.hits for probe in side.probes] for name, side in found.sides.items()}
    assert hits == {"host": [7] * 5 if known else [None] * 4 + [7], "guest": [7] * 5}
    assert {probe.cost_ns for probe in found.sides["host"].probes} == {2.5}
    again = Manifest.from_json(found.to_json().replace(f'"{version}"', '"1.3"', 1))
    assert again.sides == found.sides


def test_regions_that_touch_are_fine():
    half = {"length_bytes": 1 << 30}
    regions = [REGION | half, REGION | half | {"gpa": 1 << 30, "hva": None}]
    assert read(regions=regions).regions[1] == Region(
        "below-4g", 1 << 30, None, 1 << 30, "anon", 4096
    )
