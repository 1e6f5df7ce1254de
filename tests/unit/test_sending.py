"""What the driver would send, checked by the device's own decoders."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.plan import Context
from replay.ranges import expand, merge
from replay.requests import Requests, from_pfns
from replay.sending import Sending, sending
from replay.strategies import STRATEGIES
from replay.wire import decode_pfns, decode_range_words
from tracer.trace.manifest import Region
from tracer.trace.schema import Queue, Wire

REGIONS = (
    Region("low", 0, 0, 64 << 20, "anon", 4096),
    Region("high", 1 << 32, 0, 64 << 20, "anon", 4096),
)
CONTEXT = Context(REGIONS)
HIGH = 1 << 20


def parts(sent: Sending, form: Wire) -> list[bytes]:
    bounds = sent.start.tolist()
    return [
        sent.wire[begin:end].tobytes()
        for begin, end, kind in zip(bounds, bounds[1:], sent.form.tolist(), strict=False)
        if kind == form
    ]


def test_pfns_are_sent_as_recorded() -> None:
    stream = [
        (Queue.INFLATE, [7, 6, 5, 900]),
        (Queue.STATS, []),
        (Queue.REPORTING, [512, 513]),
        (Queue.DEFLATE, [6, HIGH]),
    ]
    requests = from_pfns(stream)
    plan = STRATEGIES["qemu"].plan(requests, CONTEXT)
    sent = sending(requests, plan, CONTEXT)
    assert len(sent.form) == plan.wire_requests
    assert len(sent.wire) == plan.wire_bytes
    arrays = [np.frombuffer(part, "<u4").tolist() for part in parts(sent, Wire.PFNS)]
    assert arrays == [[7, 6, 5, 900], [6, HIGH]]
    (report,) = parts(sent, Wire.SCATTERLIST)
    assert np.frombuffer(report, "<u8").tolist() == [512 << 12, 2 << 12]
    assert decode_pfns(parts(sent, Wire.PFNS)[0]) is not None


def inflates(*blocks: list[int]) -> Requests:
    return from_pfns([(Queue.INFLATE, block) for block in blocks])


@pytest.mark.parametrize("pages", [1, 4095, 4096, 4097, 16384])
def test_a_range_of_any_length_is_one_entry(pages: int) -> None:
    requests = inflates(list(range(pages)))
    plan = STRATEGIES["range"].plan(requests, CONTEXT)
    sent = sending(requests, plan, CONTEXT)
    (content,) = parts(sent, Wire.RANGE_WORDS)
    assert named([content]) == list(range(pages))
    assert len(content) == 8 + (8 if pages < 4096 else 16) == plan.wire_bytes


def named(contents: list[bytes]) -> list[int]:
    """PFNs that requests of range words name, in order."""
    pfns: list[int] = []
    for content in contents:
        decoded = decode_range_words(content)
        assert not decoded.rejected
        runs = merge(np.asarray(decoded.start), np.asarray(decoded.pages))
        pfns += expand(runs).tolist()
    return pfns


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(0, 600), min_size=1, max_size=40, unique=True), min_size=1, max_size=4
    )
)
def test_range_words_name_what_was_inflated(blocks: list[list[int]]) -> None:
    given_pages = sorted({pfn for block in blocks for pfn in block})
    requests = inflates(*blocks)
    plan = STRATEGIES["range"].plan(requests, CONTEXT)
    sent = sending(requests, plan, CONTEXT)
    assert named(parts(sent, Wire.RANGE_WORDS)) == given_pages
    assert len(sent.form) == plan.wire_requests
    assert len(sent.wire) == plan.wire_bytes


def test_many_words_are_split_as_the_plan_says() -> None:
    requests = inflates(list(range(0, 16384, 2)))
    plan = STRATEGIES["range"].plan(requests, CONTEXT)
    sent = sending(requests, plan, CONTEXT)
    assert len(sent.form) == plan.wire_requests == 3
    assert named(parts(sent, Wire.RANGE_WORDS)) == list(range(0, 16384, 2))


def test_nothing_to_send() -> None:
    requests = from_pfns([(Queue.STATS, [])])
    for name in ("qemu", "range"):
        sent = sending(requests, STRATEGIES[name].plan(requests, CONTEXT), CONTEXT)
        assert sent.start.tolist() == [0]
        assert len(sent.wire) == len(sent.form) == 0
