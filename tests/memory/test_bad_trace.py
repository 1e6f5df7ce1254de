"""Traces that name what is no memory, and memory that is too small, through the real command."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.memory.conftest import MEMORY_PAGES, MakeTrace, request_rows
from tests.unit.command import run
from tracer.trace.manifest import Manifest, Region, SideInfo
from tracer.trace.schema import REQUESTS, Queue, Side
from tracer.trace.writer import TraceWriter

ONCE = ("-s", "qemu", "-s", "range", "--runs", "1", "--warmup", "0", "--json")


def replayed(path: Path, *options: str) -> dict:
    done = run(["replay", path, *ONCE, *options])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def write(path: Path, pfns: list[int]) -> Path:
    info = SideInfo(page_size_bytes=4096, begin_ns=0)
    region = Region("ram", 0, 0, MEMORY_PAGES << 12, "anon", 4096)
    with TraceWriter(path, Side.HOST) as writer:
        rows = request_rows(Queue.INFLATE, np.array(pfns), 0)
        writer.append("requests", pa.RecordBatch.from_pylist(rows, REQUESTS))
        writer.close(Manifest(sides={"host": info}, regions=(region,)))
    return path


def test_pages_beyond_memory_are_rejected_and_counted(tmp_path: Path) -> None:
    """Inside, the last page, the first beyond, far beyond, and the highest a PFN can be."""
    inside = [5, 9, MEMORY_PAGES - 1]
    outside = [MEMORY_PAGES, 1 << 40, (1 << 52) - 1]
    document = replayed(write(tmp_path / "wild.balloon", inside + outside))
    # The ranges are made of what the plan covers, so there nothing is left to reject.
    rejected = {"nop": len(outside), "qemu": len(outside), "range": 0}
    assert document["trace"]["rejected"] == [
        {"reason": "pages that are no guest memory", "count": len(outside)}
    ]
    found = {item["name"]: item["rejected_entries"] for item in document["strategies"]}
    assert found == rejected
    for strategy in document["strategies"][1:]:
        (measured,) = strategy["runs"]
        assert strategy["pages"] == len(inside)
        assert (measured["gone_pages"], measured["failures"]) == (len(inside), 0)


def test_whatif_counts_pages_beyond_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "wild.balloon", [5, MEMORY_PAGES, MEMORY_PAGES + 7])
    done = run(["whatif", path, "--json"])
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["trace"]["outside_pages"] == 2
    for verb in ("whatif", "show"):
        said = "Rejected by the device model: 2 x pages that are no guest memory."
        assert said in run([verb, path]).stdout


def test_too_little_memory_cuts_the_trace_and_says_so(make_trace: MakeTrace) -> None:
    path = make_trace()
    settings = replayed(path)["settings"]
    assert settings["cut_reason"] == ""
    cut = replayed(path, "--memory-limit", "2M")["settings"]
    assert 0 < cut["requests_replayed"] < settings["requests_replayed"]
    assert cut["resident_bytes"] < 2 << 20
    assert "2.0 MiB may be used" in cut["cut_reason"]
    table = run(["replay", path, *ONCE[:-1], "--memory-limit", "2M"])
    assert "2.0 MiB may be used" in " ".join((table.stdout + table.stderr).split())
