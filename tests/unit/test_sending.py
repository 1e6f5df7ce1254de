"""What the driver would send, checked by the device's own decoders."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.check import PlanError
from replay.plan import Context, Plan, SentRanges
from replay.ranges import expand, merge
from replay.requests import Requests, from_pfns
from replay.sending import Sending, operation_ends, sending
from replay.strategies import STRATEGIES
from replay.strategies.base import Sent
from replay.strategies.range import Range
from replay.wire import MAX_DESCRIPTOR_PAGES, decode_range_words, decode_scatterlist
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
    sent = sending(requests, plan)
    assert len(sent.form) == plan.wire_requests
    assert len(sent.wire) == plan.wire_bytes
    arrays = [np.frombuffer(part, "<u4").tolist() for part in parts(sent, Wire.PFNS)]
    assert arrays == [[7, 6, 5, 900], [6, HIGH]]
    (report,) = parts(sent, Wire.SCATTERLIST)
    decoded = decode_scatterlist(report)
    assert (decoded.start.tolist(), decoded.pages.tolist()) == ([512], [2])
    assert not decoded.rejected
    assert sent.queue.tolist() == [Queue.INFLATE, Queue.REPORTING, Queue.DEFLATE]
    assert sent.request.tolist() == [0, 2, 3]
    assert sent.wait.tolist() == [1, 1, 1]


def inflates(*blocks: list[int]) -> Requests:
    return from_pfns([(Queue.INFLATE, block) for block in blocks])


@pytest.mark.parametrize("pages", [1, 4095, 4096, 4097, 16384])
def test_a_range_of_any_length_is_one_entry(pages: int) -> None:
    requests = inflates(list(range(pages)))
    plan = STRATEGIES["range"].plan(requests, CONTEXT)
    sent = sending(requests, plan)
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


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(st.integers(0, 600), min_size=1, max_size=40, unique=True), min_size=1, max_size=4
    )
)
def test_range_words_name_what_was_inflated(blocks: list[list[int]]) -> None:
    given_pages = sorted({pfn for block in blocks for pfn in block})
    requests = inflates(*blocks)
    plan = STRATEGIES["range"].plan(requests, CONTEXT)
    sent = sending(requests, plan)
    assert named(parts(sent, Wire.RANGE_WORDS)) == given_pages
    assert len(sent.form) == plan.wire_requests
    assert len(sent.wire) == plan.wire_bytes


def test_many_words_are_split_as_the_plan_says() -> None:
    requests = inflates(list(range(0, 16384, 2)))
    plan = STRATEGIES["range"].plan(requests, CONTEXT)
    sent = sending(requests, plan)
    assert len(sent.form) == plan.wire_requests == 3
    assert named(parts(sent, Wire.RANGE_WORDS)) == list(range(0, 16384, 2))


def test_nothing_to_send() -> None:
    requests = from_pfns([(Queue.STATS, [])])
    for name in ("qemu", "range"):
        sent = sending(requests, STRATEGIES[name].plan(requests, CONTEXT))
        assert sent.start.tolist() == [0]
        assert len(sent.wire) == len(sent.form) == 0


def test_a_request_of_more_pfns_than_a_driver_sends_is_several() -> None:
    requests = from_pfns([(Queue.INFLATE, list(range(513))), (Queue.DEFLATE, [])])
    plan = STRATEGIES["qemu"].plan(requests, CONTEXT)
    sent = sending(requests, plan)
    assert [len(part) // 4 for part in parts(sent, Wire.PFNS)] == [256, 256, 1]
    assert sent.request.tolist() == [0, 0, 0]
    assert plan.sent_bytes.tolist() == [1024, 1024, 4]


def test_a_report_of_more_blocks_than_linux_gives_is_several() -> None:
    requests = from_pfns([(Queue.REPORTING, [range(i * 4, i * 4 + 2) for i in range(33)])])
    sent = sending(requests, STRATEGIES["qemu"].plan(requests, CONTEXT))
    found = [decode_scatterlist(part) for part in parts(sent, Wire.SCATTERLIST)]
    assert [len(each.start) for each in found] == [32, 1]
    assert found[1].start.tolist() == [128]
    assert sent.wait.tolist() == [1, 1]


def test_a_block_of_4_gib_takes_two_descriptors() -> None:
    most = MAX_DESCRIPTOR_PAGES
    requests = from_pfns([(Queue.REPORTING, [range(7, 7 + most + 5)])])
    sent = sending(requests, STRATEGIES["qemu"].plan(requests, CONTEXT))
    (part,) = parts(sent, Wire.SCATTERLIST)
    decoded = decode_scatterlist(part)
    assert (decoded.start.tolist(), decoded.pages.tolist()) == ([7, 7 + most], [most, 5])
    assert not decoded.rejected


def test_pages_on_both_queues_and_reports_go_in_the_order_of_the_trace() -> None:
    requests = from_pfns(
        [
            (Queue.INFLATE, [5, 6]),
            (Queue.REPORTING, [range(512, 1024)]),
            (Queue.DEFLATE, [6]),
            (Queue.REPORTING, [range(1024, 1536)]),
            (Queue.INFLATE, [9]),
        ]
    )
    for name in ("qemu", "range"):
        sent = sending(requests, STRATEGIES[name].plan(requests, CONTEXT))
        assert sent.request.tolist() == [0, 1, 2, 3, 4]
        assert sent.queue.tolist() == requests.queue.tolist()
        assert [len(part) for part in parts(sent, Wire.SCATTERLIST)] == [16, 16]
        assert decode_scatterlist(parts(sent, Wire.SCATTERLIST)[1]).start.tolist() == [1024]


class Wordy(Range):
    """Says that it sends ranges, and names none."""

    name = "wordy"

    def sent(self, requests: Requests, context: Context) -> Sent:
        return super().sent(requests, context)._replace(ranges=None)


def changed_plan(**columns: object) -> tuple[Requests, Plan]:
    requests = inflates(list(range(0, 20, 2)))
    plan = STRATEGIES["range"].plan(requests, CONTEXT)
    return requests, replace(plan, **columns)


def one_request(pages: list[int], wire: list[int]) -> SentRanges:
    count = len(pages)
    return SentRanges(np.arange(count) * 2, np.array(pages), np.array(wire))


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"sent_ranges": None}, "names no ranges"),
        ({"sent_ranges": one_request([1, 0], [0, 0])}, "no pages"),
        ({"sent_ranges": one_request([1], [0])}, "88 bytes, its content is 16"),
        ({"sent_ranges": one_request([1] * 4097, [0] * 4097)}, "1 to 4096 words"),
        ({"sent_bytes": np.array([87])}, "87 bytes"),
        (
            {"protocol": "scatterlist", "sent_ranges": one_request([1] * 33, [0] * 33)},
            "1 to 32 descriptors",
        ),
        (
            {"protocol": "scatterlist", "sent_ranges": one_request([1 << 20], [0])},
            "1048575 pages at most",
        ),
        ({"protocol": "pfns"}, "88 bytes, its content is 40"),
    ],
)
def test_what_does_not_fit_its_protocol_is_refused(columns: dict[str, object], reason: str) -> None:
    requests, plan = changed_plan(**columns)
    with pytest.raises(PlanError, match="cannot be sent") as caught:
        sending(requests, plan)
    assert reason in str(caught.value)


def test_a_strategy_of_ones_own_must_name_its_ranges() -> None:
    requests = inflates([3])
    with pytest.raises(PlanError, match="wordy"):
        sending(requests, Wordy().plan(requests, CONTEXT))


def test_operations_go_with_the_request_that_brings_their_pages() -> None:
    requests = inflates(list(range(0, 16384, 2)))
    plan = STRATEGIES["range"].plan(requests, CONTEXT)
    sent = sending(requests, plan)
    sizes = [(len(part) - 8) // 8 for part in parts(sent, Wire.RANGE_WORDS)]
    assert sizes == [4095, 4095, 2]
    assert operation_ends(plan, sent, CONTEXT).tolist() == [4095, 8190, 8192]


def test_operations_that_wait_go_with_the_request_that_ends_the_wait() -> None:
    requests = from_pfns(
        [(Queue.INFLATE, [1]), (Queue.STATS, []), (Queue.INFLATE, [2]), (Queue.STATS, [])]
    )
    plan = STRATEGIES["qemu"].plan(requests, CONTEXT)
    assert operation_ends(plan, sending(requests, plan), CONTEXT).tolist() == [1, 2]
    late = replace(plan, request=np.array([1, 3]))
    assert operation_ends(late, sending(requests, plan), CONTEXT).tolist() == [1, 2]
    nothing = from_pfns([(Queue.STATS, [])])
    empty = STRATEGIES["qemu"].plan(nothing, CONTEXT)
    assert operation_ends(empty, sending(nothing, empty), CONTEXT).tolist() == []
    with pytest.raises(PlanError, match="sends nothing"):
        operation_ends(plan, sending(nothing, empty), CONTEXT)
