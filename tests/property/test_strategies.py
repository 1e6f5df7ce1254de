"""Every strategy on any interleaving: page by page, prefix by prefix, and never a guest's page."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.backings import BACKINGS, Advice
from replay.check import check_plan
from replay.plan import Context, Plan, gone_pages
from replay.ranges import expand
from replay.requests import Requests, from_pfns
from replay.strategies import STRATEGIES, load_strategy
from replay.strategies.adjacent import grow
from replay.strategies.base import Strategy
from tests.unit.encoded import encode_range_words
from tracer.trace.manifest import Region
from tracer.trace.schema import Queue

LOW_PAGES, HIGH_PFN, HIGH_PAGES = 24, 40, 24
VARIANTS = (
    "batch:pfns=9",
    "range:words=3,window_pages=5",
    "bulk:words=3,window_pages=5,ranges=2,call_bytes=8192",
    "bulk:threads=2,border_bytes=4096,ranges=3",
    "bulk:threads=3,border_bytes=8192",
    "deferred:hold_bytes=8192",
    "deferred:hold_bytes=none,hold_ns=1500",
    "huge:unit_bytes=8192",
    "huge:unit_bytes=16384,hold_bytes=24576,hold_ns=none",
    "vectored:ranges=3,call_bytes=8192",
    "vectored:merge=true,ranges=5",
    "punch:merge=true",
    "parallel:threads=2,border_bytes=4096",
    "parallel:threads=3,border_bytes=8192,hold_bytes=none",
)
"""Parameters that make a strategy's corners meet in a small memory."""
CASES = (*STRATEGIES, *VARIANTS)
DISCARDING = [case for case in CASES if case != "nop"]

queues = st.sampled_from([*Queue])
contents = st.lists(st.integers(0, HIGH_PFN + HIGH_PAGES + 4), max_size=14)
stretches = st.tuples(st.integers(0, HIGH_PFN + HIGH_PAGES), st.integers(1, 12), st.booleans()).map(
    lambda drawn: list(range(drawn[0], drawn[0] + drawn[1]))[:: -1 if drawn[2] else 1]
)
"""Neighbours, rising or falling: what Linux sends, and what single PFNs seldom add up to."""


def chained(drawn: list[tuple[int, int, bool]]) -> list[range]:
    """Blocks of a report; every other one or so begins where the block before it ends."""
    blocks: list[range] = []
    for start, pages, touches in drawn:
        first = blocks[-1].stop if touches and blocks else start
        blocks.append(range(first, first + pages))
    return blocks


block_draws = st.tuples(st.integers(0, HIGH_PFN + HIGH_PAGES), st.integers(1, 8), st.booleans())
reports = st.lists(block_draws, max_size=5).map(chained)
streams = st.lists(
    st.one_of(
        st.tuples(queues, contents),
        st.tuples(st.sampled_from([Queue.INFLATE, Queue.DEFLATE]), stretches),
        st.tuples(st.just(Queue.REPORTING), reports),
    ),
    max_size=14,
)
pauses = st.lists(st.sampled_from([0, 1000, 300_000_000]), min_size=14, max_size=14)
host_pages = st.sampled_from([4096, 8192, 16384])


def context(host_page_bytes: int = 4096, backing: str = "anon") -> Context:
    """Two regions with a hole between them."""
    places = ((0, LOW_PAGES), (HIGH_PFN, HIGH_PAGES))
    regions = tuple(
        Region(
            "ram",
            gpa=pfn << 12,
            hva=None,
            length_bytes=pages << 12,
            backing=backing,
            page_size_bytes=4096,
        )
        for pfn, pages in places
    )
    return Context(regions, host_page_bytes, backing)


def where_it_works(strategy: Strategy) -> Context:
    """Anonymous memory if it can, else the first backing on which it can."""
    return next(w for b in BACKINGS if strategy.refusal(w := context(backing=b)) is None)


def requests_of(stream: list, gaps: list[int]) -> Requests:
    """Statistics and hints carry no pages, as in a trace."""
    named = [
        (queue, [] if queue in (Queue.STATS, Queue.FREE_PAGE_HINT) else pfns)
        for queue, pfns in stream
    ]
    return from_pfns(named, np.cumsum(gaps[: len(named)]).tolist())


def page_of(pfn: int, where: Context) -> int | None:
    layout = where.layout
    for start, end, base in zip(layout.start_pfn, layout.end_pfn, layout.base_page, strict=True):
        if start <= pfn < end:
            return int(base + pfn - start)
    return None


def whole(pages: set[int], where: Context) -> set[int]:
    """Of some pages, those whose host page is wholly among them."""
    unit = where.host_page_pages
    return {
        page
        for page in pages
        if pages.issuperset(range(page // unit * unit, -(-(page + 1) // unit) * unit))
    }


def states(
    requests: Requests, plan: Plan, where: Context, gives: tuple[Advice, ...]
) -> list[tuple[set[int], set[int]]]:
    """Run a plan page by page on a model of memory.

    Returns:
        After each request: pages that the host owns, and of those the ones that are given back.

    A discard of a page that the guest owns fails the test, and so do two threads on one page.
    """
    host: set[int] = set()
    gone: set[int] = set()
    found = []
    at = 0
    for index in range(len(requests)):
        named = {page_of(pfn, where) for pfn in requests.pfns(index).tolist()} - {None}
        queue = requests.queue[index]
        if queue == Queue.INFLATE:
            host |= named
        elif queue == Queue.DEFLATE:
            host -= named
        lent = named if queue == Queue.REPORTING else set()
        touched_by: dict[int, int] = {}
        while at < len(plan) and plan.request[at] == index:
            first = int(plan.offset_bytes[at]) >> 12
            pages = set(range(first, first + (int(plan.length_bytes[at]) >> 12)))
            thread = 0 if plan.thread is None else int(plan.thread[at])
            assert all(touched_by.setdefault(page, thread) == thread for page in pages)
            if plan.advice[at] in gives:
                assert pages <= host | lent
                gone |= pages
            elif plan.advice[at] == Advice.POPULATE_WRITE:
                gone -= pages
            at += 1
        # The guest may write to all others from now on, and a write brings the host page back.
        gone &= whole(host, where)
        found.append((set(host), set(gone)))
    assert at == len(plan)
    return found


def replayed(
    requests: Requests, plan: Plan, where: Context, gives: tuple[Advice, ...]
) -> tuple[set[int], set[int]]:
    """What `states` says after the last request."""
    return (states(requests, plan, where, gives) or [(set(), set())])[-1]


@pytest.mark.parametrize("case", DISCARDING)
@given(streams, pauses)
def test_what_the_host_holds_at_the_end_is_gone_and_no_guest_page_is(case, stream, gaps):
    strategy = load_strategy(case)
    requests, where = requests_of(stream, gaps), where_it_works(strategy)
    plan = strategy.plan(requests, where)
    host, gone = replayed(requests, plan, where, (strategy.advice(where),))
    assert gone == host
    report = check_plan(requests, plan, where)
    assert report.host_owned_pages == len(host)
    assert report.gone_pages == len(expand(gone_pages(plan, where)))


@pytest.mark.parametrize("case", DISCARDING)
@given(streams, pauses, host_pages, st.sampled_from([*BACKINGS]))
def test_on_large_host_pages_and_other_backings_whole_host_pages_go(
    case, stream, gaps, size, backing
):
    strategy = load_strategy(case)
    requests, where = requests_of(stream, gaps), context(size, backing)
    if strategy.refusal(where) is not None:
        return
    plan = strategy.plan(requests, where)
    report = check_plan(requests, plan, where)
    host, gone = replayed(requests, plan, where, (strategy.advice(where),))
    if case == "qemu" and size > 4096:
        assert gone <= whole(host, where)  # it forgets with each request what came before
    else:
        assert gone == whole(host, where)
        assert report.missing_pages == 0


def filled(plan: Plan, column: str) -> list[int]:
    """A column of a plan that leaves it out where it would be all zeros."""
    values = getattr(plan, column)
    return [0] * len(plan) if values is None else values.astype(int).tolist()


@pytest.mark.parametrize("case", [c for c in CASES if load_strategy(c).causal])
@given(streams, pauses, host_pages, st.integers(0, 14))
def test_a_causal_strategy_does_not_look_ahead(case, stream, gaps, size, cut):
    strategy = load_strategy(case)
    requests = requests_of(stream, gaps)
    where = context(size, where_it_works(strategy).backing)
    prefix = requests.before(min(cut, len(requests)))
    settled = strategy.settled(prefix)
    early = strategy.plan(prefix, where).before(settled)
    complete = strategy.plan(requests, where).before(settled)
    for column in ("advice", "offset_bytes", "length_bytes", "request", "sent_request"):
        assert getattr(early, column).tolist() == getattr(complete, column).tolist()
    assert early.sent_bytes.tolist() == complete.sent_bytes.tolist()
    for column in ("joined", "thread"):
        assert filled(early, column) == filled(complete, column)


@given(streams, pauses)
def test_strategies_that_wait_say_for_no_more_than_they_do(stream, gaps):
    """Else `settled` could say 0 always, and the test above would hold for anything."""
    requests = requests_of(stream, gaps)
    for index in range(1, len(requests)):
        prefix = requests.before(index + 1)
        for name in ("deferred", "huge", "parallel"):
            assert STRATEGIES[name].settled(prefix) == index
        inflates = np.flatnonzero(prefix.queue == Queue.INFLATE)
        for name in ("batch", "vectored"):
            assert STRATEGIES[name].settled(prefix) >= (inflates[-1] if len(inflates) else index)
        balloon = [i for i in range(index + 1) if requests.queue[i] <= Queue.DEFLATE]
        if len(balloon) > 1 and requests.queue[balloon[-1]] != requests.queue[balloon[-2]]:
            assert STRATEGIES["range"].settled(prefix) >= balloon[-1]


@given(streams, pauses)
def test_every_discard_is_needed_at_least_as_often_by_qemu(stream, gaps):
    requests, where = requests_of(stream, gaps), context()
    counts = [len(STRATEGIES[n].plan(requests, where)) for n in ("qemu", "adjacent", "request")]
    assert counts == sorted(counts, reverse=True)


@given(st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(0, 12)), max_size=40))
def test_adjacent_grows_as_it_would_page_by_page(named):
    named.sort(key=lambda item: item[0])
    pfns = {index: [pfn for by, pfn in named if by == index] for index in (0, 1)}
    requests = from_pfns([(Queue.INFLATE, pfns[0]), (Queue.INFLATE, pfns[1])])
    expected = []
    for index, flat in pfns.items():
        low = high = None
        for pfn in flat:
            if low is not None and pfn in (high + 1, low - 1):
                low, high = min(low, pfn), max(high, pfn)
                expected[-1] = (low, high - low + 1, index)
            else:
                low = high = pfn
                expected.append((pfn, 1, index))
    grown = grow(*requests.runs_of(Queue.INFLATE))
    assert list(zip(*(column.tolist() for column in grown), strict=True)) == expected


@given(st.sets(st.integers(0, LOW_PAGES - 1)), st.booleans())
def test_range_counts_the_bytes_that_its_encoder_writes(pages, deflate):
    queue = Queue.DEFLATE if deflate else Queue.INFLATE
    requests = from_pfns([(queue, [page]) for page in pages])
    plan = STRATEGIES["range"].plan(requests, context())
    low = sorted(page for page in pages if page - 1 not in pages)
    length = [next(n for n in range(1, 99) if page + n not in pages) for page in low]
    parts = encode_range_words(low, length)
    assert plan.sent_bytes.tolist() == [len(part) for part in parts]
