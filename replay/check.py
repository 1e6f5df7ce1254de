"""Holds a plan to page ownership before anything runs it: a wrong plan would destroy guest data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replay.backings import CALLS, Advice
from replay.native.ownership import Deed, Known, PlanColumns, follow, survey
from replay.native.types import MAX_THREADS, Effect
from replay.plan import MAX_CALL_RANGES, Context, Plan
from replay.ranges import Bools, Runs, merge
from replay.requests import Requests
from replay.strategies.select import Pieces, reported
from tracer.trace.errors import AerostatError
from tracer.trace.schema import PAGE_BYTES

MAX_CHECKED_PAGES = 1 << 28
"""Pages that all operations may touch together; a plan beyond that is not checked, and refused."""
HARMLESS = (Advice.WILLNEED, Advice.POPULATE_WRITE)
"""Advice that keeps content, so that it may touch any guest memory."""


class PlanError(AerostatError):
    """A plan must not run: it breaks a rule that keeps guest memory whole."""


@dataclass(frozen=True)
class PlanReport:
    """What a plan that keeps the rules comes to.

    Args:
        operations: Operations in the plan.
        gone_pages: Different pages that it gives back at some time.
        host_owned_pages: Pages that the balloon holds at the end.
        missing_pages: Of those, pages in whole host pages that it did not give back since the
            host got them, or filled again. Not 0 only where host pages are larger than a balloon
            page and the strategy forgets what earlier requests gave, as QEMU does, or where the
            plan is not meant to discard.
        missing_reported_pages: The same for reported blocks.
    """

    operations: int
    gone_pages: int
    host_owned_pages: int
    missing_pages: int
    missing_reported_pages: int


def check_plan(requests: Requests, plan: Plan, context: Context) -> PlanReport:
    """Check a plan against the requests that it was made from.

    Args:
        requests: The requests.
        plan: Any plan, such as one of a user's own strategy.
        context: The memory that it was made for.

    Returns:
        What the plan does and leaves out.

    Raises:
        PlanError: An operation is malformed, or outside guest memory, or discards a page that the
            guest owns at that time; or pages that must be given back are not.
    """
    _check_form(requests, plan, context)
    columns = PlanColumns(plan.advice, plan.offset_bytes, plan.length_bytes, plan.request)
    deeds = _deeds(context)
    layout = context.layout
    surveyed = survey(columns, deeds, layout.columns)
    if surveyed.stray_page >= 0:
        raise _refuse(plan, f"page {surveyed.stray_page} of the memory is in no region")
    if surveyed.destroyed_pages > MAX_CHECKED_PAGES:
        raise _refuse(plan, f"it discards more than {MAX_CHECKED_PAGES} pages in all")
    memory = (layout.columns, layout.memory_pages)
    found = follow(requests.columns, columns, deeds, reported(requests, context), memory)
    if found.wrong_page >= 0:
        raise _refuse(
            plan,
            f"it discards page {found.wrong_page} of the memory with request "
            f"{found.wrong_request}, when the guest owns it",
        )
    _check_threads(plan)
    kept = (found.state & Known.OWNED) != 0
    missing = _missing(kept, (found.state & Known.GIVEN) != 0, context)
    if plan.discards and context.host_page_bytes == PAGE_BYTES:
        if missing:
            raise _refuse(plan, f"{missing} pages in the balloon at the end are not given back")
        if found.owed_pages:
            what = f"{found.owed_pages} reported pages are not given back in their request"
            raise _refuse(plan, what)
    return PlanReport(
        len(plan),
        int(np.count_nonzero(found.state & Known.WENT)),
        int(np.count_nonzero(kept)),
        missing,
        found.owed_pages,
    )


def _deeds(context: Context) -> dict[int, Deed]:
    """What each advice does to pages of this memory."""
    gives = context.memory.advice_with(Effect.FREES, Effect.FREES_LATER)
    frees = context.memory.advice_with(Effect.FREES)
    fills = (Advice.POPULATE_WRITE,)
    kinds = ((Deed.GIVES, gives), (Deed.FREES_NOW, frees), (Deed.FILLS_AGAIN, fills))
    deeds = {int(advice): Deed(0) for advice in HARMLESS}
    for advice in set(Advice) - set(HARMLESS):
        deeds[int(advice)] = Deed.DESTROYS
    for deed, codes in kinds:
        for code in codes:
            deeds[int(code)] |= deed
    return deeds


def _check_form(requests: Requests, plan: Plan, context: Context) -> None:
    columns = (plan.advice, plan.offset_bytes, plan.length_bytes, plan.request)
    more = [column for column in (plan.joined, plan.thread) if column is not None]
    if len({len(column) for column in (*columns, *more)}) != 1:
        raise _refuse(plan, "its columns differ in length")
    if len(plan) == 0:
        return
    counts = {advice: np.count_nonzero(plan.advice == advice) for advice in Advice}
    if sum(counts.values()) != len(plan):
        raise _refuse(plan, "it holds advice that does not exist")
    for advice in sorted(counts):
        if counts[advice] and advice not in context.memory.effects:
            raise _refuse(plan, f"on {context.backing} memory {context.memory.why_not(advice)}")
    if (plan.request[1:] < plan.request[:-1]).any():
        raise _refuse(plan, "its operations are not in order of the requests")
    if plan.request[0] < 0 or plan.request[-1] >= len(requests):
        raise _refuse(plan, "an operation belongs to a request that does not exist")
    if (plan.length_bytes == 0).any():
        raise _refuse(plan, "an operation of no bytes")
    if not _whole_pages(plan, context.host_page_bytes):
        raise _refuse(plan, f"an operation is not whole host pages of {context.host_page_bytes}")
    size = np.uint64(context.layout.memory_bytes)
    inside = (plan.length_bytes <= size) & (plan.offset_bytes <= size)
    if not inside.all() or (plan.offset_bytes + plan.length_bytes > size).any():
        raise _refuse(plan, f"an operation ends beyond the memory of {int(size)} bytes")
    _check_calls(plan)


def _whole_pages(plan: Plan, host_page_bytes: int) -> bool:
    """Whether all is host pages, and WILLNEED, which may touch parts of them, balloon pages."""
    places = plan.offset_bytes | plan.length_bytes
    places &= np.uint64(host_page_bytes - 1)
    willneed = plan.advice == Advice.WILLNEED
    if places.any(where=~willneed):
        return False
    places &= np.uint64(PAGE_BYTES - 1)
    return not places.any(where=willneed)


def _check_calls(plan: Plan) -> None:
    """Operations that share a system call are alike, belong together and are not too many."""
    if plan.joined is None:
        return
    if not plan.joined.any():
        return
    if plan.joined[0]:
        raise _refuse(plan, "its first operation shares the call of none before it")
    follows = plan.joined[1:]
    for column in (plan.advice, plan.request, *(() if plan.thread is None else (plan.thread,))):
        if (column[1:] != column[:-1]).any(where=follows):
            raise _refuse(plan, "operations of one call differ in advice, request or thread")
    if any((plan.advice == call).any(where=plan.joined) for call in CALLS):
        raise _refuse(plan, "operations share a call that takes one range only")
    if int(np.diff(np.append(np.flatnonzero(~plan.joined), len(plan))).max()) > MAX_CALL_RANGES:
        raise _refuse(plan, f"a call of more than {MAX_CALL_RANGES} ranges")


def _check_threads(plan: Plan) -> None:
    """Threads that run at once keep to memory that is not each other's."""
    if plan.thread is None or not plan.thread.any():
        return
    if plan.threads > MAX_THREADS:
        raise _refuse(plan, f"more than {MAX_THREADS} threads")
    page = (plan.offset_bytes // np.uint64(PAGE_BYTES)).astype(np.int64)
    pages = (plan.length_bytes // np.uint64(PAGE_BYTES)).astype(np.int64)
    memory_pages = int((page + pages).max())
    shared = np.zeros(int(plan.request[-1]) + 1, np.bool_)
    shared[plan.request[plan.thread > 0]] = True
    chosen = shared[plan.request]
    found = Pieces(page[chosen], pages[chosen], plan.request[chosen])
    thread = plan.thread[chosen]
    apart = sum(
        _keyed(Pieces(*(column[thread == one] for column in found)), memory_pages).total_pages
        for one in np.unique(thread).tolist()
    )
    if apart != _keyed(found, memory_pages).total_pages:
        raise _refuse(plan, "two threads touch the same page at the same time")


def _keyed(found: Pieces, context_pages: int) -> Runs:
    """Lay the pieces of each request on a stretch of their own, so that runs never mix requests."""
    return merge(found.page + found.request * (context_pages + 1), found.pages)


def _missing(kept: Bools, given: Bools, context: Context) -> int:
    """Pages in whole host pages that stay with the host and were not given back since."""
    unit = context.host_page_pages
    whole = len(kept) // unit * unit
    kept, given = (column[:whole].reshape(-1, unit) for column in (kept, given))
    return int(np.count_nonzero(~given[kept.all(axis=1)]))


def _refuse(plan: Plan, reason: str) -> PlanError:
    return PlanError(
        f"the plan of strategy {plan.name!r} must not run",
        reason=reason,
        remedy="mend the strategy; docs/strategies.md says what a plan must hold to",
    )
