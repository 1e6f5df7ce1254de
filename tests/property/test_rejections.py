"""What a trace's requests are rejected for, counted at once and by the device, is the same."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.device import BalloonDevice
from replay.plan import Context
from replay.rejections import rejections
from replay.requests import from_pfns
from replay.wire import encode_scatterlist
from tracer.trace.manifest import Region
from tracer.trace.schema import Queue

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


@settings(deadline=None)
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


@settings(deadline=None)
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
