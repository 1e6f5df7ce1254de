"""What each strategy would do with a trace, counted and not run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from replay.check import check_plan
from replay.plan import Advice, Context, Plan
from replay.ranges import pfns_from_runs, rising
from replay.requests import Requests
from replay.strategies import STRATEGIES
from replay.strategies.base import Strategy
from tracer.trace.schema import PFN_SHIFT, Queue


@dataclass(frozen=True)
class Mergeability:
    """How well a trace's balloon pages could be merged, in the order in which they came.

    Args:
        pages: Pages of inflate and deflate requests.
        rising_share: Share of steps within a request from one PFN to the next that are +1; None
            where there is no step.
        falling_share: The same for -1.
        outside_pages: Pages named by inflate, deflate and reports that are no guest memory.
    """

    pages: int
    rising_share: float | None
    falling_share: float | None
    outside_pages: int


@dataclass(frozen=True)
class Summary:
    """One strategy's plan in numbers.

    Args:
        name: The strategy.
        operations: System calls, all kinds together.
        operations_by_advice: The same by the name of the advice.
        pages: 4 KiB pages that the operations cover, repeats counted.
        bytes: The same in bytes.
        discards: Operations other than WILLNEED, which gives nothing back.
        discard_bytes: Bytes that these cover, repeats counted.
        wire_requests: Requests that the driver sends.
        wire_bytes: Bytes in them that name pages.
        run_pages_histogram: Operations by length: key k counts 2**k to 2**(k+1) - 1 pages.
        to_qemu: Operations as a share of qemu's; None where qemu has none.
        to_oracle: Discards as a multiple of the oracle's; None where the oracle has none.
    """

    name: str
    operations: int
    operations_by_advice: dict[str, int]
    pages: int
    bytes: int
    discards: int
    discard_bytes: int
    wire_requests: int
    wire_bytes: int
    run_pages_histogram: dict[int, int]
    to_qemu: float | None
    to_oracle: float | None


@dataclass(frozen=True)
class WhatIf:
    """The trace, and every strategy on it."""

    trace: Mergeability
    strategies: tuple[Summary, ...]


def what_if(
    requests: Requests, context: Context, strategies: Iterable[Strategy] | None = None
) -> WhatIf:
    """Plan a trace under some strategies and count.

    Args:
        requests: The trace's requests.
        context: The memory.
        strategies: Those to plan; all that ship when left out. qemu and the oracle are planned in
            any case, because the ratios need them.

    Raises:
        PlanError: A strategy that does not ship with aerostat makes a plan that must not run.
    """
    chosen = list(STRATEGIES.values() if strategies is None else strategies)
    plans = {strategy.name: strategy.plan(requests, context) for strategy in chosen}
    for strategy in chosen:
        if STRATEGIES.get(strategy.name) is not strategy:
            check_plan(requests, plans[strategy.name], context)
    qemu = plans.get("qemu") or STRATEGIES["qemu"].plan(requests, context)
    oracle = plans.get("oracle") or STRATEGIES["oracle"].plan(requests, context)
    summaries = (summarise(plan, len(qemu), len(oracle)) for plan in plans.values())
    return WhatIf(mergeability(requests, context), tuple(summaries))


def summarise(plan: Plan, qemu_operations: int, oracle_discards: int) -> Summary:
    """Count one plan beside qemu's operations and the oracle's discards on the same trace."""
    pages = (plan.length_bytes >> np.uint64(PFN_SHIFT)).astype(np.int64)
    exponent = np.frexp(pages.astype(np.float64))[1] - 1
    lengths, counts = np.unique(exponent, return_counts=True)
    kinds, uses = np.unique(plan.advice, return_counts=True)
    total = int(pages.sum())
    discarding = plan.advice != Advice.WILLNEED
    discards = int(discarding.sum())
    return Summary(
        plan.name,
        len(plan),
        {Advice(kind).name: use for kind, use in zip(kinds.tolist(), uses.tolist(), strict=True)},
        total,
        total << PFN_SHIFT,
        discards,
        int(pages[discarding].sum()) << PFN_SHIFT,
        plan.wire_requests,
        plan.wire_bytes,
        dict(zip(lengths.tolist(), counts.tolist(), strict=True)),
        len(plan) / qemu_operations if qemu_operations else None,
        discards / oracle_discards if oracle_discards else None,
    )


def mergeability(requests: Requests, context: Context) -> Mergeability:
    """Count how pages follow each other within inflate and deflate requests."""
    pfn, pages, request = requests.runs_of(Queue.INFLATE, Queue.DEFLATE)
    step = np.diff(pfns_from_runs(pfn, pages))
    by = np.repeat(request, np.abs(pages))
    step = step[by[1:] == by[:-1]]
    return Mergeability(
        len(by),
        float((step == 1).mean()) if len(step) else None,
        float((step == -1).mean()) if len(step) else None,
        outside_pages(requests, context),
    )


def outside_pages(requests: Requests, context: Context) -> int:
    """Pages that inflate, deflate and reporting requests name outside guest memory."""
    pfn, pages, _ = requests.runs_of(Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING)
    start, length = rising(pfn, pages)
    return int(length.sum()) - int(context.layout.clip(start, length).pages.sum())
