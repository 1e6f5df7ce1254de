"""Small inputs that ask for much: what they take stays in proportion to themselves."""

import json
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from replay import budget
from replay.device import BalloonDevice
from replay.plan import Context
from replay.requests import from_pfns
from replay.wire import MAX_REQUEST_BYTES, Reject
from tests.hostile.machine import MAX_BYTES, WRITE, descriptor, le32, word, words
from tests.unit.command import AEROSTAT, refused, run
from tracer.trace.errors import AerostatError, ExitCode
from tracer.trace.manifest import Manifest, Region, SideInfo
from tracer.trace.schema import REQUESTS, RUNS, Queue, Side, Wire
from tracer.trace.writer import TraceWriter

PIECES = 1000
"""Regions of one page with a hole behind each: a range over all of them is that many pieces."""
REPORTS = 50_000
REGIONS = tuple(Region("ram", 2 * i << 12, None, 4096, "anon", 4096) for i in range(PIECES))
ENDLESS = (1 << 64) - 1
LIMITED = ["prlimit", f"--as={2 << 30}", *AEROSTAT]
"""Of address space, libraries and all; pieces of every report over every region take 8 GiB."""


def bounded(device: BalloonDevice, queue: int, content: bytes, seconds: float = 2):
    tracemalloc.start()
    begin = time.process_time()
    try:
        handled = device.handle(queue, content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - begin < seconds
    assert peak < MAX_BYTES
    return handled


def test_ranges_over_all_of_many_regions() -> None:
    """A request as long as the device reads, every word of it naming all of memory."""
    device = BalloonDevice(Context(REGIONS), protocol="range_words")
    count = (MAX_REQUEST_BYTES - 8) // 16
    handled = bounded(device, Queue.INFLATE, words(*[word(0, 0), ENDLESS] * count))
    assert handled.runs.total_pages == PIECES
    assert handled.rejected[Reject.OUTSIDE] == count * ((1 << 52) - PIECES)


def test_reports_and_pfns_over_many_regions() -> None:
    device = BalloonDevice(Context(REGIONS))
    everything = descriptor(0, 0xFFFFF000, WRITE) * (MAX_REQUEST_BYTES // 16)
    handled = bounded(device, Queue.REPORTING, everything)
    assert handled.rejected[Reject.PARTIAL] == MAX_REQUEST_BYTES // 16
    same = le32(2) * (MAX_REQUEST_BYTES // 4)
    assert bounded(device, Queue.INFLATE, same).runs.total_pages == 1


def test_a_huge_request_is_cut_before_it_is_read() -> None:
    device = BalloonDevice(Context(REGIONS))
    handled = bounded(device, Queue.INFLATE, bytes(64 << 20))
    assert handled.rejected[Reject.TOO_LONG] == (64 << 20) - MAX_REQUEST_BYTES
    stats = struct.pack("<HQ", 3, 1) * (1 << 20)
    assert bounded(device, Queue.STATS, stats).stats == {3: 1}


def wide_trace(path: Path) -> Path:
    """Reports of 4 GiB each over a map of a thousand regions, in a file of a few KiB."""
    offsets = pa.array(np.arange(REPORTS + 1, dtype=np.int32))
    item = RUNS.value_field
    runs = pa.StructArray.from_arrays(
        [pa.array(np.zeros(REPORTS, np.uint64)), pa.array(np.full(REPORTS, 1 << 20, np.int32))],
        fields=list(item.type),
    )
    columns: dict[str, pa.Array] = {
        "side": pa.array(np.full(REPORTS, Side.HOST, np.uint8)),
        "seq": pa.array(np.arange(REPORTS, dtype=np.uint64)),
        "queue": pa.array(np.full(REPORTS, Queue.REPORTING, np.uint8)),
        "wire": pa.array(np.full(REPORTS, Wire.SCATTERLIST, np.uint8)),
        "pages": pa.array(np.full(REPORTS, 1 << 20, np.uint32)),
        "runs": pa.ListArray.from_arrays(offsets, runs, type=RUNS),
        "pop_ns": pa.array(np.arange(REPORTS)),
        "push_ns": pa.array(np.arange(REPORTS)),
    }
    rows = [columns.get(f.name, pa.nulls(REPORTS, f.type)) for f in REQUESTS]
    info = SideInfo(page_size_bytes=4096, begin_ns=0)
    with TraceWriter(path, Side.HOST) as writer:
        writer.append("requests", pa.RecordBatch.from_arrays(rows, schema=REQUESTS))
        writer.close(Manifest(sides={"host": info}, regions=REGIONS))
    return path


def long_trace(path: Path, pages: int) -> Path:
    """One request of one run: a file of 4 KiB, whatever it names."""
    row = {"side": Side.HOST, "seq": 0, "queue": Queue.INFLATE, "wire": Wire.PFNS, "pages": pages}
    row["runs"] = [{"pfn": 0, "pages": pages}]
    region = Region("ram", 0, None, 8 << 30, "anon", 4096)
    with TraceWriter(path, Side.HOST) as writer:
        writer.append("requests", pa.RecordBatch.from_pylist([row], REQUESTS))
        info = SideInfo(page_size_bytes=4096, begin_ns=0)
        writer.close(Manifest(sides={"host": info}, regions=(region,)))
    return path


@pytest.mark.parametrize("verb", ["whatif", "replay"])
def test_a_request_of_more_pages_than_this_process_can_plan(verb: str, tmp_path: Path) -> None:
    path = long_trace(tmp_path / "long.balloon", 1 << 26)
    err = refused(ExitCode.FAILURE, verb, path, "-s", "qemu", command=LIMITED)
    assert "not enough memory" in err


def test_a_request_of_more_pages_than_any_replay_can_plan(tmp_path: Path) -> None:
    path = long_trace(tmp_path / "long.balloon", (1 << 27) + 1)
    for verb in ("whatif", "replay"):
        assert "134217729 balloon pages" in refused(ExitCode.FAILURE, verb, path, command=LIMITED)


def test_pages_are_held_against_the_memory_that_there_is(monkeypatch) -> None:
    requests = from_pfns([(Queue.INFLATE, [*range(1000)]), (Queue.REPORTING, [range(1000, 5000)])])
    monkeypatch.setattr(budget, "available_bytes", lambda: 1000 * budget.PLANNING_BYTES)
    budget.require_planning(requests)
    monkeypatch.setattr(budget, "available_bytes", lambda: 1000 * budget.PLANNING_BYTES - 1)
    with pytest.raises(AerostatError, match="not enough memory to plan 1,000 balloon pages"):
        budget.require_planning(requests)


def test_a_trace_of_reports_over_all_of_many_regions(tmp_path: Path) -> None:
    path = wide_trace(tmp_path / "wide.balloon")
    done = run(["whatif", path, "-s", "range", "--json"], command=LIMITED)
    assert done.returncode == 0, done.stderr
    (rejected,) = json.loads(done.stdout)["trace"]["rejected"]
    assert rejected == {"reason": Reject.PARTIAL.value, "count": REPORTS}
    done = run(["show", path], command=LIMITED)
    assert f"{REPORTS:,} x {Reject.PARTIAL.value}" in done.stdout
    done = run(["replay", path, "-s", "range", "--runs", "1", "--warmup", "0"], command=LIMITED)
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr
    assert "MemoryError" not in done.stderr
