"""The check of a plan in C, against each page's owner kept in a set: right plans and wrong ones."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.backings import Advice
from replay.check import PlanError, check_plan
from replay.plan import Context, Plan
from replay.requests import from_pfns
from tracer.trace.manifest import Region
from tracer.trace.schema import PAGE_BYTES, Queue

PAGES = 8
CONTEXT = Context((Region("ram", 0, None, PAGES * PAGE_BYTES, "anon", PAGE_BYTES),))
GIVES = (Advice.DONTNEED, Advice.FREE)
spans = st.tuples(st.integers(0, PAGES - 1), st.integers(1, 5)).map(
    lambda drawn: range(drawn[0], min(sum(drawn), PAGES))
)
advice = st.sampled_from([*GIVES, Advice.WILLNEED, Advice.POPULATE_WRITE])
queues = st.sampled_from([Queue.INFLATE, Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING])
steps = st.lists(
    st.tuples(queues, spans, st.lists(st.tuples(advice, spans), max_size=3)), max_size=7
)


def plan_of(operations: list[tuple[int, Advice, range]]) -> Plan:
    return Plan(
        "drawn",
        "pfns",
        np.array([code for _, code, _ in operations], np.uint8),
        np.array([span.start * PAGE_BYTES for *_, span in operations], np.uint64),
        np.array([len(span) * PAGE_BYTES for *_, span in operations], np.uint64),
        np.array([request for request, *_ in operations], np.int64),
    )


def judged(found) -> tuple[str, set[int], set[int]]:
    """Why the plan must not run, if anything; the host's pages; those that ever went."""
    host, given, went = set(), set(), set()
    owed_pages = 0
    for number, (queue, span, operations) in enumerate(found):
        pages = set(span)
        lent = pages if queue == Queue.REPORTING else set()
        owed = set(lent)
        if queue == Queue.INFLATE:
            given -= pages - host
            host |= pages
        elif queue == Queue.DEFLATE:
            host -= pages
        wrong = set()
        for code, touched in operations:
            if code in GIVES:
                wrong |= set(touched) - host - lent
                given |= set(touched)
                owed -= set(touched)
                went |= set(touched) if code == Advice.DONTNEED else set()
            elif code == Advice.POPULATE_WRITE:
                given -= set(touched)
        if wrong:
            return f"page {min(wrong)} of the memory with request {number}", host, went
        owed_pages += len(owed)
    if host - given:
        return f"{len(host - given)} pages in the balloon", host, went
    return f"{owed_pages} reported pages" if owed_pages else "", host, went


@settings(max_examples=400)
@given(steps)
def test_a_plan_is_refused_for_the_first_page_that_it_wrongs_and_for_what_it_leaves(found):
    requests = from_pfns(
        (queue, [span] if queue == Queue.REPORTING else list(span)) for queue, span, _ in found
    )
    plan = plan_of([(i, *each) for i, (*_, given_) in enumerate(found) for each in given_])
    reason, host, went = judged(found)
    try:
        report = check_plan(requests, plan, CONTEXT)
    except PlanError as error:
        assert reason
        assert reason in error.reason
    else:
        assert reason == ""
        assert (report.host_owned_pages, report.gone_pages) == (len(host), len(went))
