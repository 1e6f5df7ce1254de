"""What a reader must know before trusting the times of a replay."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from statistics import median

from replay.backings import Advice
from replay.check import HARMLESS
from replay.plan import Plan, covered_pages
from replay.ranges import intersect, merge_sorted
from replay.residency import Residency
from replay.results import StrategyResult

MOSTLY_EMPTY = 0.5
"""Below this share of discarded pages with memory behind them, times are those of empty memory."""
FLOOR_SHARE = 0.05
FORMED = 0.99
"""Below this share of the huge pages that were asked for, times are not those of huge pages."""


def run_warnings(
    plans: Sequence[Plan], strategies: Sequence[StrategyResult], residency: Residency
) -> tuple[str, ...]:
    """Warn of failed operations, of memory that was not given back, and of times of nothing.

    Args:
        plans: The plans that were run.
        strategies: Their results, in the same order.
        residency: The pages that had memory behind them when each run began.
    """
    found = [*failure_warnings(strategies), *floor_warnings(strategies)]
    empty: dict[tuple[int, int], list[str]] = {}
    for plan, strategy in zip(plans, strategies, strict=True):
        runs = strategy.runs
        still = max(run.still_resident_pages for run in runs)
        if still:
            found.append(
                f"{strategy.name}: {still} discarded pages still have memory behind them, so it "
                "frees less than it says: do not compare its time with those that free them"
            )
        huge = residency.huge.total_pages
        if (came := min(run.huge_pages for run in runs)) < FORMED * huge:
            found.append(
                f"{strategy.name}: of {huge} pages to be in huge pages {came} were, so its time is "
                "not that of huge pages: free memory, or let it be compacted, and replay again"
            )
        resident, discarded = discarded_pages(plan, residency)
        if resident < MOSTLY_EMPTY * discarded:
            empty.setdefault((resident, discarded), []).append(strategy.name)
        if resident and not any(run.gone_pages or run.lazy_pages for run in runs):
            found.append(
                f"{strategy.name}: its discards gave no memory back, so its time is that of "
                "nothing: use a strategy that works on this backing"
            )
    found += [_of_empty(names, *pages, residency) for pages, names in empty.items()]
    return tuple(found)


def failure_warnings(strategies: Sequence[StrategyResult]) -> tuple[str, ...]:
    """Warn of operations that failed: the time of a failure is not that of the work."""
    found = []
    for strategy in strategies:
        worst = max(strategy.runs, key=lambda run: run.failures)
        if worst.failures:
            name = errno.errorcode.get(worst.first_errno, str(worst.first_errno))
            found.append(
                f"{strategy.name}: {worst.failures} of {strategy.operations} operations failed, "
                f"the first with {name} ({os.strerror(worst.first_errno)}), so its time is not "
                "that of the work: see docs/strategies.md for what it needs, or leave it out"
            )
    return tuple(found)


def floor_warnings(strategies: Sequence[StrategyResult]) -> tuple[str, ...]:
    """Warn where the harness is a part of stage d that matters."""
    return tuple(
        f"{strategy.name}: the harness's floor is over 5 % of its discard time: "
        "take the floor off before comparing it, or replay a longer trace"
        for strategy in strategies
        if strategy.operations
        and median(run.floor_ns for run in strategy.runs)
        > FLOOR_SHARE * median(run.discard_ns for run in strategy.runs)
    )


def sibling_warnings(strategies: Sequence[StrategyResult], siblings: int) -> tuple[str, ...]:
    """Warn where siblings ran without reading the memory, because nothing of it was left alone."""
    idle = [each.name for each in strategies if not max(run.sibling_pages for run in each.runs)]
    if not siblings or not idle:
        return ()
    return (
        f"{', '.join(idle)}: operations touch all resident memory, so siblings read none of it;"
        " they took the flush interrupts all the same: choose another --residency if that matters",
    )


def thread_warnings(plans: Sequence[Plan], siblings: int, cpus: int) -> tuple[str, ...]:
    """Warn of threads that wait for a CPU rather than for memory."""
    return tuple(
        f"{plan.name}: its {plan.threads} threads and {siblings} siblings share {cpus} CPUs, so "
        "they wait for each other: use fewer --siblings or threads, or a machine with more CPUs"
        for plan in plans
        if plan.threads > 1 and plan.threads + siblings > cpus
    )


def discarded_pages(plan: Plan, residency: Residency) -> tuple[int, int]:
    """Count the different pages that a plan discards.

    Returns:
        Pages that had memory behind them when the run began, and all pages; both of 4 KiB.
    """
    discarded = covered_pages(plan, [advice for advice in Advice if advice not in HARMLESS])
    resident = intersect(discarded, merge_sorted(residency.small, residency.huge))
    return resident.total_pages, discarded.total_pages


def _of_empty(names: Sequence[str], resident: int, discarded: int, residency: Residency) -> str:
    return (
        f"{', '.join(names)}: of {discarded:,} pages to discard {resident:,} had memory behind them"
        f" at the start (residency: {residency.source}), so stage d is mostly that of empty pages;"
        " --residency touched gives the other extreme"
    )
