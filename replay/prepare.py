"""What a replay carries out: every strategy's plan, for as much of the trace as memory can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from replay.backings import BACKINGS, Advice
from replay.budget import (
    MARGIN_BYTES,
    Demand,
    Fitted,
    available_bytes,
    fit,
    huge_pool_bytes,
    require_planning,
    within,
)
from replay.check import check_plan
from replay.merging import Merging, merging
from replay.plan import Context, Plan
from replay.planning import Refused, attempt, make_plan
from replay.requests import Requests
from replay.residency import Residency
from replay.sending import Sending, sending
from replay.shared import share
from replay.strategies import load_strategies, spelled_out
from replay.strategies.base import Strategy
from replay.support import unsupported
from tracer.trace.errors import AerostatError
from tracer.trace.progress import Progress

FLOOR_STRATEGY = "nop"


@dataclass(frozen=True, eq=False)
class Planned:
    """A strategy, its plan, what the driver would send, and what is merged for it, if anything."""

    strategy: Strategy
    plan: Plan
    sending: Sending
    merging: Merging | None


def plan_all(
    names: Sequence[str], requests: Requests, context: Context, progress: Progress
) -> tuple[list[Planned], list[Refused]]:
    """Plan every strategy once, nop first, and hold each plan to the rules of the device.

    Args:
        names: Names that `load_strategies` knows, or `ALL`.
        requests: What to plan for.
        context: The memory.
        progress: Told of phase `plan`.

    Returns:
        Those that can work on this memory and this kernel, and those that cannot. Large columns lie
        in shared memory, which the process of each run maps.

    Raises:
        AerostatError: None but nop can work here, or there is too little memory for so many pages.
    """
    require_planning(requests)
    strategies = load_strategies((FLOOR_STRATEGY, *spelled_out(names)))
    planned: list[Planned] = []
    refused: list[Refused] = []
    for done, strategy in enumerate(strategies):
        progress("plan", done, len(strategies))
        plan = make_plan(strategy, requests, context)
        if not isinstance(plan, Refused) and (reason := unsupported(plan)) is not None:
            plan = Refused(plan.name, reason)
        if isinstance(plan, Refused):
            refused.append(plan)
            continue
        if strategy is strategies[-1]:
            requests.memo.clear()  # no plan needs it any more, and it may be large
        check_plan(requests, plan, context)
        # nop, the first of all, sends what was recorded.
        sent = sending(requests, plan, planned[0].sending if planned else None)
        recorded = planned[0].sending if planned else sent
        size_pages = context.layout.memory_pages
        # What it merges is the strategy's own word too, and anyone may have written it.
        merged = attempt(
            strategy, context, partial(merging, strategy, requests, recorded, size_pages)
        )
        assert not isinstance(merged, Refused)  # or it would have been above
        planned.append(Planned(strategy, plan, sent, merged))
        del plan, sent, merged  # or the last ones would be kept while they move
    requests.memo.clear()
    for each in planned:
        share(each.plan, each.sending)
    progress("plan", len(strategies), len(strategies))
    if refused and len(planned) == 1:
        raise AerostatError(
            f"no strategy that was asked for can work on {context.backing} memory here",
            reason="; ".join(f"{each.name}: {each.reason}" for each in refused),
            remedy="choose another --strategy or another --backing",
        )
    return planned, refused


def fit_to_machine(
    requests: Requests,
    residency: Residency,
    context: Context,
    planned: Sequence[Planned],
    limit_bytes: int | None,
) -> Fitted:
    """Cut a trace to the memory that this machine has for its backing.

    Args:
        requests: The trace's requests.
        residency: The pages that are to be resident at first.
        context: The memory.
        planned: Plans of all requests: they say whether deflated memory is filled.
        limit_bytes: The user's limit.

    Raises:
        AerostatError: Not even a part fits, or there are no such host pages.
    """
    mapped_bytes = BACKINGS[context.backing].host_page_bytes
    if context.host_page_bytes != mapped_bytes:
        raise AerostatError(
            f"memory of {context.host_page_bytes} bytes a host page cannot be replayed",
            reason=f"{context.backing} memory is mapped with pages of {mapped_bytes} bytes here",
            remedy=f"--backing {context.backing} replays the trace on those",
        )
    demand = Demand(
        unit_pages=context.host_page_pages,
        copies=2 if context.backing == "file-private" else 1,
        fills=any((each.plan.advice == Advice.POPULATE_WRITE).any() for each in planned),
    )
    if context.backing == "hugetlb":
        spare_bytes = huge_pool_bytes()
    else:
        spare_bytes = available_bytes() - MARGIN_BYTES
    allowed_bytes = within(spare_bytes, limit_bytes)
    return fit(requests, residency, context.layout, allowed_bytes, demand)
