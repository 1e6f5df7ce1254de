"""Ledger and join, read batch by batch, against the same from whole tables, value for value."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench.flood_trace import write_guest, write_host
from tests.property.whole_tables import whole_join, whole_ledger
from tests.unit.capture_bundle import call, request
from tracer.account.join import join
from tracer.account.ledger import ledger
from tracer.account.merge import merge_sides
from tracer.trace.manifest import Manifest, Region, SideInfo
from tracer.trace.numbers import Numbers
from tracer.trace.reader import open_trace
from tracer.trace.schema import CALLS, MARKS, REQUESTS, Caller, Mark, Queue, Side
from tracer.trace.writer import TraceWriter

TRACES = Path("traces")
AHEAD_NS = 5_000_000
END_NS = 40_000_000
BACKINGS = ("anon", "file-private", "memfd", "shmem", "hugetlb", "some other")
TIMES = ("begin_ns", "send_ns", "kick_ns", "ack_ns", "wake_ns", "free_ns", "end_ns")


def assert_same(trace, monkeypatch):
    """Hold what is streamed of a trace against what its whole tables say."""
    streamed, whole = join(trace), whole_join(trace)
    assert streamed.clock == whole.clock
    assert [pairs.queue for pairs in streamed.queues] == [pairs.queue for pairs in whole.queues]
    for mine, other in zip(streamed.queues, whole.queues, strict=True):
        for name in ("guest_row", "host_row", "guest_only", "host_only"):
            assert np.array_equal(getattr(mine, name), getattr(other, name)), name
    assert ledger(trace) == ledger(trace, streamed) == whole_ledger(trace, monkeypatch)


@pytest.mark.parametrize("path", sorted(TRACES.glob("*.balloon")), ids=lambda path: path.stem)
def test_reference_traces_have_the_ledger_of_their_whole_tables(path, monkeypatch):
    trace = open_trace(path)
    assert_same(trace, monkeypatch)
    # As its recorder's aerostat closed it, long before; words have changed since.
    settled = {line.name: line.pages for line in trace.manifest.ledger}
    assert {line.name: line.pages for line in ledger(trace).lines} == settled


def test_a_flood_of_calls_has_the_ledger_of_its_whole_tables(tmp_path, monkeypatch):
    host = write_host(tmp_path / "host.balloon", 2100, lossy=True)
    assert_same(open_trace(host), monkeypatch)
    guest = write_guest(tmp_path / "guest.balloon", 2100)
    assert_same(open_trace(guest), monkeypatch)
    merge_sides(host, guest)
    trace = open_trace(host)
    assert_same(trace, monkeypatch)
    lines = {line.name: line.pages for line in trace.manifest.ledger}
    assert lines["inflate: host discarded"] == lines["inflate: host requests"] > 400_000
    assert len(join(trace).guest_row) > 2000


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_any_trace_has_the_ledger_of_its_whole_tables(seed):
    with tempfile.TemporaryDirectory() as work, pytest.MonkeyPatch.context() as patch:
        rng = np.random.default_rng(seed)
        sent = requests(rng, int(rng.integers(0, 60)))
        host, guest = Path(work) / "host.balloon", Path(work) / "guest.balloon"
        write(rng, host, Side.HOST, [host_row(rng, *item) for item in lossy(rng, sent)])
        write(rng, guest, Side.GUEST, [guest_row(rng, *item) for item in lossy(rng, sent)])
        for path in (host, guest):
            assert_same(open_trace(path), patch)
        merge_sides(host, guest)
        assert_same(open_trace(host), patch)


def requests(rng, count):
    """Number, queue, ranges and begin of requests whose contents come again."""
    contents = [
        [(int(pfn), int(pages)) for pfn, pages in zip(*pair, strict=True)]
        for size in rng.integers(0, 4, 12)
        for pair in [(rng.integers(0, 1 << 20, size), rng.choice([-9, 1, 2, 64], size))]
    ]
    starts = np.cumsum(rng.integers(1, 1_000_000, count)).tolist()
    queues = rng.choice([*Queue], count, p=[0.4, 0.2, 0.1, 0.1, 0.2]).tolist()
    picked = rng.integers(0, len(contents), count).tolist()
    return [
        (seq, queue, contents[content], begin_ns)
        for seq, (queue, content, begin_ns) in enumerate(zip(queues, picked, starts, strict=True))
    ]


def lossy(rng, sent):
    """Leave some out, and put some in another order than their numbers'."""
    kept = [item for item in sent if rng.random() > 0.1]
    if len(kept) > 4 and rng.random() < 0.3:
        kept[1], kept[3] = kept[3], kept[1]
    return kept


def maybe(rng, value):
    return None if rng.random() < 0.02 else int(value)


def guest_row(rng, seq, queue, runs, begin_ns):
    steps = np.cumsum(rng.integers(-20, 60_000, len(TIMES)))
    times = {name: maybe(rng, begin_ns + AHEAD_NS + step) for name, step in zip(TIMES, steps)}  # noqa: B905
    caller = rng.choice([Caller.TARGET, Caller.MIGRATION, Caller.OOM])
    return request(Side.GUEST, seq, queue, runs, caller=maybe(rng, caller), **times)


def host_row(rng, seq, queue, runs, begin_ns):
    pop_ns = begin_ns + int(rng.integers(30_000, 60_000))
    return request(
        Side.HOST,
        seq,
        queue,
        runs,
        pop_ns=maybe(rng, pop_ns),
        push_ns=maybe(rng, pop_ns + rng.integers(0, 50_000)),
        rejected_pages=maybe(rng, rng.integers(0, 3)),
        discard_calls=maybe(rng, rng.integers(0, 9)),
        discard_ns=maybe(rng, rng.integers(0, 2**62)),
        discard_bytes=maybe(rng, rng.integers(0, 2**62)),
    )


def call_row(rng):
    return call(
        maybe(rng, rng.integers(0, 64)),
        int(rng.choice([2, 3, 4, 8, 9, 24, 0x12, 0x32])),
        int(rng.integers(1, 600)),
        int(rng.integers(1, 64)) << 12,
        call=int(rng.integers(0, 4)),
        errno=int(rng.random() < 0.05),
        gpa=maybe(rng, rng.integers(0, 4 << 30)),
    )


def write(rng, path, side, rows):
    """Write one side in batches of any size."""
    name = side.name.lower()
    counters = {
        f"vmstat_balloon_{word}_{when}": int(rng.integers(0, 3000) if when == "end" else 0)
        for word in ("inflate", "deflate", "migrate")
        for when in ("begin", "end")
    }
    counters |= (
        {"counted_begin_ns": 3_000_000, "counted_end_ns": END_NS} if rng.random() < 0.5 else {}
    )
    begin_ns, end_ns = int(rng.integers(0, 4_000_000)), END_NS - int(rng.integers(0, 30_000_000))
    marks = [
        {"side": side, "ts_ns": int(ts_ns), "mark": Mark.ACTUAL, "value": maybe(rng, ts_ns << 12)}
        for ts_ns in rng.integers(0, END_NS, rng.integers(0, 4))
    ]
    tables = [("requests", rows, REQUESTS), ("marks", marks, MARKS)]
    if side is Side.HOST and rng.random() < 0.8:
        tables.append(("calls", [call_row(rng) for _ in range(int(rng.integers(0, 200)))], CALLS))
    with TraceWriter(path, side) as writer:
        for table, items, schema in tables:
            while items:
                size = int(rng.integers(1, 40))
                writer.append(table, pa.RecordBatch.from_pylist(items[:size], schema=schema))
                items = items[size:]  # noqa: PLW2901
        info = SideInfo(4096, begin_ns, end_ns, counters=counters)
        regions = [
            Region("ram", gpa << 30, None, 1 << 30, str(rng.choice(BACKINGS)), page_bytes)
            for gpa in rng.permutation(4)[: rng.integers(1, 4)].tolist()
            for page_bytes in (int(rng.choice([4096, 2 << 20])),)
        ]
        writer.close(
            Manifest(sides={name: info}, regions=tuple(regions) if side is Side.HOST else ())
        )


@given(st.lists(st.lists(st.integers(0, 60) | st.integers(2**64 - 9, 2**64 - 1))))
def test_a_set_of_numbers_holds_what_was_put_in(parts):
    numbers, everything = Numbers(), set()
    asked = np.array([*range(64), *range(2**64 - 9, 2**64)], np.uint64)
    for part in parts:
        numbers.add(np.array(part, np.uint64))
        everything |= set(part)
        assert numbers.hold(asked).tolist() == [number in everything for number in asked.tolist()]
