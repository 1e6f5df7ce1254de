"""Requests out of a trace that the real writer wrote, and out of one that nobody should trust."""

from pathlib import Path

import pyarrow as pa
import pytest

from aerostat.verbs.record import command as record
from replay.requests import (
    MAX_BALLOON_PAGES,
    NOT_OBSERVED_NS,
    from_pfns,
    load_requests,
    memory_map,
)
from tracer.account.merge import merge_sides
from tracer.trace.errors import AerostatError, TraceError
from tracer.trace.manifest import Manifest, Region, SideInfo
from tracer.trace.reader import Trace, open_trace
from tracer.trace.schema import PAGE_BYTES, REQUESTS, Queue, Side, Wire
from tracer.trace.writer import TraceWriter

GIB = 1 << 30
MEMORY = (Region("ram", 0, None, GIB, "anon", PAGE_BYTES),)


def row(seq, queue, runs, side=Side.HOST, **columns):
    listed = None if runs is None else [{"pfn": pfn, "pages": pages} for pfn, pages in runs]
    return {
        "side": side,
        "seq": seq,
        "queue": queue,
        "wire": Wire.PFNS,
        "pages": sum(abs(pages) for _, pages in runs or []),
        "runs": listed,
        **columns,
    }


def bundle(path: Path, *batches: list[dict], regions=MEMORY, side=Side.HOST) -> Path:
    writer = TraceWriter(path / f"{side.name}.balloon", side)
    for rows in batches:
        writer.append("requests", pa.RecordBatch.from_pylist(rows, schema=REQUESTS))
    info = SideInfo(page_size_bytes=4096, begin_ns=1)
    writer.close(Manifest(sides={side.name.lower(): info}, regions=regions))
    return writer.path


def trace_of(path: Path, *batches: list[dict], regions=MEMORY, side=Side.HOST) -> Trace:
    return open_trace(bundle(path, *batches, regions=regions, side=side))


def test_requests_come_in_order_with_their_wire_content(tmp_path):
    requests = load_requests(
        trace_of(
            tmp_path,
            [
                row(2, Queue.STATS, None, pop_ns=30),
                row(1, Queue.DEFLATE, [(9, 1), (3, 2)], pop_ns=20, truncated_pages=5),
            ],
            [row(0, Queue.INFLATE, [(9, -3)], push_ns=10), row(3, Queue.REPORTING, [(512, 512)])],
        )
    )
    assert requests.queue.tolist() == [0, 1, 2, 4]
    assert requests.time_ns.tolist() == [10, 20, 30, NOT_OBSERVED_NS]
    assert [requests.pfns(i).tolist() for i in range(3)] == [[9, 8, 7], [9, 3, 4], []]
    assert requests.pages.tolist() == [3, 3, 0, 512]
    assert requests.truncated_pages == 5


def test_the_hosts_rows_are_used_where_there_are_any(tmp_path):
    guest = [row(0, Queue.INFLATE, [(1, 1)], Side.GUEST, send_ns=5)]
    host = bundle(tmp_path, [row(0, Queue.INFLATE, [(1, 1)], pop_ns=105)])
    merge_sides(host, bundle(tmp_path, guest, side=Side.GUEST, regions=()))
    assert open_trace(host).table("requests").num_rows == 2
    assert load_requests(open_trace(host)).time_ns.tolist() == [105]


def test_the_guests_rows_are_used_where_the_host_saw_none(tmp_path):
    rows = [row(0, Queue.INFLATE, [(1, 1)], Side.GUEST, begin_ns=4)]
    requests = load_requests(trace_of(tmp_path, rows, side=Side.GUEST))
    assert (requests.queue.tolist(), requests.time_ns.tolist()) == ([0], [4])


def test_a_trace_without_requests_is_an_empty_stream(tmp_path):
    requests = load_requests(trace_of(tmp_path))
    assert len(requests) == 0
    assert requests.pages.tolist() == []
    assert [len(column) for column in requests.runs_of(Queue.INFLATE)] == [0, 0, 0]


def test_one_chunk_is_not_copied(tmp_path):
    trace = trace_of(tmp_path, [row(i, Queue.INFLATE, [(i, 1)], pop_ns=i) for i in range(9)])
    requests = load_requests(trace)
    assert not requests.run_pfn.flags.owndata
    assert not requests.run_pages.flags.owndata


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([row(0, Queue.INFLATE, [(5, 0)])], "run of no pages"),
        ([row(0, Queue.INFLATE, [(1 << 52, 1)])], "2\\*\\*52"),
        ([row(0, Queue.INFLATE, [((1 << 64) - 1, 1)])], "2\\*\\*52"),
        ([row(0, Queue.INFLATE, [(1, -3)])], "below PFN 0"),
        ([row(0, Queue.INFLATE, [(1 << 40, -(1 << 31))])], "balloon pages"),
        ([row(i, Queue.INFLATE, [(0, MAX_BALLOON_PAGES)]) for i in range(2)], "balloon pages"),
        ([row(0, 9, [])], "queue 9 does not exist"),
    ],
)
def test_a_trace_that_no_guest_can_have_made_is_refused(tmp_path, rows, reason):
    for entry in rows:
        entry["pages"] = 1
    with pytest.raises(TraceError, match="cannot be replayed") as caught:
        load_requests(trace_of(tmp_path, rows))
    assert caught.match(reason)
    assert caught.value.remedy


def test_a_falling_run_down_to_page_zero_is_lawful(tmp_path):
    requests = load_requests(trace_of(tmp_path, [row(0, Queue.INFLATE, [(2, -3)])]))
    assert requests.pfns(0).tolist() == [2, 1, 0]


def test_the_memory_map_comes_from_the_manifest(tmp_path):
    assert memory_map(trace_of(tmp_path)) == MEMORY


def test_a_trace_without_a_memory_map_says_how_to_get_one(tmp_path):
    with pytest.raises(TraceError, match="holds no memory map") as caught:
        memory_map(trace_of(tmp_path, regions=()))
    pid = caught.value.remedy.split("aerostat record ")[1].split()[0]
    assert pid in {option for param in record.params for option in param.opts}


@pytest.mark.parametrize(
    "regions",
    [
        (Region("ram", 0, None, 2 << 40, "anon", PAGE_BYTES),),
        (*MEMORY, Region("more", GIB // 2, None, GIB, "anon", PAGE_BYTES)),
    ],
)
def test_a_memory_map_beyond_a_tib_or_with_overlaps_is_refused(tmp_path, regions):
    with pytest.raises(AerostatError, match=r"overlap|memory map cannot be replayed"):
        memory_map(trace_of(tmp_path, regions=regions))


def test_the_first_requests_of_a_stream():
    requests = from_pfns([(Queue.INFLATE, [1, 2, 9]), (Queue.STATS, []), (Queue.DEFLATE, [2])])
    early = requests.before(1)
    assert (len(early), early.pfns(0).tolist(), len(early.run_pfn)) == (1, [1, 2, 9], 2)


def test_entries_that_touch_stay_apart_and_pfns_that_touch_are_one_run():
    blocks = from_pfns([(Queue.REPORTING, [range(4, 8), range(8, 9)]), (Queue.INFLATE, range(3))])
    assert blocks.run_offsets.tolist() == [0, 2, 3]
    assert blocks.run_pfn.tolist() == [4, 8, 0]
    assert blocks.run_pages.tolist() == [4, 1, 3]


@pytest.mark.parametrize("content", [[range(4, 4)], [range(8, 4, -1)], [range(2), 7]])
def test_entries_that_no_scatterlist_holds_are_refused(content):
    with pytest.raises(ValueError, match="entries are rising ranges"):
        from_pfns([(Queue.REPORTING, content)])
