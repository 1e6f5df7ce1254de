"""The device model: who owns a page, what may be discarded, and which plans are refused."""

import struct
from dataclasses import replace

import numpy as np
import pytest

from replay.backings import Advice
from replay.check import PlanError, check_plan
from replay.device import BalloonDevice
from replay.plan import Context, Plan
from replay.requests import from_pfns
from replay.strategies import STRATEGIES
from replay.wire import Reject
from tracer.trace.manifest import Region
from tracer.trace.schema import PAGE_BYTES, Queue

HOLE_PFN = 3 << 18
"""3 GiB, where a PC's memory stops; it goes on at 4 GiB."""
HIGH_PFN = 4 << 18


def context(host_page_bytes: int = PAGE_BYTES, backing: str = "anon") -> Context:
    def region(pfn: int, pages: int) -> Region:
        size = pages * PAGE_BYTES
        return Region("ram", pfn * PAGE_BYTES, None, size, backing, PAGE_BYTES)

    return Context((region(0, HOLE_PFN), region(HIGH_PFN, 1 << 18)), host_page_bytes, backing)


def le32(*pfns: int) -> bytes:
    return struct.pack(f"<{len(pfns)}I", *pfns)


def block(pfn: int, pages: int) -> bytes:
    return struct.pack("<QIHH", pfn * PAGE_BYTES, pages * PAGE_BYTES, 2, 0)


def owned(model: BalloonDevice) -> list[tuple[int, int]]:
    return list(zip(*(column.tolist() for column in model.host_owned), strict=True))


def handled(model: BalloonDevice, queue: int, data: bytes) -> list[tuple[int, int]]:
    runs = model.handle(queue, data).runs
    return list(zip(runs.start.tolist(), runs.pages.tolist(), strict=True))


def test_pages_change_hands():
    model = BalloonDevice(context())
    assert handled(model, Queue.INFLATE, le32(7, 5, 6)) == [(5, 3)]
    assert handled(model, Queue.DEFLATE, le32(6)) == [(6, 1)]
    assert owned(model) == [(5, 1), (7, 1)]


def test_pfn_in_the_hole_above_memory_and_at_the_last_page():
    model = BalloonDevice(context())
    last = HIGH_PFN + (1 << 18) - 1
    model.handle(Queue.INFLATE, le32(HOLE_PFN - 1, HOLE_PFN, HIGH_PFN, last, last + 1, 0xFFFFFFFF))
    second = int(model.context.layout.base_page[1])
    assert owned(model) == [(HOLE_PFN - 1, 1), (second, 1), (second + (1 << 18) - 1, 1)]
    assert model.rejected == {Reject.OUTSIDE: 3}


def test_repeats_and_deflate_without_inflate_are_harmless():
    model = BalloonDevice(context())
    model.handle(Queue.INFLATE, le32(5, 5))
    model.handle(Queue.INFLATE, le32(5))
    model.handle(Queue.DEFLATE, le32(5, 9, 9))
    model.handle(Queue.DEFLATE, le32(5))
    assert owned(model) == []


def test_a_pfn_that_lies_across_two_descriptors():
    model = BalloonDevice(context())
    data = le32(0x1234, 0x2345)
    model.handle(Queue.INFLATE, [data[:3], b"", data[3:6], data[6:]])
    assert owned(model) == [(0x1234, 1), (0x2345, 1)]
    assert not model.rejected


def test_a_request_of_one_page_as_compaction_sends_it():
    model = BalloonDevice(context())
    model.handle(Queue.INFLATE, le32(8))
    model.handle(Queue.INFLATE, le32(3))
    model.handle(Queue.DEFLATE, le32(8))
    assert owned(model) == [(3, 1)]


def test_reported_pages_are_the_hosts_only_during_the_request():
    model = BalloonDevice(context())
    assert handled(model, Queue.REPORTING, block(1024, 512) + block(512, 512)) == [(512, 1024)]
    assert owned(model) == []


@pytest.mark.parametrize("entry", [block(HOLE_PFN - 1, 2), block(HOLE_PFN, 4)])
def test_a_report_over_the_end_of_a_region_is_left_alone(entry):
    model = BalloonDevice(context())
    assert handled(model, Queue.REPORTING, entry) == []
    assert model.rejected == {Reject.PARTIAL: 1}


def test_a_report_of_part_of_a_host_page_is_left_alone():
    model = BalloonDevice(context(2 << 20))
    assert handled(model, Queue.REPORTING, block(512, 512) + block(1024, 256)) == [(512, 512)]
    assert model.rejected == {Reject.HOST_PAGE: 256}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"inhibited": True}, Reject.INHIBITED), ({"poison_val": 0xAA}, Reject.POISONED)],
)
def test_reports_are_left_alone_when_inhibited_or_poisoned(settings, reason):
    model = BalloonDevice(context(), **settings)
    assert handled(model, Queue.REPORTING, block(512, 512)) == []
    assert model.rejected == {reason: 512}


def test_inhibited_inflate_still_changes_hands():
    model = BalloonDevice(context(), inhibited=True)
    assert handled(model, Queue.INFLATE, le32(5)) == []
    assert owned(model) == [(5, 1)]


def test_host_page_of_64_kib_goes_when_one_request_fills_it():
    model = BalloonDevice(context(64 << 10))
    assert handled(model, Queue.INFLATE, le32(*range(31, 15, -1))) == [(16, 16)]


def test_host_page_in_two_requests_never_goes():
    """QEMU >= 4.1 forgets its bitmap with the request; 2 MiB pages can so never go at 256 PFNs."""
    model = BalloonDevice(context(64 << 10))
    assert handled(model, Queue.INFLATE, le32(*range(8))) == []
    assert handled(model, Queue.INFLATE, le32(*range(8, 16))) == []
    assert model.rejected == {Reject.HOST_PAGE: 16}


def test_inflate_and_deflate_interleaved_in_one_host_page_discard_nothing():
    """The interleaving that corrupted guest memory in QEMU 4.0 (b27b32391404)."""
    model = BalloonDevice(context(16 << 10))
    for queue, pfns in ((0, (0, 1)), (1, (0,)), (0, (2, 3)), (0, (0,))):
        assert handled(model, queue, le32(*pfns)) == ([(0, 1)] if queue else [])


def test_another_host_page_in_between_drops_the_first():
    model = BalloonDevice(context(16 << 10))
    assert handled(model, Queue.INFLATE, le32(0, 1, 2, 4, 3)) == []
    assert handled(model, Queue.INFLATE, le32(0, 0, 2, 1, 3)) == [(0, 4)]


def test_hints_start_once_and_only_on_the_id_that_was_asked_for():
    model = BalloonDevice(context())
    first, other = le32(0x80000000), le32(0x80000001)
    assert model.handle(Queue.FREE_PAGE_HINT, first).rejected == {Reject.HINT_ID: 1}
    model.ask_for_hints(0x80000000)
    assert model.handle(Queue.FREE_PAGE_HINT, other).rejected == {Reject.HINT_ID: 1}
    assert not model.hinting
    assert not model.handle(Queue.FREE_PAGE_HINT, first).rejected
    assert model.hinting
    assert not model.handle(Queue.FREE_PAGE_HINT, le32(0)).rejected
    assert not model.hinting
    replayed = model.handle(Queue.FREE_PAGE_HINT, first)
    assert replayed.rejected == {Reject.HINT_ID: 1}
    assert not model.hinting


def test_statistics_and_unknown_queues():
    model = BalloonDevice(context())
    assert model.handle(Queue.STATS, struct.pack("<HQ", 4, 99)).stats == {4: 99}
    assert model.handle(9, b"abc").rejected == {Reject.WRONG_QUEUE: 1}


REQUESTS = from_pfns(
    [
        (Queue.INFLATE, [10, 11, 12]),
        (Queue.DEFLATE, [11]),
        (Queue.REPORTING, [20, 21, 22, 23]),
        (Queue.STATS, []),
    ]
)


def plan(*operations: tuple[int, int, int, int]) -> Plan:
    """Operations as (advice, page, pages, request)."""
    columns = np.array(operations, np.int64).reshape(-1, 4).T
    return Plan(
        "mine",
        "pfns",
        columns[0].astype(np.uint8),
        columns[1].astype(np.uint64) * np.uint64(PAGE_BYTES),
        columns[2].astype(np.uint64) * np.uint64(PAGE_BYTES),
        columns[3],
    )


GONE, WANTED = Advice.DONTNEED, Advice.WILLNEED
GOOD = ((GONE, 10, 3, 0), (WANTED, 11, 1, 1), (GONE, 20, 4, 2))


def test_a_good_plan_passes():
    report = check_plan(REQUESTS, plan(*GOOD), context())
    assert (report.operations, report.gone_pages, report.host_owned_pages) == (3, 7, 2)
    assert (report.missing_pages, report.missing_reported_pages) == (0, 0)


def test_a_discard_may_wait_for_a_later_request():
    check_plan(REQUESTS, plan((GONE, 20, 4, 2), (GONE, 10, 1, 3), (GONE, 12, 1, 3)), context())


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        ([(GONE, 10, 3, 1)], "page 11 .* request 1, when the guest owns it"),
        ([(GONE, 9, 4, 0)], "page 9 .* request 0"),
        ([(GONE, 10, 3, 0), (GONE, 20, 4, 3)], "page 20 .* request 3"),
        ([(GONE, 10, 3, 0), (GONE, 20, 5, 2)], "page 24 .* request 2"),
        ([(GONE, 10, 2, 0), (GONE, 20, 4, 2)], "1 pages in the balloon .* not given back"),
        ([(GONE, 10, 3, 0), (GONE, 20, 3, 2)], "1 reported pages are not given back"),
        ([(GONE, 10, 3, 1), (GONE, 10, 3, 0)], "order"),
        ([(GONE, 10, 0, 0)], "no bytes"),
        ([(GONE, 10, 3, 4)], "request that does not exist"),
        ([(GONE, 10, 3, -1)], "request that does not exist"),
        ([(77, 10, 3, 0)], "advice that does not exist"),
        ([(GONE, HOLE_PFN, 1, 0)], "in no region"),
        ([(WANTED, HOLE_PFN - 1, 2, 0)], "in no region"),
        ([(GONE, 1 << 30, 1, 0)], "beyond the memory"),
    ],
)
def test_a_bad_plan_is_refused_with_the_reason(operations, reason):
    with pytest.raises(PlanError) as caught:
        check_plan(REQUESTS, plan(*operations), context())
    assert caught.match(reason)
    assert caught.value.remedy


def test_operations_that_wrap_or_are_misaligned_are_refused():
    good = plan(*GOOD)
    for column, value in (
        ("offset_bytes", (1 << 64) - PAGE_BYTES),
        ("length_bytes", (1 << 64) - PAGE_BYTES),
        ("offset_bytes", 1),
        ("length_bytes", 100),
    ):
        bad = getattr(good, column).copy()
        bad[0] = value
        with pytest.raises(PlanError):
            check_plan(REQUESTS, replace(good, **{column: bad}), context())


def test_columns_of_unlike_length_are_refused():
    with pytest.raises(PlanError, match="must not run") as caught:
        check_plan(REQUESTS, replace(plan(*GOOD), request=np.zeros(1, np.int64)), context())
    assert "length" in caught.value.reason


def test_advice_that_leaves_shared_memory_in_place_does_not_count():
    """DONTNEED only unmaps a memfd, so a plan of it gives nothing back."""
    shared = context(backing="memfd")
    with pytest.raises(PlanError, match="not given back"):
        check_plan(REQUESTS, plan(*GOOD), shared)
    holes = [(Advice.PUNCH_HOLE if op[0] == GONE else op[0], *op[1:]) for op in GOOD]
    check_plan(REQUESTS, plan(*holes), shared)


def test_a_discard_before_the_page_came_back_does_not_count():
    requests = from_pfns([(Queue.INFLATE, [5]), (Queue.DEFLATE, [5]), (Queue.INFLATE, [5])])
    with pytest.raises(PlanError, match="1 pages in the balloon"):
        check_plan(requests, plan((GONE, 5, 1, 0)), context())
    check_plan(requests, plan((GONE, 5, 1, 2)), context())


def test_a_page_given_twice_need_go_only_once():
    requests = from_pfns([(Queue.INFLATE, [5]), (Queue.INFLATE, [5])])
    check_plan(requests, plan((GONE, 5, 1, 0)), context())


def test_nop_need_not_discard():
    nothing = STRATEGIES["nop"].plan(REQUESTS, context())
    assert check_plan(REQUESTS, nothing, context()).missing_pages == 2


def test_on_large_host_pages_the_report_says_what_is_left():
    where = context(16 << 10)
    requests = from_pfns([(Queue.INFLATE, [4, 5]), (Queue.INFLATE, [6, 7])])
    left = check_plan(requests, STRATEGIES["qemu"].plan(requests, where), where)
    assert left.missing_pages == 4
    merged = check_plan(requests, STRATEGIES["range"].plan(requests, where), where)
    assert (merged.missing_pages, merged.gone_pages) == (0, 4)
