"""Every strategy, really carried out on every backing that it supports: stamped pages tell."""

import ctypes
import errno
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from replay import native
from replay.backings import BACKINGS, Advice
from replay.check import check_plan
from replay.memory import GuestMemory, operations_of
from replay.native.types import NativeError, Operations, Page, new_watch
from replay.plan import Context
from replay.ranges import Runs, empty
from replay.requests import Requests, from_pfns
from replay.residency import Residency
from replay.strategies import STRATEGIES, load_strategy
from replay.strategies.base import Strategy
from replay.strategies.populate import Populate
from replay.support import unsupported
from tests.property.test_strategies import (
    CASES,
    context,
    page_of,
    pauses,
    requests_of,
    streams,
    whole,
)
from tracer.trace.manifest import Region
from tracer.trace.schema import Queue

IN, OUT, REPORT = Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING
SMALL = [name for name in BACKINGS if name != "hugetlb"]


def owned_and_named(requests: Requests, where: Context) -> tuple[set[int], set[int], set[int]]:
    """Pages that the host owns at the end; that any request named; that were deflated last."""
    host: set[int] = set()
    named: set[int] = set()
    back: set[int] = set()
    for index in range(len(requests)):
        pages = {page_of(pfn, where) for pfn in requests.pfns(index).tolist()} - {None}
        named |= pages
        if requests.queue[index] == IN:
            host |= pages
        elif requests.queue[index] == OUT:
            host, back = host - pages, back | pages
        else:
            back -= pages  # a block that was reported is given back again
    return host, named, back


def carry_out(strategy: Strategy, requests: Requests, where: Context) -> None:
    """Execute a plan on populated, stamped memory and hold every page to what it must be."""
    plan = strategy.plan(requests, where)
    check_plan(requests, plan, where)
    layout = where.layout
    unit = where.host_page_pages
    with GuestMemory(layout.memory_bytes, where.backing, seed=3) as memory:
        memory.restore(Residency(layout.runs, empty(), "all"))
        outcome = memory.execute(operations_of(plan))
        resident = native.residency(memory.mapping).astype(bool)
        found = memory.verify()
    assert (outcome.failures, outcome.calls) == (0, plan.calls)
    assert found.findings.wrong == 0
    host, named, back = owned_and_named(requests, where)
    held = np.array(sorted(whole(host, where)), np.int64)
    if strategy.advice(where) == Advice.FREE:
        assert (memory.state[held] == Page.LAZY).all()
    elif strategy.discards and not (strategy.name == "qemu" and unit > 1):
        assert not resident[held].any(), "all that the host holds is gone"
    elsewhere = np.ones(len(resident), bool)
    for page in named:
        elsewhere[page // unit * unit : (page // unit + 1) * unit] = False
    outside = np.ones(len(resident), bool)
    for start, end in zip(layout.runs.start.tolist(), layout.runs.end.tolist(), strict=True):
        outside[start // unit * unit : -(-end // unit) * unit] = False
    assert resident[elsewhere & ~outside].all(), "and nothing else"
    assert not resident[outside].any()
    if isinstance(strategy, Populate):
        ready = np.array(sorted(back - host), np.int64)
        assert resident[ready].all(), "what was deflated is there, before any touch"


@pytest.mark.parametrize("backing", SMALL)
@pytest.mark.parametrize("case", CASES)
@settings(max_examples=12)
@given(streams, pauses)
def test_any_stream_leaves_memory_as_it_must_be(case, backing, stream, gaps):
    strategy = load_strategy(case)
    where = context(backing=backing)
    if strategy.refusal(where) is not None:
        return
    requests = requests_of(stream, gaps)
    carry_out(strategy, requests, where)


def huge_context() -> Context:
    regions = (Region("ram", 0, None, 32 << 20, "hugetlb", 2 << 20),)
    return Context(regions, 2 << 20, "hugetlb")


def linux_like(pages: int) -> Requests:
    """Two thirds of memory downwards, 256 PFNs a request, a few pages back, a block reported."""
    given = np.arange(pages)[::-1][: pages * 2 // 3]
    parts = [given[at : at + 256].tolist() for at in range(0, len(given), 256)]
    stream = [(IN, part) for part in parts]
    stream += [(OUT, given[100:700].tolist()), (IN, given[600:700].tolist())]
    return from_pfns([*stream, (REPORT, [range(512, 1024)])])


@pytest.mark.parametrize("case", CASES)
def test_huge_pages_of_hugetlb_go_when_they_are_whole(case, huge_page_pool):
    strategy = load_strategy(case)
    if strategy.refusal(huge_context()) is None:
        carry_out(strategy, linux_like(8192), huge_context())


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("backing", SMALL)
def test_more_pages_than_a_request_holds(name, backing):
    """16 MiB: many requests, holds of several huge pages, threads that have work to share."""
    regions = (Region("ram", 0, None, 16 << 20, backing, 4096),)
    where = Context(regions, backing=backing)
    strategy = STRATEGIES[name]
    if strategy.refusal(where) is None:
        carry_out(strategy, linux_like(4096), where)


def test_every_kernel_feature_that_plans_need_is_here_or_named():
    for strategy in STRATEGIES.values():
        where = context(backing="anon")
        if strategy.refusal(where) is None:
            reason = unsupported(strategy.plan(linux_like(64), where))
            assert reason is None or "this kernel" in reason


def one_call(advice: Advice, *pairs: tuple[int, int]) -> Operations:
    """Pages and lengths that share one process_madvise."""
    columns = np.array(pairs, np.uint64).reshape(-1, 2) << np.uint64(12)
    joined = np.ones(len(pairs), np.uint8)
    joined[0] = 0
    return Operations(
        np.full(len(pairs), advice, np.uint8),
        columns[:, 0].copy(),
        columns[:, 1].copy(),
        np.zeros(len(pairs), np.int64),
        joined,
    )


needs_vectors = pytest.mark.skipif(
    native.lacking(Advice.DONTNEED, vector=True) is not None,
    reason="this kernel lets no process advise itself (before Linux 6.13)",
)


@needs_vectors
def test_a_call_that_stops_at_two_gib_is_taken_up_again():
    gib = 1 << 18
    some = [at * gib + 7 for at in range(5)]
    with GuestMemory(5 << 30, "anon", seed=1) as memory:
        memory.restore(Residency(Runs(np.array(some), np.ones(5, np.int64)), empty(), ""))
        outcome = memory.execute(one_call(Advice.DONTNEED, *((at * gib, gib) for at in range(5))))
        check = memory.verify()
    assert outcome.failures == 0
    assert outcome.calls == 3, "2 GiB less a page, as much again, and the rest"
    assert (check.gone_pages, check.resident_pages, check.findings.wrong) == (5, 0, 0)


@needs_vectors
def test_a_range_that_fails_fails_alone():
    with GuestMemory(64 << 12, "anon", seed=1) as memory:
        memory.restore(Residency(Runs(np.array([0]), np.array([64])), empty(), ""))
        lock(memory, 8, 4)
        outcome = memory.execute(one_call(Advice.DONTNEED, (0, 4), (8, 4), (16, 4)))
        check = memory.verify()
    assert (outcome.failures, outcome.first_failed, outcome.first_errno) == (1, 1, errno.EINVAL)
    assert outcome.failed.tolist() == [0, 1, 0]
    assert outcome.calls == 3, "one that stops short, one that fails, one for the rest"
    assert (check.gone_pages, check.findings.lazy_checked, check.findings.wrong) == (8, 4, 0)


def test_threads_share_a_request_and_wait_for_each_other():
    pages, threads = 8192, 4
    page = np.arange(0, pages, 8, dtype=np.uint64)
    operations = Operations(
        np.full(len(page), Advice.DONTNEED, np.uint8),
        page << np.uint64(12),
        np.full(len(page), 8 << 12, np.uint64),
        np.arange(len(page), dtype=np.int64) // 64,
        None,
        (np.arange(len(page)) // 16 % threads).astype(np.uint8),
    )
    watch = new_watch(len(page), 0)
    with GuestMemory(pages << 12, "anon", seed=1) as memory:
        memory.restore(Residency(Runs(np.array([0]), np.array([pages])), empty(), ""))
        outcome = memory.execute(operations, watch, cpus=[0] * threads)
        check = memory.verify()
    assert (outcome.calls, outcome.failures) == (len(page), 0)
    assert (check.gone_pages, check.resident_pages, check.findings.wrong) == (pages, 0, 0)
    assert (watch.per_call_ns > 0).all()
    assert outcome.cpu_ns > 0


def test_a_thread_that_cannot_be_made_ends_all_before_anything_is_done():
    operations = Operations(
        np.full(2, Advice.DONTNEED, np.uint8),
        np.array([0, 4096], np.uint64),
        np.full(2, 4096, np.uint64),
        np.zeros(2, np.int64),
        None,
        np.array([0, 1], np.uint8),
    )
    with GuestMemory(8 << 12, "anon", seed=1) as memory:
        memory.restore(Residency(Runs(np.array([0]), np.array([8])), empty(), ""))
        with pytest.raises(NativeError, match="cannot run a plan of 2 threads"):
            memory.execute(operations, cpus=[0, 4000])
        assert memory.verify().findings.stamped_checked == 8


@pytest.mark.parametrize(
    ("joined", "advice"),
    [([1, 0], Advice.DONTNEED), ([0, 1], Advice.REMAP)],
)
def test_a_call_that_cannot_be_shared_is_refused(joined, advice):
    bad = replace(one_call(advice, (0, 1), (1, 1)), joined=np.array(joined, np.uint8))
    with GuestMemory(8 << 12, "anon", seed=1) as memory:
        memory.restore(Residency(Runs(np.array([0]), np.array([8])), empty(), ""))
        with pytest.raises(NativeError, match="refused"):
            memory.execute(bad)
        assert memory.verify().findings.stamped_checked == 8


def test_a_discard_that_failed_may_have_left_its_pages():
    """What failed is counted and its pages are held to nothing; the others must still be gone."""
    with GuestMemory(16 << 12, "anon", seed=1) as memory:
        memory.restore(Residency(Runs(np.array([0]), np.array([16])), empty(), ""))
        lock(memory, 4, 4)
        alone = replace(one_call(Advice.DONTNEED, (0, 4), (4, 4)), joined=None)
        outcome = memory.execute(alone)
        check = memory.verify()
    assert (outcome.failures, outcome.first_failed, outcome.first_errno) == (1, 1, errno.EINVAL)
    assert outcome.failed.tolist() == [0, 1]
    assert (check.gone_pages, check.findings.lazy_checked, check.findings.wrong) == (4, 4, 0)


def lock(memory: GuestMemory, page: int, pages: int) -> None:
    """Lock pages in memory: they cannot be discarded then (EINVAL: mm/madvise.c)."""
    start = ctypes.c_void_p(memory.mapping.base + (page << 12))
    assert ctypes.CDLL(None).mlock(start, ctypes.c_size_t(pages << 12)) == 0
