"""What each strategy would do with a trace, counted and not run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from replay.backings import Advice
from replay.budget import require_planning
from replay.check import HARMLESS
from replay.counting import Counts, count
from replay.native.selecting import outside_pages
from replay.native.tallying import count_steps
from replay.plan import Context
from replay.planning import Refused
from replay.ranges import Runs, align_in
from replay.rejections import BALLOON, Rejection, rejections
from replay.requests import Requests
from replay.residency import HUGE_PAGES
from replay.strategies import STRATEGIES
from replay.strategies.base import Strategy
from replay.strategies.deferred import Holding
from replay.strategies.oracle import phase_ranges
from replay.strategies.parallel import Parallel
from tracer.trace.schema import PFN_SHIFT, Queue

NAMING = (*BALLOON, Queue.REPORTING)
"""Queues of requests that name pages."""


class Window(NamedTuple):
    """How much, or how long, a strategy may hold memory back; None is no limit."""

    hold_bytes: int | None = None
    hold_ns: int | None = None


@dataclass(frozen=True)
class Mergeability:
    """How well a trace's balloon pages could be merged, in the order in which they came.

    Args:
        pages: Pages of inflate and deflate requests.
        rising_share: Share of steps within a request from one PFN to the next that are +1; None
            where there is no step.
        falling_share: The same for -1.
        huge_share: Share of inflated pages in 2 MiB pages that one inflate phase gives whole; None
            where nothing is inflated.
        outside_pages: Pages named by inflate, deflate and reports that are no guest memory.
        rejected: What the device model leaves out of the requests, or finds too much in them.
    """

    pages: int
    rising_share: float | None
    falling_share: float | None
    huge_share: float | None
    outside_pages: int
    rejected: tuple[Rejection, ...]


@dataclass(frozen=True)
class Summary:
    """One strategy's plan in numbers.

    Args:
        name: The strategy, with the parameters that are not at their defaults.
        hold_bytes: Its window in bytes; None where it has none or holds nothing back.
        hold_ns: The same in time.
        operations: Ranges advised, all kinds together.
        operations_by_advice: The same by the name of the advice.
        calls: System calls, which several ranges may share.
        threads: Threads that make them.
        pages: 4 KiB pages that the operations cover, repeats counted.
        bytes: The same in bytes.
        discards: Operations that give memory back: all but WILLNEED and POPULATE_WRITE.
        discard_bytes: Bytes that these cover, repeats counted.
        wire_requests: Requests that the driver sends.
        wire_bytes: Bytes in them that name pages.
        run_pages_histogram: Operations by length: key k counts 2**k to 2**(k+1) - 1 pages.
        to_qemu: System calls as a share of qemu's; None where qemu has none.
        to_oracle: Discards as a multiple of the oracle's; None where the oracle has none.
    """

    name: str
    hold_bytes: int | None
    hold_ns: int | None
    operations: int
    operations_by_advice: dict[str, int]
    calls: int
    threads: int
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
    """The trace, every strategy on it, and those that cannot work on its memory."""

    backing: str
    trace: Mergeability
    strategies: tuple[Summary, ...]
    refused: tuple[Refused, ...]


def what_if(
    requests: Requests,
    context: Context,
    strategies: Iterable[Strategy] | None = None,
    windows: Sequence[Window] = (),
) -> WhatIf:
    """Plan a trace under some strategies and count. No memory is touched.

    Args:
        requests: The trace's requests.
        context: The memory.
        strategies: Those to plan; all that ship when left out. qemu and the oracle are planned in
            any case, because the ratios need them.
        windows: Each strategy that holds memory back is counted with its own window and with each
            of these; where no strategies are named, not parallel, which
            merges as deferred does.

    Raises:
        AerostatError: There is too little memory for so many pages.
        StrategyError: A strategy of the user's own failed.
        PlanError: One made a plan that must not run.
    """
    require_planning(requests)
    named = strategies is not None
    chosen = list(STRATEGIES.values() if strategies is None else strategies)
    counted = {each.label: each for s in chosen for each in (s, *_curve(s, windows, named))}
    qemu, bound = (count(STRATEGIES[name], requests, context) for name in ("qemu", "oracle"))
    assert isinstance(qemu, Counts)  # these two work on every memory
    assert isinstance(bound, Counts)
    bounds = {each.name: each for each in (qemu, bound)}
    oracle = _discards(bound)[0]
    summaries, refused = [], []
    for label, strategy in counted.items():
        found = bounds.get(label) or count(strategy, requests, context)
        if isinstance(found, Refused):
            refused.append(found)
        else:
            summaries.append(summarise(strategy, found, qemu.calls, oracle))
    return WhatIf(
        context.backing, mergeability(requests, context), tuple(summaries), tuple(refused)
    )


def _curve(strategy: Strategy, windows: Sequence[Window], named: bool) -> list[Strategy]:
    if not isinstance(strategy, Holding) or (isinstance(strategy, Parallel) and not named):
        return []
    return [replace(strategy, **window._asdict()) for window in windows]


def summarise(strategy: Strategy, found: Counts, qemu_calls: int, oracle_discards: int) -> Summary:
    """Count one plan beside qemu's calls and the oracle's discards on the same trace."""
    total_pages = sum(found.pages.values())
    discards, discard_pages = _discards(found)
    window = Window()
    if isinstance(strategy, Holding):
        window = Window(strategy.hold_bytes, strategy.hold_ns)
    return Summary(
        found.name,
        window.hold_bytes,
        window.hold_ns,
        found.operations.total(),
        {a.name: found.operations[a] for a in Advice if a in found.operations},
        found.calls,
        found.threads,
        total_pages,
        total_pages << PFN_SHIFT,
        discards,
        discard_pages << PFN_SHIFT,
        found.wire_requests,
        found.wire_bytes,
        dict(sorted(found.powers.items())),
        found.calls / qemu_calls if qemu_calls else None,
        discards / oracle_discards if oracle_discards else None,
    )


def _discards(found: Counts) -> tuple[int, int]:
    """Operations that give memory back, and the pages that they cover."""
    giving = [code for code in found.operations if code not in HARMLESS]
    return sum(found.operations[code] for code in giving), sum(found.pages[c] for c in giving)


def mergeability(requests: Requests, context: Context) -> Mergeability:
    """Count how pages follow each other within inflate and deflate requests."""
    steps = count_steps(requests.columns, BALLOON)
    given = phase_ranges(requests, context)
    inflated = int(given.pages.sum())
    whole = align_in(Runs(given.page, given.pages), HUGE_PAGES).total_pages
    return Mergeability(
        int(requests.pages[np.isin(requests.queue, BALLOON)].sum()),
        steps.rising / steps.all if steps.all else None,
        steps.falling / steps.all if steps.all else None,
        whole / inflated if inflated else None,
        outside_pages(requests.columns, NAMING, context.layout.columns),
        rejections(requests, context),
    )
