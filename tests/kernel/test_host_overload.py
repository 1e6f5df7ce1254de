"""What a guest that sends faster than its rings or its quota hold costs: its own trace alone."""

import shutil
from pathlib import Path

import pyarrow.compute as pc
import pytest

from tests.kernel.recording import recording
from tests.standins.build import Did, program, qemu_like
from tracer.account.ledger import ledger
from tracer.engine.vm_probes import Quota
from tracer.sites import host_probes
from tracer.trace.check import check_trace
from tracer.trace.reader import Trace, open_trace
from tracer.trace.schema import Mark, Queue, Side

PAGE = 4096
RING_BYTES = {"smallest": 4096, "small": 65536}


def lost(trace: Trace, stream: str, cause: str) -> int:
    """Sum a loss over its rows in the marks; the manifest must tell the same."""
    marks = trace.table("marks", Side.HOST).to_pylist()
    rows = [row for row in marks if row["mark"] == Mark.LOSS and row["text"] == stream]
    listed = [loss for loss in trace.manifest.losses if loss.stream == stream]
    total = sum(row["value"] for row in rows if row["cause"] == cause)
    assert total == sum(loss.count for loss in listed if loss.cause == cause)
    assert all(loss.since_ns < loss.until_ns for loss in listed)
    return total


def pages(trace: Trace, queue: Queue) -> int:
    requests = trace.table("requests")
    return pc.sum(requests.filter(pc.equal(requests["queue"], int(queue)))["pages"]).as_py() or 0


def counted(trace: Trace, queue: Queue) -> int:
    """Pages recorded, and pages that lost requests named."""
    counters = trace.manifest.sides["host"].counters
    return pages(trace, queue) + counters[f"lost_{queue.name.lower()}_pages"]


@pytest.mark.parametrize("ring", RING_BYTES)
@pytest.mark.parametrize("detail", ["requests", "calls"])
def test_a_full_ring_loses_what_it_counts_and_not_one_event_more(ring, detail, tmp_path: Path):
    output = tmp_path / "overload.balloon"
    options = {"ring_bytes": RING_BYTES[ring], "detail": detail}
    with qemu_like("-m", "256M") as vm, recording(vm, output, **options):
        did: Did = vm.send("flood", 1)
    trace = open_trace(output)
    requests = trace.table("requests").num_rows
    lost_requests = lost(trace, "requests", "ring")
    assert lost_requests > 0 or ring == "small"
    assert requests + lost_requests == did.requests
    assert counted(trace, Queue.INFLATE) == counted(trace, Queue.DEFLATE) == did.pages // 2
    if detail == "calls":
        recorded = pc.sum(trace.table("calls")["count"]).as_py()
        assert lost(trace, "calls", "ring") > 0
        assert recorded + lost(trace, "calls", "ring") == did.calls
    assert trace.is_complete
    # A ring of 64 KiB may hold all requests of a fast machine: then nothing is called lost either.
    any_lost = lost_requests + lost(trace, "calls", "ring") > 0
    assert ("loss" in {finding.code for finding in check_trace(trace)}) is any_lost


def test_a_vm_over_its_quota_is_cut_off_for_the_rest_of_the_second(tmp_path: Path):
    output = tmp_path / "quota.balloon"
    quota = Quota(records_per_s=100, bytes_per_s=1 << 30)
    with qemu_like("-m", "256M") as vm, recording(vm, output, detail="requests", quota=quota):
        did = vm.send("flood", 3)
    trace = open_trace(output)
    refused = lost(trace, "requests", "quota")
    assert lost(trace, "requests", "ring") == 0
    requests = trace.table("requests")
    assert requests.num_rows + refused == did.requests
    assert counted(trace, Queue.INFLATE) == did.pages // 2
    # Seconds begin with the first record: at most one more of them than have passed.
    assert 300 <= requests.num_rows <= 400
    marks = trace.table("marks", Side.HOST).to_pylist()
    episodes = [row for row in marks if row["mark"] == Mark.QUOTA]
    assert sum(row["value"] for row in episodes) == refused
    assert all(row["since_ns"] < row["ts_ns"] for row in episodes)


def test_a_quota_of_bytes_holds_too(tmp_path: Path):
    output = tmp_path / "quota.balloon"
    quota = Quota(records_per_s=1 << 30, bytes_per_s=64 << 10)
    with qemu_like("-m", "256M") as vm, recording(vm, output, detail="requests", quota=quota):
        did = vm.send("flood", 1)
    trace = open_trace(output)
    refused = lost(trace, "requests", "quota")
    assert trace.table("requests").num_rows + refused == did.requests
    assert trace.table("requests").num_rows <= 2 * (64 << 10) // 1000


def test_pages_of_lost_requests_are_counted_where_their_queue_cannot_be_read(monkeypatch, tmp_path):
    """The index of a queue is looked for where this QEMU has a pointer."""
    monkeypatch.setattr(host_probes, "queue_index_offset", lambda _: 0x58)
    copy = tmp_path / "qemu-system-x86_64"  # What was found in the program itself is kept.
    shutil.copy(program(copy.name), copy)
    output, quota = tmp_path / "quota.balloon", Quota(records_per_s=0)
    with qemu_like("-m", "64M", path=copy) as vm, recording(vm, output, quota=quota):
        did = vm.send("inflate", 100, 300, 1)
    trace = open_trace(output)
    assert lost(trace, "requests", "quota") == did.requests == 2
    counters = trace.manifest.sides["host"].counters
    names = ("inflate", "deflate", "other")
    assert [counters[f"lost_{name}_pages"] for name in names] == [0, 0, did.pages]
    (line,) = [line for line in ledger(trace).lines if "either queue" in line.name]
    assert line.pages == did.pages


def test_garbage_is_kept_and_counted_as_rejected(tmp_path: Path):
    output = tmp_path / "garbage.balloon"
    with qemu_like("-m", "64M") as vm, recording(vm, output):
        did = vm.send("garbage", 5, 0xFFFFFFFF, 7, 1 << 30, 9)
        vm.send("inflate", 100, 300, 1)
    assert did.rejected == 2
    requests = open_trace(output).table("requests")
    assert requests["pages"].to_pylist() == [5, 256, 44]
    assert requests["rejected_pages"].to_pylist() == [2, 0, 0]
