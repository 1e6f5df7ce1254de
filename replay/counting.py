"""A strategy's plan in numbers, without the plan: most of a plan's time is spent on writing it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from replay.native.tallying import tally
from replay.plan import Context, Plan
from replay.planning import Refused, attempt, is_shipped, make_plan
from replay.ranges import Int64s
from replay.requests import Requests
from replay.strategies.base import Strategy
from tracer.trace.schema import PFN_SHIFT


@dataclass
class Counts:
    """What a plan comes to.

    Args:
        name: The strategy, with the parameters that are not at their defaults.
        calls: System calls, which several operations may share.
        threads: Threads that make them.
        wire_requests: Requests that the driver sends.
        wire_bytes: Bytes in them that name pages.
        operations: By advice code.
        pages: Pages that they cover, repeats counted, by the same codes.
        powers: Operations by length: key k counts 2**k to 2**(k + 1) - 1 pages.
    """

    name: str
    calls: int
    threads: int
    wire_requests: int
    wire_bytes: int
    operations: Counter[int] = field(default_factory=Counter)
    pages: Counter[int] = field(default_factory=Counter)
    powers: Counter[int] = field(default_factory=Counter)

    def add(self, code: int, lengths: Int64s) -> None:
        """Count operations of one advice, by their pages."""
        total_pages, powers = tally(lengths)
        self.operations[code] += len(lengths)
        self.pages[code] += total_pages
        self.powers.update(powers)


def count(strategy: Strategy, requests: Requests, context: Context) -> Counts | Refused:
    """Count what a strategy would do; a user's own is planned and held to the device's rules.

    Raises:
        StrategyError: The strategy failed.
        PlanError: Its plan must not run.
    """
    if is_shipped(strategy):
        return attempt(strategy, context, lambda: _of_parts(strategy, requests, context))
    plan = make_plan(strategy, requests, context)
    return plan if isinstance(plan, Refused) else _of_plan(plan)


def _of_parts(strategy: Strategy, requests: Requests, context: Context) -> Counts:
    parts = strategy.decided(requests, context)
    sent = strategy.sent_in_all(requests, context)
    joined = sum(int(part.joined.sum()) for part in parts if part.joined is not None)
    last = max((int(part.thread.max()) for part in parts if part.thread is not None), default=0)
    found = Counts(strategy.label, -joined, last + 1, len(sent.request), int(sent.bytes.sum()))
    for part in parts:
        for advice in part.advice:
            found.add(int(advice), part.pieces.pages)
    found.calls += found.operations.total()
    return found


def _of_plan(plan: Plan) -> Counts:
    found = Counts(plan.name, plan.calls, plan.threads, plan.wire_requests, plan.wire_bytes)
    for code in np.unique(plan.advice).tolist():
        length_bytes = plan.length_bytes[plan.advice == code]
        found.add(code, (length_bytes >> np.uint64(PFN_SHIFT)).view(np.int64))
    return found
