"""What check_plan says of joint calls, threads and populating: rules beyond those of ownership."""

from dataclasses import replace

import numpy as np
import pytest

from replay.backings import Advice
from replay.check import PlanError, check_plan
from replay.plan import Plan
from replay.requests import from_pfns
from tests.unit.planned import IN, OUT, context

REQUESTS = from_pfns([(IN, list(range(12))), (IN, [12]), (OUT, [12])])


def plan_of(*rows: tuple[int, int, int, int], **columns: list[int]) -> Plan:
    """Rows of (advice, page, pages, request)."""
    advice, page, pages, request = (np.array(c, np.int64) for c in zip(*rows, strict=True))
    return Plan(
        "mine",
        "pfns",
        advice.astype(np.uint8),
        page.astype(np.uint64) << np.uint64(12),
        pages.astype(np.uint64) << np.uint64(12),
        request,
        joined=np.array(columns["joined"], bool) if "joined" in columns else None,
        thread=np.array(columns["thread"], np.uint8) if "thread" in columns else None,
    )


HALVES = ((Advice.DONTNEED, 0, 6, 0), (Advice.DONTNEED, 6, 6, 0))


def test_halves_may_share_a_call_or_go_to_two_threads():
    check_plan(REQUESTS, plan_of(*HALVES, joined=[0, 1]), context())
    check_plan(REQUESTS, plan_of(*HALVES, thread=[1, 0]), context())


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (plan_of(*HALVES, joined=[1, 1]), "first operation shares the call of none"),
        (plan_of(*HALVES, joined=[0, 1], thread=[0, 1]), "differ in advice, request or thread"),
        (
            plan_of(HALVES[0], (Advice.DONTNEED, 6, 6, 1), joined=[0, 1]),
            "differ in advice, request or thread",
        ),
        (
            plan_of(HALVES[0], (Advice.FREE, 6, 6, 0), joined=[0, 1]),
            "differ in advice, request or thread",
        ),
        (
            plan_of((Advice.REMAP, 0, 6, 0), (Advice.REMAP, 6, 6, 0), joined=[0, 1]),
            "a call that takes one range only",
        ),
        (
            plan_of(*[(Advice.DONTNEED, 0, 12, 0)] * 1025, joined=[0] + [1] * 1024),
            "more than 1024 ranges",
        ),
        (plan_of(*HALVES, joined=[0]), "columns differ in length"),
        (plan_of(*HALVES, thread=[0, 1, 2]), "columns differ in length"),
        (plan_of(HALVES[0], (Advice.DONTNEED, 5, 7, 0), thread=[0, 1]), "two threads touch"),
        (plan_of(*HALVES, thread=[0, 64]), "more than 64 threads"),
        (plan_of((Advice.REMOVE, 0, 12, 0)), "on anon memory MADV_REMOVE needs a shared"),
        (
            plan_of(*HALVES, (Advice.POPULATE_WRITE, 3, 2, 1)),
            "2 pages in the balloon at the end are not given back",
        ),
    ],
)
def test_a_plan_that_breaks_a_rule_is_refused_by_name(plan: Plan, reason: str):
    with pytest.raises(PlanError, match="the plan of strategy 'mine' must not run") as caught:
        check_plan(REQUESTS, plan, context())
    assert reason in caught.value.reason


def test_threads_may_meet_on_a_page_in_different_requests():
    rows = (*HALVES, (Advice.DONTNEED, 0, 6, 1))
    check_plan(REQUESTS, plan_of(*rows, thread=[0, 1, 1]), context())


def test_memory_may_be_populated_again_once_it_is_deflated():
    rows = (*HALVES, (Advice.DONTNEED, 12, 1, 1), (Advice.POPULATE_WRITE, 12, 1, 2))
    report = check_plan(REQUESTS, plan_of(*rows), context())
    assert report.missing_pages == 0


def test_the_part_before_a_request_keeps_its_calls_and_threads():
    rows = (*HALVES, (Advice.DONTNEED, 12, 1, 1))
    plan = plan_of(*rows, joined=[0, 1, 0])
    part = plan.before(1)
    assert (len(part), part.calls, part.threads) == (2, 1, 1)
    plan = replace(plan, joined=None, thread=np.array([0, 3, 0], np.uint8))
    assert (plan.before(1).threads, plan.before(0).threads) == (4, 1)
