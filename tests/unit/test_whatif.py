"""What whatif counts: ratios, windows, refusals, and how well a trace's pages could be merged."""

import numpy as np
import pytest

from replay.backings import Advice
from replay.check import PlanError
from replay.counting import count
from replay.plan import Context
from replay.planning import Refused
from replay.requests import Requests, from_pfns
from replay.strategies import STRATEGIES, load_strategy
from replay.strategies.base import Operations
from replay.strategies.qemu import Qemu
from replay.strategies.select import pieces
from replay.whatif import Window, mergeability, what_if
from tests.unit.planned import EXAMPLE, IN, OUT, REPORT, context
from tracer.trace.schema import PAGE_BYTES


def test_mergeability_counts_steps_within_requests_only():
    requests = from_pfns([(IN, [5, 6, 7, 3]), (IN, [4]), (OUT, [9, 8]), (REPORT, [99])])
    found = mergeability(requests, context())
    assert (found.pages, found.outside_pages) == (7, 1)
    assert (found.rising_share, found.falling_share) == (2 / 4, 1 / 4)
    nothing = mergeability(from_pfns([(IN, [1])]), context())
    assert (nothing.rising_share, nothing.falling_share) == (None, None)


def test_what_if_of_a_trace_without_discards_has_no_ratios():
    (only,) = what_if(from_pfns([]), context(), [STRATEGIES["request"]]).strategies
    assert (only.operations, only.to_qemu, only.to_oracle) == (0, None, None)


def test_what_if_sets_discards_alone_beside_the_oracle():
    (qemu,) = what_if(EXAMPLE, context(), [STRATEGIES["qemu"]]).strategies
    assert (qemu.operations, qemu.discards, qemu.to_oracle) == (9, 7, 7 / 3)
    assert (qemu.pages, qemu.discard_bytes) == (12, 10 * PAGE_BYTES)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("backing", ["anon", "memfd"])
def test_what_is_counted_without_a_plan_is_what_the_plan_holds(name, backing):
    strategy, where = STRATEGIES[name], Context(context().regions, backing=backing)
    found = count(strategy, EXAMPLE, where)
    if isinstance(found, Refused):
        assert strategy.refusal(where) == found.reason
        return
    plan = strategy.plan(EXAMPLE, where)
    assert (found.calls, found.threads) == (plan.calls, plan.threads)
    assert (found.wire_requests, found.wire_bytes) == (plan.wire_requests, plan.wire_bytes)
    assert found.operations.total() == found.powers.total() == len(plan)
    for code in found.operations:
        chosen = plan.advice == code
        assert found.operations[code] == int(chosen.sum())
        assert found.pages[code] * PAGE_BYTES == int(plan.length_bytes[chosen].sum())


class Greedy(Qemu):
    """A user's mistake: it discards what the guest gets back."""

    name = "greedy"

    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        return [Operations((Advice.DONTNEED,), pieces(requests, context, OUT))]


def test_what_if_refuses_a_wrong_plan_of_a_users_strategy():
    with pytest.raises(PlanError, match="strategy 'greedy' must not run"):
        what_if(EXAMPLE, context(), [Greedy()])


def test_huge_share_counts_pages_in_whole_huge_pages_of_a_phase():
    where = context((0, 2048))
    requests = from_pfns([(IN, list(range(256, 512))), (OUT, [0]), (IN, list(range(512, 1100)))])
    assert mergeability(requests, where).huge_share == 512 / (256 + 588)
    assert mergeability(from_pfns([(OUT, [1])]), where).huge_share is None


def test_each_window_is_counted_for_each_strategy_that_waits():
    requests = from_pfns([(IN, [at]) for at in range(8)], [at * 1000 for at in range(8)])
    windows = [Window(hold_bytes=2 * PAGE_BYTES), Window(hold_ns=4000)]
    found = what_if(requests, context(), None, windows)
    curve = {s.name: (s.hold_bytes, s.hold_ns, s.operations) for s in found.strategies}
    assert curve["deferred"] == (64 << 20, 100_000_000, 1)
    assert curve["deferred:hold_bytes=8192,hold_ns=none"] == (8192, None, 4)
    assert curve["deferred:hold_bytes=none,hold_ns=4000"] == (None, 4000, 2)
    assert curve["huge:hold_bytes=8192,hold_ns=none"][2] == 4
    assert curve["request"] == (None, None, 8)
    assert not [name for name in curve if name.startswith("parallel:")]
    named = what_if(requests, context(), [STRATEGIES["parallel"]], windows).strategies
    assert [s.operations for s in named] == [1, 4, 2]


def test_a_strategy_that_cannot_work_is_refused_with_a_sentence_and_not_counted():
    chosen = [STRATEGIES[name] for name in ("free", "request", "remap")]
    found = what_if(EXAMPLE, context(backing="memfd"), chosen)
    assert (found.backing, [s.name for s in found.strategies]) == ("memfd", ["request"])
    assert [each.name for each in found.refused] == ["free", "remap"]
    assert "private anonymous memory" in found.refused[0].reason


def test_calls_are_set_beside_qemus_and_ranges_beside_the_oracles():
    (found,) = what_if(EXAMPLE, context(), [load_strategy("vectored")]).strategies
    assert (found.operations, found.calls, found.threads) == (7, 2, 1)
    assert (found.to_qemu, found.to_oracle) == (2 / 9, 7 / 3)


def test_populating_gives_nothing_back():
    (found,) = what_if(EXAMPLE, context(), [STRATEGIES["populate"]]).strategies
    assert (found.operations, found.discards) == (6, 5)
    assert found.bytes - found.discard_bytes == 2 * PAGE_BYTES


def test_lengths_are_counted_by_powers_of_two():
    pages = [1, 2, 3, 4, 4095, 4096, 9000]
    starts = np.cumsum([0, *(n + 1 for n in pages)]).tolist()
    content = [list(range(at, at + n)) for at, n in zip(starts, pages, strict=False)]
    requests = from_pfns([(IN, pfns) for pfns in content])
    (found,) = what_if(requests, context((0, 32768)), [STRATEGIES["request"]]).strategies
    assert found.run_pages_histogram == {0: 1, 1: 2, 2: 1, 11: 1, 12: 1, 13: 1}
