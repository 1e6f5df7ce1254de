"""Every protocol, over real virtqueues: what the device decodes is what the guest gave."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay import native
from replay.device import BalloonDevice
from replay.native.exchange import exchange
from replay.native.types import Agreed
from replay.plan import Context, Plan
from replay.ranges import Runs, expand, merge
from replay.requests import Requests, from_pfns
from replay.sending import Sending, operation_ends, sending
from replay.strategies import STRATEGIES
from replay.wire import Decoded, decode_pfns, decode_range_words, decode_scatterlist
from tracer.trace.manifest import Region
from tracer.trace.schema import Queue, Wire

REGIONS = (
    Region("low", 0, 0, 4 << 20, "anon", 4096),
    Region("high", 1 << 32, 0, 4 << 20, "anon", 4096),
)
CONTEXT = Context(REGIONS)
MAP = [(0, 4 << 20, 0), (1 << 32, 4 << 20, 4 << 20)]
PROTOCOLS = ("qemu", "range", "scatter")
DECODERS: dict[int, Callable[[bytes], Decoded]] = {
    Wire.PFNS: decode_pfns,
    Wire.RANGE_WORDS: decode_range_words,
    Wire.SCATTERLIST: decode_scatterlist,
}

pfns = st.one_of(st.integers(0, 1023), st.integers(1 << 20, (1 << 20) + 1023))
runs = st.tuples(pfns, st.integers(1, 300)).map(
    lambda drawn: [p for p in range(drawn[0], sum(drawn)) if p & 0xFFFFF < 1024]
)
moves = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([Queue.INFLATE, Queue.DEFLATE]), runs),
        st.tuples(
            st.just(Queue.REPORTING),
            st.lists(
                st.tuples(pfns, st.integers(1, 64)).map(lambda r: range(r[0], sum(r))),
                min_size=1,
                max_size=40,
            ),
        ),
    ),
    max_size=12,
)


def received(sent: Sending, agreed: Agreed) -> list[bytes]:
    found = exchange(sent, agreed)
    assert (found.refused, found.requests) == (0, len(sent))
    assert found.received.tobytes() == sent.wire.tobytes()
    whole, start = found.received.tobytes(), found.received_start.tolist()
    return [whole[begin:end] for begin, end in pairwise(start)]


def pages_by_turn(
    queue: list[int], order: list[int], named: list[list[int]]
) -> list[tuple[int, int, set[int]]]:
    """Queue, last request and pages of each stretch of requests of one queue, reports apart."""
    found: list[tuple[int, int, set[int]]] = []
    for kind, request, pages in zip(queue, order, named, strict=True):
        if found and kind != Queue.REPORTING and found[-1][0] == kind:
            found[-1] = (kind, request, found[-1][2] | set(pages))
        elif pages:
            found.append((kind, request, set(pages)))
    return found


def balloon_only(stream: list[tuple[int, int, set[int]]]) -> list[tuple[int, set[int]]]:
    return [(kind, pages) for kind, _, pages in stream if kind != Queue.REPORTING]


def given_by(requests: Requests) -> list[tuple[int, int, set[int]]]:
    count = len(requests)
    kept = [i for i in range(count) if requests.queue[i] != Queue.REPORTING]
    return pages_by_turn(
        [int(requests.queue[i]) for i in kept], kept, [requests.pfns(i).tolist() for i in kept]
    )


@pytest.mark.parametrize("indirect", [True, False])
@pytest.mark.parametrize("name", PROTOCOLS)
@settings(max_examples=60)
@given(moves)
def test_every_protocol_says_the_same(
    name: str, indirect: bool, stream: list[tuple[Queue, list[int]]]
) -> None:
    requests = from_pfns(stream)
    plan = STRATEGIES[name].plan(requests, CONTEXT)
    sent = sending(requests, plan)
    assert (len(sent), len(sent.wire)) == (plan.wire_requests, plan.wire_bytes)
    contents = received(sent, Agreed(indirect=indirect))
    decoded = [
        DECODERS[form](content) for form, content in zip(sent.form.tolist(), contents, strict=True)
    ]
    assert not any(each.rejected for each in decoded)
    named = [expand(Runs(each.start, each.pages)).tolist() for each in decoded]
    is_balloon = sent.queue != Queue.REPORTING
    mine = pages_by_turn(
        sent.queue[is_balloon].tolist(),
        sent.request[is_balloon].tolist(),
        [pages for pages, mine in zip(named, is_balloon.tolist(), strict=True) if mine],
    )
    assert balloon_only(mine) == balloon_only(given_by(requests))
    _agrees_with_the_device(name, sent, contents)
    _reports_are_as_recorded(requests, sent, named)
    found = native.translate(sent.wire, sent.start, sent.form, MAP)
    assert found.entries == sum(len(each.start) for each in decoded)
    _operations_come_after_their_pages(plan, sent, named)


def _operations_come_after_their_pages(plan: Plan, sent: Sending, named: list[list[int]]) -> None:
    """A device that serves request by request has been given what it advises."""
    ends = operation_ends(plan, sent, CONTEXT).tolist()
    assert len(ends) == len(sent)
    assert (ends[-1] if ends else 0) == len(plan)
    begun, seen = 0, set()
    for end, pfns_of_one in zip(ends, named, strict=True):
        seen |= set(CONTEXT.layout.pages_of(np.array(pfns_of_one, np.int64)).tolist())
        for offset, length in zip(
            plan.offset_bytes[begun:end].tolist(),
            plan.length_bytes[begun:end].tolist(),
            strict=True,
        ):
            assert seen.issuperset(range(offset >> 12, (offset + length) >> 12))
        begun = end


def _agrees_with_the_device(name: str, sent: Sending, contents: list[bytes]) -> None:
    """The device model takes the same bytes and ends with the same pages in the balloon."""
    model = BalloonDevice(CONTEXT, protocol=STRATEGIES[name].protocol)
    owned: set[int] = set()
    for queue, content in zip(sent.queue.tolist(), contents, strict=True):
        handled = model.handle(queue, content)
        pages = set(expand(handled.runs).tolist())
        if queue == Queue.INFLATE:
            owned |= pages
        elif queue == Queue.DEFLATE:
            owned -= pages
    assert set(expand(model.host_owned).tolist()) == owned


def _reports_are_as_recorded(requests: Requests, sent: Sending, named: list[list[int]]) -> None:
    for index in np.flatnonzero(requests.queue == Queue.REPORTING).tolist():
        mine = [
            pages
            for pages, request, queue in zip(
                named, sent.request.tolist(), sent.queue.tolist(), strict=True
            )
            if request == index and queue == Queue.REPORTING
        ]
        assert [page for pages in mine for page in pages] == requests.pfns(index).tolist()


def test_merged_pages_are_those_of_every_request() -> None:
    """A case by hand: one inflate in two requests, PFNs falling, over both regions."""
    high = 1 << 20
    requests = from_pfns([(Queue.INFLATE, [9, 8, 7, high + 1]), (Queue.INFLATE, [high, 3])])
    for name in PROTOCOLS:
        sent = sending(requests, STRATEGIES[name].plan(requests, CONTEXT))
        decoded = [
            DECODERS[form](content)
            for form, content in zip(sent.form.tolist(), received(sent, Agreed()), strict=True)
        ]
        ranges = merge(
            np.concatenate([each.start for each in decoded]),
            np.concatenate([each.pages for each in decoded]),
        )
        assert ranges.start.tolist() == [3, 7, high]
        assert ranges.pages.tolist() == [1, 3, 2]
        assert len(sent) == {"qemu": 2, "range": 1, "scatter": 3}[name]
