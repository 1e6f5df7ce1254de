"""The host's recorder on a program of QEMU's shape whose every request and discard is known."""

import mmap
from pathlib import Path

import numpy as np
import pytest

from replay.ranges import pfns_from_runs
from tests.kernel.recording import recording
from tests.standins.build import qemu_like
from tracer.account.ledger import ledger
from tracer.trace.reader import Trace, open_trace
from tracer.trace.schema import Call, Queue, Side

PAGE = 4096
MEMORY_BYTES = 4 << 30
HIGH = 1 << 20
"""First PFN above the hole of 4 GiB; of 4 GiB in a q35, half is there."""
PUNCH = 3
"""FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE (include/uapi/linux/falloc.h)."""
DEVICE = ("-device", "virtio-balloon-pci,free-page-reporting=on")


def rows(trace: Trace, table: str, queue: Queue | None = None) -> list[dict]:
    found = trace.table(table, Side.HOST).to_pylist()
    return [row for row in found if queue is None or row["queue"] == queue]


def pages(requests: list[dict]) -> list[int]:
    runs = [run for row in requests for run in row["runs"]]
    pfn, length = (np.array([run[key] for run in runs], np.int64) for key in ("pfn", "pages"))
    return pfns_from_runs(pfn, length).tolist()


def discarded(calls: list[dict], advice: int, call: Call = Call.MADVISE) -> list[int]:
    """The PFN of every call with this advice, in order, from runs of like calls."""
    found = []
    for row in calls:
        if (row["call"], row["advice"], row["length_bytes"]) == (call, advice, PAGE):
            found += [row["gpa"] // PAGE + row["step"] * i for i in range(row["count"])]
    return found


def test_every_request_page_and_discard_of_a_qemu_is_recorded(tmp_path: Path):
    output = tmp_path / "host.balloon"
    with qemu_like("-m", "2G", "-name", "guest=stand-in", *DEVICE) as vm:
        with recording(vm, output):
            inflated = vm.send("inflate", 10_000, 1000, -1)
            deflated = vm.send("deflate", 9001, 1000, 1)
            reported = vm.send("report", "64m", "2m", "128m", "4m")
            assert vm.send("noise", 100).noise == 100
        (part,) = vm.parts
    trace = open_trace(output)
    (region,) = trace.manifest.regions
    assert (region.hva, region.length_bytes) == (part["hva"], 2 << 30)
    assert trace.manifest.vm.name == "stand-in"
    assert trace.losses == ()

    falling, rising = list(range(10_000, 9000, -1)), list(range(9001, 10_001))
    assert [did.requests for did in (inflated, deflated, reported)] == [4, 4, 1]
    assert len(rows(trace, "requests")) == 9
    assert pages(rows(trace, "requests", Queue.INFLATE)) == falling
    assert pages(rows(trace, "requests", Queue.DEFLATE)) == rising
    (report,) = rows(trace, "requests", Queue.REPORTING)
    assert report["runs"] == [{"pfn": 64 * 256, "pages": 512}, {"pfn": 128 * 256, "pages": 1024}]

    calls = rows(trace, "calls")
    assert discarded(calls, mmap.MADV_DONTNEED) == falling
    assert discarded(calls, mmap.MADV_WILLNEED) == rising
    every = [inflated, deflated, reported]
    assert sum(row["count"] for row in calls) == sum(did.calls for did in every) == 2002
    lengths = sum(row["count"] * row["length_bytes"] for row in calls)
    assert lengths == sum(did.call_bytes for did in every)


def test_pages_outside_guest_memory_cause_no_call(tmp_path: Path):
    output = tmp_path / "host.balloon"
    with qemu_like("-m", "64M", *DEVICE) as vm, recording(vm, output):
        vm.send("actual", 64 << 20)
        did = vm.send("garbage", 5, 0xFFFFFFFF, 7, 1 << 30, 9)
        vm.send("actual", (64 << 20) - 3 * PAGE)
    assert (did.pages, did.rejected, did.calls) == (5, 2, 3)
    trace = open_trace(output)
    assert pages(rows(trace, "requests")) == [5, 0xFFFFFFFF, 7, 1 << 30, 9]
    assert discarded(rows(trace, "calls"), mmap.MADV_DONTNEED) == [5, 7, 9]
    book = ledger(trace)
    lines = {line.name: (line.pages, line.status) for line in book.lines}
    assert lines["inflate: host rejected"] == (2, "not compared")
    assert lines["inflate: host discarded"] == (3, "equal")
    assert lines["device: change of actual"] == (3, "equal")
    assert book.balanced is True


@pytest.mark.parametrize(
    ("backend", "discards"),
    [
        ("ram,share=on", {(Call.MADVISE, mmap.MADV_REMOVE)}),
        ("memfd", {(Call.FALLOCATE, PUNCH), (Call.MADVISE, mmap.MADV_DONTNEED)}),
        ("file,share=on", {(Call.FALLOCATE, PUNCH), (Call.MADVISE, mmap.MADV_DONTNEED)}),
        ("file,share=off", {(Call.FALLOCATE, PUNCH), (Call.MADVISE, mmap.MADV_DONTNEED)}),
    ],
)
def test_shared_memory_is_recorded_by_every_call_that_frees_it(tmp_path: Path, backend, discards):
    output = tmp_path / "host.balloon"
    where = f",mem-path={tmp_path / 'guest'}" if backend.startswith("file") else ""
    memory = f"memory-backend-{backend},id=ram0,size={MEMORY_BYTES}{where}"
    options = ("-machine", "q35,memory-backend=ram0", "-m", "4G", "-object", memory)
    with qemu_like(*options, *DEVICE) as vm:
        with recording(vm, output):
            vm.send("actual", MEMORY_BYTES)
            down = vm.send("inflate", 100_000, 300, -1)
            up = vm.send("inflate", HIGH + 5000, 300, 1)
            vm.send("deflate", HIGH + 5000, 300, 1)
            vm.send("actual", MEMORY_BYTES - 300 * PAGE)
        parts = {(part["gpa"], part["hva"], part["length_bytes"]) for part in vm.parts}
    assert (down.failed, up.failed) == (0, 0)
    trace = open_trace(output)
    regions = trace.manifest.regions
    assert {(region.gpa, region.hva, region.length_bytes) for region in regions} == parts
    assert len(parts) == 2
    calls, high = rows(trace, "calls"), list(range(HIGH + 5000, HIGH + 5300))
    freed = list(range(100_000, 99_700, -1)) + high
    for call, advice in discards:
        assert discarded(calls, advice, call) == freed
    assert discarded(calls, mmap.MADV_WILLNEED) == high
    others = {(row["call"], row["advice"]) for row in calls}
    assert others == discards | {(Call.MADVISE, mmap.MADV_WILLNEED)}
    book = ledger(trace)
    lines = {line.name: (line.pages, line.status) for line in book.lines}
    assert lines["inflate: host discarded"] == (600, "equal")
    assert lines["device: change of actual"] == (300, "equal")
    assert book.balanced is True
