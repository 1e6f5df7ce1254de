"""Each strategy on cases with a name."""

import time

import numpy as np
import pytest

from replay.backings import Advice
from replay.check import check_plan
from replay.requests import Requests, from_pfns
from replay.strategies import STRATEGIES, load_strategy
from replay.strategies.range import Range
from replay.strategies.select import Pieces
from replay.strategies.vectored import MAX_CALL_BYTES, joint_calls
from replay.whatif import what_if
from tests.unit.planned import IN, OUT, REPORT, context, listed, planned, where_it_works
from tracer.trace.errors import AerostatError
from tracer.trace.runs import encode_runs
from tracer.trace.schema import Queue


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_says_what_it_is(name):
    strategy = STRATEGIES[name]
    assert strategy.name == name
    assert strategy.source
    new = {"range": "range_words", "bulk": "range_words", "scatter": "scatterlist"}
    assert strategy.protocol == new.get(name, "pfns")
    assert strategy.causal == (name != "oracle")


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_empty_trace_makes_an_empty_plan(name):
    plan = STRATEGIES[name].plan(from_pfns([]), context())
    assert (len(plan), plan.wire_requests, plan.wire_bytes) == (0, 0, 0)


@pytest.mark.parametrize("name", STRATEGIES)
def test_reports_act_within_their_own_request(name):
    """The guest may use a block again once the request is acknowledged."""
    requests = from_pfns([(IN, [1]), (REPORT, [4, 5, 6]), (IN, [2]), (REPORT, [8]), (IN, [3])])
    acted = {by for _, page, _, by in planned(name, requests) if page in (4, 8)}
    assert acted == (set() if name == "nop" else {1, 3})


def test_qemu_discards_in_wire_order_and_keeps_repeats():
    requests = from_pfns([(IN, [5, 3, 5, 99]), (OUT, [3, 3])])
    assert planned("qemu", requests) == [
        ("DONTNEED", 5, 1, 0),
        ("DONTNEED", 3, 1, 0),
        ("DONTNEED", 5, 1, 0),
        ("WILLNEED", 3, 1, 1),
        ("WILLNEED", 3, 1, 1),
    ]


def test_qemu_issues_both_calls_on_each_page_of_a_file():
    assert planned("qemu", from_pfns([(IN, [5, 3])]), context(backing="memfd")) == [
        ("PUNCH_HOLE", 5, 1, 0),
        ("DONTNEED", 5, 1, 0),
        ("PUNCH_HOLE", 3, 1, 0),
        ("DONTNEED", 3, 1, 0),
    ]


def test_qemu_on_host_pages_of_16_kib():
    requests = from_pfns([(IN, [7, 6, 5, 4, 0, 1, 2]), (IN, [3]), (OUT, [5, 6])])
    assert planned("qemu", requests, context(host_page_bytes=16384)) == [
        ("DONTNEED", 4, 4, 0),
        ("WILLNEED", 4, 4, 2),
        ("WILLNEED", 4, 4, 2),
    ]


def test_qemu_can_never_free_a_huge_page_with_linux_requests():
    pages = list(range(1024))
    requests = from_pfns([(IN, pages[at : at + 256]) for at in range(0, 1024, 256)])
    where = context((0, 1024), host_page_bytes=2 << 20, backing="hugetlb")
    assert planned("qemu", requests, where) == []
    assert planned("range", requests, where) == [("PUNCH_HOLE", 0, 1024, 3)]


def test_adjacent_merges_up_down_and_at_both_ends():
    requests = from_pfns([(IN, [5, 6, 4, 7, 1, 9, 8]), (IN, [10])])
    assert planned("adjacent", requests) == [
        ("DONTNEED", 4, 4, 0),
        ("DONTNEED", 1, 1, 0),
        ("DONTNEED", 8, 2, 0),
        ("DONTNEED", 10, 1, 1),
    ]


@pytest.mark.parametrize(
    ("pfns", "ranges"),
    [([5, 6, 4, 5, 6], [(4, 3), (5, 2)]), ([6, 5, 7, 6, 5], [(5, 3), (5, 2)])],
)
def test_adjacent_begins_anew_where_a_run_turns_back(pfns, ranges):
    """The first page of the second run still touches the range; the next lies inside it."""
    found = planned("adjacent", from_pfns([(IN, pfns)]))
    assert [(page, pages) for _, page, pages, _ in found] == ranges


def test_request_never_merges_across_requests_or_regions():
    where = context((0, 8), (8, 8))
    requests = from_pfns([(IN, [9, 7, 8, 6, 7]), (IN, [5])])
    second = int(where.layout.base_page[1])
    assert planned("request", requests, where) == [
        ("DONTNEED", 6, 2, 0),
        ("DONTNEED", second, 2, 0),
        ("DONTNEED", 5, 1, 1),
    ]


def test_range_joins_an_episode_and_reports_do_not_end_it():
    requests = from_pfns([(IN, [5]), (REPORT, [12]), (IN, [4]), (Queue.STATS, []), (OUT, [4])])
    assert planned("range", requests) == [
        ("DONTNEED", 12, 1, 1),
        ("DONTNEED", 4, 2, 2),
        ("WILLNEED", 4, 1, 4),
    ]


@pytest.mark.parametrize(("gap_ns", "operations"), [(199_999_999, 1), (200_000_000, 2)])
def test_a_pause_of_200_ms_ends_an_episode(gap_ns, operations):
    requests = from_pfns([(IN, [5]), (IN, [4])], [0, gap_ns])
    assert len(planned("range", requests)) == operations


def test_range_moves_its_window_on():
    requests = from_pfns([(IN, [3, 4, 5, 6, 7, 8])])
    plan = Range(window_pages=4).plan(requests, context())
    assert listed(plan) == [("DONTNEED", 3, 4, 0), ("DONTNEED", 7, 2, 0)]
    assert plan.wire_bytes == 8 + 2 * 8


def test_range_sends_one_range_over_two_regions_and_advises_two():
    where = context((0, 8), (8, 8))
    plan = STRATEGIES["range"].plan(from_pfns([(IN, list(range(6, 10)))]), where)
    assert len(plan) == 2
    assert plan.sent_bytes.tolist() == [16]


def test_range_fills_its_buffer_before_it_sends():
    pages = list(range(0, 20, 2))
    plan = Range(words=5).plan(from_pfns([(IN, pages)]), context((0, 32)))
    assert plan.sent_bytes.tolist() == [40, 40, 24]
    assert plan.sent_request.tolist() == [0, 0, 0]


def test_the_oracle_gives_all_back_before_each_deflate():
    requests = from_pfns([(IN, [1, 3]), (IN, [2]), (OUT, [2]), (IN, [4]), (IN, [2]), (OUT, [1])])
    assert planned("oracle", requests) == [
        ("DONTNEED", 1, 3, 1),
        ("DONTNEED", 2, 1, 4),
        ("DONTNEED", 4, 1, 4),
    ]


def test_the_oracle_waits_through_pauses_and_reports_but_not_for_blocks():
    stream = [(IN, [5]), (REPORT, [range(8, 10), range(10, 12)]), (IN, [4])]
    assert planned("oracle", from_pfns(stream, [0, 10**9, 2 * 10**9])) == [
        ("DONTNEED", 8, 4, 1),
        ("DONTNEED", 4, 2, 2),
    ]


def test_only_some_strategies_join_blocks_that_touch():
    requests = from_pfns([(REPORT, [range(8, 10), range(10, 12)])])
    counts = {name: len(planned(name, requests)) for name in STRATEGIES}
    joining = {
        "request",
        "bulk",
        "deferred",
        "huge",
        "free",
        "remap",
        "populate",
        "parallel",
        "oracle",
    }
    assert counts == {name: 1 if name in joining else 2 for name in STRATEGIES} | {"nop": 0}


def test_batch_fills_its_buffer_and_a_request_that_does_not_fit_waits():
    requests = from_pfns([(IN, [5, 3]), (IN, [4]), (IN, [6, 7]), (OUT, [3]), (IN, [8])])
    assert planned("batch:pfns=4", requests) == [
        ("DONTNEED", 3, 3, 1),
        ("DONTNEED", 6, 2, 2),
        ("DONTNEED", 8, 1, 4),
    ]


def test_bulk_sends_what_range_sends_and_joins_the_calls_of_an_episode():
    requests = linux_inflate(np.arange(0, 4096, 2))
    plans = [load_strategy(name).plan(requests, context((0, 4096))) for name in ("range", "bulk")]
    assert plans[0].wire_requests == plans[1].wire_requests
    assert plans[0].sent_bytes.tolist() == plans[1].sent_bytes.tolist()
    assert plans[0].offset_bytes.tolist() == plans[1].offset_bytes.tolist()
    assert [plan.calls for plan in plans] == [2048, 2]


def test_bulk_shares_long_ranges_among_threads_and_no_short_ones():
    stream = [(IN, list(range(4096))), (OUT, [0]), (IN, list(range(4097, 8192, 2)))]
    plan = load_strategy("bulk:threads=2").plan(from_pfns(stream), context((0, 8192)))
    check_plan(from_pfns(stream), plan, context((0, 8192)))
    assert plan.thread is not None
    assert plan.thread[plan.request == 0].tolist() == [0, 1]
    assert (plan.length_bytes[plan.request == 0] >> 12).tolist() == [2048, 2048]
    assert not plan.thread[plan.request == 2].any()
    assert plan.calls == 2 + 2


def test_bulk_cuts_no_range_of_an_episode_that_one_thread_does():
    stream = [(IN, [*range(1024), *range(2048, 4048, 2)])]
    alone, two = (
        load_strategy(name).plan(from_pfns(stream), context((0, 8192)))
        for name in ("bulk", "bulk:threads=2")
    )
    assert two.length_bytes.tolist() == alone.length_bytes.tolist()
    assert (two.calls, two.threads) == (alone.calls, 1)


@pytest.mark.parametrize(
    "parameter", ["ranges=1025", "threads=65", "threads=0", "border_bytes=5000"]
)
def test_bulk_refuses_what_cannot_be(parameter):
    with pytest.raises(AerostatError, match="bulk"):
        load_strategy(f"bulk:{parameter}")


def test_deferred_merges_across_requests_until_its_bytes_are_reached():
    requests = from_pfns([(IN, [5]), (IN, [3]), (IN, [4]), (IN, [9])])
    assert planned("deferred:hold_bytes=12288", requests) == [
        ("DONTNEED", 3, 3, 2),
        ("DONTNEED", 9, 1, 3),
    ]


@pytest.mark.parametrize(("gap_ns", "ends"), [(99_999_999, [2]), (100_000_000, [0, 2])])
def test_deferred_waits_no_longer_than_its_time(gap_ns, ends):
    """A timer ends the hold: with the last request before it, whatever comes after."""
    requests = from_pfns([(IN, [5]), (IN, [4]), (Queue.STATS, [])], [0, gap_ns, gap_ns])
    assert [by for *_, by in planned("deferred", requests)] == ends


def test_deferred_never_discards_what_comes_back_meanwhile():
    requests = from_pfns([(IN, [5, 6, 7]), (OUT, [6, 7]), (IN, [7]), (REPORT, [12])])
    assert planned("deferred", requests) == [
        ("DONTNEED", 5, 1, 3),
        ("DONTNEED", 7, 1, 3),
        ("DONTNEED", 12, 1, 3),
    ]


def test_huge_lets_units_go_at_once_and_the_rest_at_the_end():
    requests = from_pfns([(IN, [5, 6, 7]), (IN, [4, 1]), (IN, [0]), (OUT, [1])])
    assert planned("huge:unit_bytes=16384", requests) == [
        ("DONTNEED", 4, 4, 1),
        ("DONTNEED", 0, 1, 3),
    ]


def test_vectored_joins_a_batch_and_never_more_than_its_limits():
    requests = from_pfns([(IN, [5, 3]), (IN, [9]), (OUT, [3]), (IN, [1])])
    plan = STRATEGIES["vectored"].plan(requests, context())
    assert listed(plan) == [
        ("DONTNEED", 5, 1, 1),
        ("DONTNEED", 3, 1, 1),
        ("DONTNEED", 9, 1, 1),
        ("DONTNEED", 1, 1, 3),
    ]
    assert plan.joined.tolist() == [False, True, True, False]
    assert plan.calls == 2
    small = load_strategy("vectored:call_bytes=8192").plan(requests, context())
    assert small.joined.tolist() == [False, True, False, False]
    assert load_strategy("vectored:merge=true").advice(context(backing="memfd")) == Advice.REMOVE


def test_a_call_of_huge_ranges_stays_below_two_gib():
    requests = from_pfns([(IN, [*range(at << 18, (at << 18) + 2)]) for at in range(3)])
    where = context((0, 3 << 18))
    found = Pieces(*(np.array(c) for c in ([0, 1 << 18, 2 << 18], [1 << 18] * 3, [0, 0, 0])))
    joined = joint_calls(found, 1024, MAX_CALL_BYTES >> 12)
    assert joined.tolist() == [False, False, False], "1 GiB and 1 GiB are 4 KiB too many"
    assert STRATEGIES["vectored"].plan(requests, where).calls == 1


def test_parallel_shares_a_hold_at_borders_and_leaves_little_ones_alone():
    requests = from_pfns([(IN, list(range(2, 13)))])
    plan = load_strategy("parallel:border_bytes=16384").plan(requests, context())
    assert listed(plan) == [("DONTNEED", 2, 2, 0), ("DONTNEED", 4, 9, 0)] or listed(plan) == [
        ("DONTNEED", 2, 6, 0),
        ("DONTNEED", 8, 5, 0),
    ]
    assert plan.thread.tolist() == [0, 1]
    assert STRATEGIES["parallel"].plan(requests, context()).threads == 1


def test_populate_fills_what_is_deflated_on_whole_host_pages():
    requests = from_pfns([(IN, [0, 1, 2, 3]), (OUT, [2, 1])])
    assert planned("populate", requests, context(host_page_bytes=8192)) == [
        ("DONTNEED", 0, 4, 0),
        ("POPULATE_WRITE", 0, 4, 1),
    ]


def test_host_pages_become_whole_over_requests_and_break_up():
    """One bit a balloon page, kept between requests; only qemu forgets them."""
    requests = from_pfns([(IN, [4, 5]), (IN, [7, 6]), (OUT, [5]), (IN, [5]), (IN, [0, 1, 2])])
    where = context(host_page_bytes=16384)
    assert planned("request", requests, where) == [("DONTNEED", 4, 4, 1), ("DONTNEED", 4, 4, 3)]
    assert [op for op in planned("qemu", requests, where) if op[0] == "DONTNEED"] == []


def test_the_seeds_inflate_in_numbers():
    """7 GiB given downwards, 256 PFNs a request: 1,835,008 calls come down to one range."""
    pages = 7 << 18
    requests = linux_inflate(np.arange(pages)[::-1].copy())
    counted = what_if(requests, context((0, 8 << 18)))
    found = {s.name: s for s in counted.strategies}
    assert {name: (found[name].operations, found[name].calls) for name in found} == {
        "nop": (0, 0),
        "qemu": (pages, pages),
        "adjacent": (7168, 7168),
        "request": (7168, 7168),
        "batch": (896, 896),
        "range": (1, 1),
        "scatter": (2, 2),  # a descriptor's length has 32 bits
        "bulk": (1, 1),
        "deferred": (112, 112),
        "huge": (3584, 3584),
        "vectored": (pages, 1792),
        "free": (7168, 7168),
        "remap": (7168, 7168),
        "populate": (7168, 7168),
        "parallel": (224, 224),
        "oracle": (1, 1),
    }
    assert [each.name for each in counted.refused] == ["punch"]
    assert (found["qemu"].wire_requests, found["qemu"].wire_bytes) == (7168, 7 << 20)
    assert (found["range"].wire_requests, found["range"].wire_bytes) == (1, 24)
    assert found["adjacent"].run_pages_histogram == {8: 7168}
    assert found["adjacent"].to_qemu == 1 / 256
    assert found["qemu"].to_oracle == pages
    assert found["range"].bytes == 7 << 30
    assert counted.trace.huge_share == 1


def linux_inflate(pfns: np.ndarray) -> Requests:
    offsets = np.append(np.arange(0, len(pfns), 256), len(pfns))
    count = len(offsets) - 1
    run_offsets, pfn, pages = encode_runs(pfns, offsets)
    return Requests(
        np.zeros(count, np.uint8),
        np.zeros(count, np.int64),
        run_offsets,
        pfn.astype(np.uint64),
        pages.astype(np.int32),
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_two_million_shuffled_pages_are_planned_without_a_loop(name):
    """0.1 to 0.3 s of CPU each; a Python loop over the pages would take far longer."""
    requests = linux_inflate(np.random.default_rng(7).permutation(2_000_000))
    where = context((0, 2_000_000), backing=where_it_works(name).backing)
    begin = time.process_time()
    STRATEGIES[name].plan(requests, where)
    assert time.process_time() - begin < 3
