"""Small traces whose discards these tests really carry out."""

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from replay.budget import huge_pool_bytes
from tracer.trace.errors import AerostatError
from tracer.trace.manifest import Manifest, Region, SideInfo
from tracer.trace.schema import CALLS, REQUESTS, RESIDENCY, Queue, Side, Wire
from tracer.trace.writer import TraceWriter

MEMORY_BYTES = 64 << 20
MEMORY_PAGES = MEMORY_BYTES >> 12
INFLATED_PAGES = 2048
FIRST_PFN = 4096
DISCARD_NS = 1000
HUGE_PAGES_WANTED = 64


def balloon_pfns(seed: int = 5) -> np.ndarray:
    """PFNs as a guest under pressure gives them: all of a stretch, but in shuffled blocks of 8."""
    blocks = np.arange(INFLATED_PAGES // 8)
    np.random.default_rng(seed).shuffle(blocks)
    return (FIRST_PFN + blocks[:, None] * 8 + np.arange(8)).reshape(-1)


def request_rows(queue: Queue, pfns: np.ndarray, first_seq: int) -> list[dict]:
    rows = []
    for seq, begin in enumerate(range(0, len(pfns), 256), first_seq):
        part = pfns[begin : begin + 256]
        start = 1_000_000 * seq
        rows.append(
            {
                "side": int(Side.HOST),
                "seq": seq,
                "queue": int(queue),
                "wire": int(Wire.PFNS),
                "pages": len(part),
                "runs": [{"pfn": int(pfn), "pages": 1} for pfn in part],
                "pop_ns": start,
                "push_ns": start + 300_000,
            }
        )
    return rows


def call_rows(requests: list[dict], extra_calls: int) -> list[dict]:
    """One row a request, and one of the VMM's calls on memory that is not the guest's."""
    rows = [
        {
            "side": int(Side.HOST),
            "request_seq": row["seq"],
            "tid": 1,
            "call": 0,
            "advice": 4 if row["queue"] == Queue.INFLATE else 3,
            "gpa": row["runs"][0]["pfn"] << 12,
            "length_bytes": 4096,
            "step": 0,
            "count": row["pages"],
            "first_ns": row["pop_ns"],
            "last_ns": row["push_ns"],
            "total_ns": row["pages"] * DISCARD_NS,
            "worst_ns": DISCARD_NS,
            "errno": 0,
        }
        for row in requests
    ]
    rows[0]["count"] += extra_calls
    return [*rows, rows[0] | {"gpa": None, "advice": 0, "count": 77}]


def residency_rows(huge: bool) -> list[dict]:
    half = MEMORY_PAGES // 2
    return [
        {"ts_ns": 1, "pfn": 0, "pages": half, "resident": True, "huge": huge},
        {"ts_ns": 1, "pfn": half, "pages": half, "resident": False, "huge": False},
    ]


MakeTrace = Callable[..., Path]


@pytest.fixture
def make_trace(tmp_path: Path) -> MakeTrace:
    """Write host-side traces."""

    def make(name: str = "small", **how: Any) -> Path:
        return write_trace(tmp_path / f"{name}.balloon", **how)

    return make


HOST = SideInfo(page_size_bytes=4096, begin_ns=0)


def write_trace(
    path: Path,
    *,
    huge: bool = False,
    lost: int = 0,
    extra_calls: int = 0,
    backing: str = "anon",
    page_bytes: int = 4096,
    host: SideInfo = HOST,
) -> Path:
    """Write a host-side trace: INFLATED_PAGES in, a quarter of them out again."""
    region = Region("ram", 0, 0, MEMORY_BYTES, backing, page_bytes)
    pfns = balloon_pfns()
    rows = request_rows(Queue.INFLATE, pfns, 0)
    rows += request_rows(Queue.DEFLATE, pfns[: INFLATED_PAGES // 4], len(rows))
    tables = {
        "requests": pa.RecordBatch.from_pylist(rows, REQUESTS),
        "calls": pa.RecordBatch.from_pylist(call_rows(rows, extra_calls), CALLS),
        "residency": pa.RecordBatch.from_pylist(residency_rows(huge), RESIDENCY),
    }
    with TraceWriter(path, Side.HOST) as writer:
        for table, batch in tables.items():
            writer.append(table, batch)
        writer.loss("requests", lost, 0, 10)
        writer.close(Manifest(sides={"host": host}, regions=(region,)))
    return path


THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TRIED_BYTES = 64 << 20


def huge_bytes(address: int) -> int:
    """Bytes in huge pages of the mapping that holds an address (proc(5), smaps)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, *rest = line.split()
        if "-" in head and not head.endswith(":"):
            begin, end = (int(part, 16) for part in head.split("-"))
            inside = begin <= address < end
        elif inside and head == "AnonHugePages:":
            return int(rest[0]) << 10
    return 0


@pytest.fixture
def transparent_huge_pages() -> None:
    """Skip where this kernel gives no huge page to memory that asks for them: proven by asking.

    All of what these tests can want is asked for and touched, with nothing of aerostat's.
    """
    if not THP.exists():
        pytest.skip("the kernel has no transparent huge pages (CONFIG_TRANSPARENT_HUGEPAGE)")
    with mmap.mmap(-1, TRIED_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as tried:
        tried.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, TRIED_BYTES, mmap.PAGESIZE):
            tried[at] = 1
        view = np.frombuffer(tried, np.uint8)
        given = huge_bytes(view.ctypes.data + TRIED_BYTES // 2)
        del view
    if given < TRIED_BYTES // 2:
        setting = THP.read_text().strip()
        pytest.skip(f"{given >> 20} of {TRIED_BYTES >> 20} MiB came in huge pages (THP: {setting})")


POOL = Path("/proc/sys/vm/nr_hugepages")


@pytest.fixture
def huge_page_pool() -> Iterator[int]:
    """Reserve huge pages of 2 MiB for a test and give them back; skip where none can be had.

    Yields:
        Huge pages that are free.
    """
    before = int(POOL.read_text()) if POOL.exists() else 0
    reason = f"{POOL} does not exist"
    try:
        POOL.write_text(str(before + HUGE_PAGES_WANTED))
        reason = f"of {HUGE_PAGES_WANTED} asked of {POOL} none came: memory is in pieces"
    except OSError as error:
        reason = str(error)
    try:
        free = huge_pool_bytes() >> 21
    except AerostatError:
        pytest.skip(f"no huge page of 2 MiB could be reserved: {reason}")
    if free < HUGE_PAGES_WANTED:
        POOL.write_text(str(before))
        pytest.skip(f"no huge page of 2 MiB could be reserved: {free} of {HUGE_PAGES_WANTED} came")
    yield free
    if int(POOL.read_text()) != before:
        POOL.write_text(str(before))
