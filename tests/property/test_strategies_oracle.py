"""The oracle: all memory is given back when a phase ends, and in the fewest discards."""

import numpy as np
import pytest
from hypothesis import given

from replay.native.types import Effect
from replay.plan import Context, Plan
from replay.requests import Requests
from replay.strategies import STRATEGIES, load_strategy
from replay.strategies.deferred import Holding
from tests.property.test_strategies import (
    CASES,
    context,
    page_of,
    pauses,
    requests_of,
    states,
    streams,
    where_it_works,
)
from tracer.trace.schema import Queue


def phases(requests: Requests) -> list[list[int]]:
    """Inflate requests between one deflate request and the next, told one by one."""
    found: list[list[int]] = [[]]
    for index, queue in enumerate(requests.queue.tolist()):
        if queue == Queue.DEFLATE:
            found.append([])
        elif queue == Queue.INFLATE:
            found[-1].append(index)
    return [phase for phase in found if phase]


def discards_in(plan: Plan, where: Context, members: list[int]) -> int:
    """Discards that run with one of some requests."""
    gives = where.memory.advice_with(Effect.FREES, Effect.FREES_LATER)
    return int((np.isin(plan.request, members) & np.isin(plan.advice, gives)).sum())


@given(streams, pauses)
def test_the_oracle_has_given_all_back_when_a_phase_ends(stream, gaps):
    requests, where = requests_of(stream, gaps), context()
    plan = STRATEGIES["oracle"].plan(requests, where)
    after = states(requests, plan, where, (where.discard,))
    for phase in phases(requests):
        host, gone = after[phase[-1]]
        assert gone == host


@given(streams, pauses)
def test_the_oracle_needs_one_operation_per_merged_range_of_a_phase(stream, gaps):
    requests, where = requests_of(stream, gaps), context()
    plan = STRATEGIES["oracle"].plan(requests, where)
    for phase in phases(requests):
        pfns = {pfn for index in phase for pfn in requests.pfns(index).tolist()}
        pages = {page_of(pfn, where) for pfn in pfns} - {None}
        assert discards_in(plan, where, phase) == len([p for p in pages if p - 1 not in pages])


def gives_all_back_by_phase(case: str) -> bool:
    """A strategy that holds memory back may skip what comes back soon: outside the bound."""
    strategy = load_strategy(case)
    return strategy.causal and strategy.discards and not isinstance(strategy, Holding)


@pytest.mark.parametrize("case", [case for case in CASES if gives_all_back_by_phase(case)])
@given(streams, pauses)
def test_no_strategy_that_gives_all_back_needs_fewer_discards_than_the_oracle(case, stream, gaps):
    strategy = load_strategy(case)
    requests, where = requests_of(stream, gaps), where_it_works(strategy)
    bound, plan = (each.plan(requests, where) for each in (STRATEGIES["oracle"], strategy))
    groups = [
        *phases(requests),
        *([i] for i, q in enumerate(requests.queue) if q == Queue.REPORTING),
    ]
    for members in groups:
        assert discards_in(bound, where, members) <= discards_in(plan, where, members)
