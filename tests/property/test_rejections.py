"""What a trace's requests are rejected for, counted at once and by the device, is the same."""

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.device import BalloonDevice
from replay.plan import Context
from replay.rejections import rejections, rejections_of
from replay.requests import from_pfns
from tests.unit.encoded import encode_scatterlist
from tests.unit.trace_samples import described
from tests.unit.trace_samples import request as trace_request
from tests.unit.trace_samples import requests as trace_requests
from tracer.trace.manifest import Region
from tracer.trace.reader import open_trace
from tracer.trace.schema import Queue, Side
from tracer.trace.writer import TraceWriter

REGIONS = tuple(
    Region("ram", pfn << 12, None, pages << 12, "anon", 4096)
    for pfn, pages in ((0, 64), (96, 32), (128, 64), (1 << 20, 1))
)
pfns = st.lists(st.integers(0, 200) | st.integers(0, (1 << 32) - 1), max_size=300)
blocks = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 100)), max_size=40)
requests = st.lists(
    st.tuples(st.sampled_from([Queue.INFLATE, Queue.DEFLATE]), pfns)
    | st.tuples(st.just(Queue.REPORTING), blocks),
    max_size=6,
)


def content(queue: Queue, items: list) -> bytes:
    if queue != Queue.REPORTING:
        return np.array(items, "<u4").tobytes()
    parts = encode_scatterlist([start for start, _ in items], [pages for _, pages in items])
    return b"".join(parts)


@given(requests, st.sampled_from([4096, 16384]))
def test_counts_are_those_of_the_device(sent, host_page_bytes):
    context = Context(REGIONS, host_page_bytes)
    device = BalloonDevice(context)
    for queue, items in sent:
        device.handle(queue, content(queue, items))
    stream = [
        (queue, [range(s, s + n) for s, n in items] if queue == Queue.REPORTING else items)
        for queue, items in sent
    ]
    found = rejections(from_pfns(stream), context)
    assert {each.reason: each.count for each in found} == {
        reason.value: count for reason, count in device.rejected.items()
    }


@settings(max_examples=40)
@given(requests, st.sampled_from([4096, 16384]), st.integers(1, 3), st.booleans())
def test_parts_of_a_trace_add_up_to_the_whole(sent, host_page_bytes, rows, is_truncated):
    stream = [
        (queue, [range(s, s + n) for s, n in items] if queue == Queue.REPORTING else items)
        for queue, items in sent
    ]
    whole = from_pfns(stream)
    made = [
        trace_request(
            seq,
            [*zip(whole.run_pfn[at].tolist(), whole.run_pages[at].tolist(), strict=True)],
            queue=whole.queue[seq],
            truncated_pages=7 if is_truncated else None,
        )
        for seq, at in enumerate(map(slice, whole.run_offsets[:-1], whole.run_offsets[1:]))
    ]
    regions = tuple(replace(region, page_size_bytes=host_page_bytes) for region in REGIONS)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "a.balloon"
        with TraceWriter(path, Side.HOST) as writer:
            for begin in range(0, len(made), rows):
                writer.append("requests", trace_requests(made[begin : begin + rows]))
            writer.close(described(regions=regions))
        found, _ = rejections_of(open_trace(path))
    assert found == rejections(
        replace(whole, truncated_pages=7 * len(made) * is_truncated),
        Context(regions, host_page_bytes),
    )


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 1 << 40)), max_size=30))
def test_pages_inside_and_whole_runs_are_those_that_cutting_finds(runs):
    layout = Context(REGIONS).layout
    start = np.array([s for s, _ in runs], np.int64)
    pages = np.array([n for _, n in runs], np.int64)
    cut = layout.clip(start, pages)
    inside = np.bincount(cut.source, cut.pages, len(runs)).astype(np.int64)
    assert layout.inside(start, pages).tolist() == inside.tolist()
    whole = cut.pages == pages[cut.source]
    kept = layout.whole(start, pages)
    assert kept.page.tolist() == cut.page[whole].tolist()
    assert kept.source.tolist() == cut.source[whole].tolist()
    assert sum(Counter(kept.source.tolist()).values()) == len(kept.page)
