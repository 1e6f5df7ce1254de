"""Holds a plan to page ownership before anything runs it: a wrong plan would destroy guest data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replay.backings import CALLS, Advice
from replay.native.types import MAX_THREADS, Effect
from replay.plan import MAX_CALL_RANGES, Context, Plan, gone_pages
from replay.ranges import Bools, Int64s, Runs, align_in, compact, expand, intersect, merge, subtract
from replay.requests import Requests
from replay.strategies.select import Pieces, reported, wire_pages
from tracer.trace.errors import AerostatError
from tracer.trace.schema import PAGE_BYTES, Queue

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
    page = (plan.offset_bytes // np.uint64(PAGE_BYTES)).astype(np.int64)
    pages = (plan.length_bytes // np.uint64(PAGE_BYTES)).astype(np.int64)
    touched = merge(page, pages)
    if (stray := subtract(touched, context.layout.runs)).total_pages:
        raise _refuse(plan, f"page {int(stray.start[0])} of the memory is in no region")
    destructive = ~np.isin(plan.advice, HARMLESS)
    operated = Pieces(page[destructive], pages[destructive], plan.request[destructive])
    if int(operated.pages.sum()) > MAX_CHECKED_PAGES:
        raise _refuse(plan, f"it discards more than {MAX_CHECKED_PAGES} pages in all")
    history = _History(requests, context)
    _check_ownership(plan, operated, history, reported(requests, context))
    _check_threads(plan, page, pages)
    gives = context.memory.advice_with(Effect.FREES, Effect.FREES_LATER)
    giving = np.isin(plan.advice, gives)
    given = Pieces(page[giving], pages[giving], plan.request[giving])
    changing = giving | (plan.advice == Advice.POPULATE_WRITE)
    since = np.where(giving, plan.request, -1)
    missing = _missing(Pieces(page[changing], pages[changing], since[changing]), history, context)
    unreported = _missing_reported(given, requests, context)
    if plan.discards and context.host_page_bytes == PAGE_BYTES:
        if missing:
            raise _refuse(plan, f"{missing} pages in the balloon at the end are not given back")
        if unreported:
            raise _refuse(plan, f"{unreported} reported pages are not given back in their request")
    return PlanReport(
        len(plan),
        gone_pages(plan, context).total_pages,
        int(history.kept.sum()),
        missing,
        unreported,
    )


def _check_form(requests: Requests, plan: Plan, context: Context) -> None:
    columns = (plan.advice, plan.offset_bytes, plan.length_bytes, plan.request)
    more = [column for column in (plan.joined, plan.thread) if column is not None]
    if len({len(column) for column in (*columns, *more)}) != 1:
        raise _refuse(plan, "its columns differ in length")
    if len(plan) == 0:
        return
    if not np.isin(plan.advice, list(Advice)).all():
        raise _refuse(plan, "it holds advice that does not exist")
    for advice in map(Advice, np.unique(plan.advice).tolist()):
        if advice not in context.memory.effects:
            raise _refuse(plan, f"on {context.backing} memory {context.memory.why_not(advice)}")
    if (np.diff(plan.request) < 0).any():
        raise _refuse(plan, "its operations are not in order of the requests")
    if plan.request[0] < 0 or plan.request[-1] >= len(requests):
        raise _refuse(plan, "an operation belongs to a request that does not exist")
    if (plan.length_bytes == 0).any():
        raise _refuse(plan, "an operation of no bytes")
    unit = np.where(plan.advice == Advice.WILLNEED, PAGE_BYTES, context.host_page_bytes)
    if ((plan.offset_bytes | plan.length_bytes) % unit.astype(np.uint64)).any():
        raise _refuse(plan, f"an operation is not whole host pages of {context.host_page_bytes}")
    size = np.uint64(context.layout.memory_bytes)
    inside = (plan.length_bytes <= size) & (plan.offset_bytes <= size)
    if not inside.all() or (plan.offset_bytes + plan.length_bytes > size).any():
        raise _refuse(plan, f"an operation ends beyond the memory of {int(size)} bytes")
    _check_calls(plan)


def _check_calls(plan: Plan) -> None:
    """Operations that share a system call are alike, belong together and are not too many."""
    if plan.joined is None:
        return
    follows = np.flatnonzero(plan.joined)
    if len(follows) == 0:
        return
    if follows[0] == 0:
        raise _refuse(plan, "its first operation shares the call of none before it")
    for column in (plan.advice, plan.request, *(() if plan.thread is None else (plan.thread,))):
        if (column[follows] != column[follows - 1]).any():
            raise _refuse(plan, "operations of one call differ in advice, request or thread")
    if np.isin(plan.advice[follows], CALLS).any():
        raise _refuse(plan, "operations share a call that takes one range only")
    if int(np.diff(np.append(np.flatnonzero(~plan.joined), len(plan))).max()) > MAX_CALL_RANGES:
        raise _refuse(plan, f"a call of more than {MAX_CALL_RANGES} ranges")


def _check_threads(plan: Plan, page: Int64s, pages: Int64s) -> None:
    """Threads that run at once keep to memory that is not each other's."""
    if plan.thread is None or not plan.thread.any():
        return
    if plan.threads > MAX_THREADS:
        raise _refuse(plan, f"more than {MAX_THREADS} threads")
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


class _History:
    """Who owned each page when, by inflate and deflate alone."""

    def __init__(self, requests: Requests, context: Context) -> None:
        memory_pages = context.layout.memory_pages
        given, by = wire_pages(requests, context, Queue.INFLATE)
        taken, back = wire_pages(requests, context, Queue.DEFLATE)
        self.requests = len(requests) + 1
        # (page, request, whether the host gets it) in one sortable number below 2**63.
        self.events = np.sort(
            np.concatenate(
                ((given * self.requests + by) * 2 + 1, (taken * self.requests + back) * 2)
            )
        )
        page, request, to_host = self._split()
        self.kept: Bools = np.zeros(memory_pages, np.bool_)
        self.kept[page] = to_host  # events ascend, so a page's last one counts
        begins = to_host.copy()
        begins[1:] &= ~(to_host[:-1] & (page[1:] == page[:-1]))
        self.since = np.zeros(memory_pages, np.int64)
        self.since[page[begins]] = request[begins]

    def _split(self) -> tuple[Int64s, Int64s, Bools]:
        place = self.events >> 1
        page = place // self.requests
        return page, place - page * self.requests, (self.events & 1).astype(np.bool_)

    def host_owned(self, page: Int64s, request: Int64s) -> Bools:
        """Whether the host owns each page once the request has arrived."""
        asked = (page * self.requests + request) * 2 + 1
        before = np.searchsorted(self.events, asked, side="right") - 1
        if len(self.events) == 0:
            return np.zeros(len(page), np.bool_)
        found = self.events[before]
        owned: Bools = (before >= 0) & (found & 1 == 1) & ((found >> 1) // self.requests == page)
        return owned


def _keyed(found: Pieces, context_pages: int) -> Runs:
    """Lay the pieces of each request on a stretch of their own, so that runs never mix requests."""
    return merge(found.page + found.request * (context_pages + 1), found.pages)


def _check_ownership(plan: Plan, operated: Pieces, history: _History, lent: Pieces) -> None:
    """Every page of a discard is in the balloon, or lent by the very request it belongs to."""
    memory_pages = len(history.kept)
    rest = subtract(_keyed(operated, memory_pages), _keyed(lent, memory_pages))
    flat = expand(rest)
    request = flat // (memory_pages + 1)
    page = flat - request * (memory_pages + 1)
    owned = history.host_owned(page, request)
    if not owned.all():
        first = int(np.flatnonzero(~owned)[0])
        raise _refuse(
            plan,
            f"it discards page {int(page[first])} of the memory with request "
            f"{int(request[first])}, when the guest owns it",
        )


def _missing(given: Pieces, history: _History, context: Context) -> int:
    """Pages in whole host pages that stay with the host and were not given back since.

    `given` is in order of the operations; its `request` is -1 where one fills its pages again.
    """
    last = np.full(len(history.kept), -1, np.int64)
    page = expand(Runs(given.page, given.pages))
    last[page] = np.repeat(given.request, given.pages)
    kept = align_in(compact(np.flatnonzero(history.kept)), context.host_page_pages)
    left = compact(np.flatnonzero(history.kept & (last < history.since)))
    return intersect(kept, left).total_pages


def _missing_reported(given: Pieces, requests: Requests, context: Context) -> int:
    pages = context.layout.memory_pages
    return subtract(_keyed(reported(requests, context), pages), _keyed(given, pages)).total_pages


def _refuse(plan: Plan, reason: str) -> PlanError:
    return PlanError(
        f"the plan of strategy {plan.name!r} must not run",
        reason=reason,
        remedy="mend the strategy; docs/strategies.md says what a plan must hold to",
    )
