"""Is a candidate better, worse, the same, or not decidable beside a baseline?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from replay.environment import differences
from replay.results import Results, Run, StrategyResult
from replay.stats import Difference, Gates, Verdict, compare_counts, compare_samples
from tracer.trace.errors import AerostatError, ExitCode

TIMES: dict[str, Callable[[Run], int]] = {
    "send_ns": lambda run: run.send_ns,
    "merge_ns": lambda run: run.merge_ns,
    "translate_ns": lambda run: run.translate_ns,
    "discard_ns": lambda run: run.discard_ns,
    "total_ns": lambda run: run.total_ns,
}
COUNTS: dict[str, Callable[[StrategyResult], int]] = {
    "operations": lambda strategy: strategy.operations,
    "calls": lambda strategy: strategy.runs[0].calls if strategy.runs else 0,
    "wire_requests": lambda strategy: strategy.wire_requests,
}
SEEN: dict[str, Callable[[StrategyResult], list[int]]] = {
    "worst_pause_ns": lambda each: [run.pauses.max_ns for run in each.watched if run.pauses],
    "p99_pause_ns": lambda each: [run.pauses.p99_ns for run in each.watched if run.pauses],
    "touch_ns": lambda each: [run.touch_ns for run in each.runs if run.touch_ns is not None],
    "touch_faults": lambda each: [
        run.touch_faults for run in each.runs if run.touch_faults is not None
    ],
    "minor_faults": lambda each: [run.minor_faults for run in each.runs],
    "huge_split_pages": lambda each: [run.huge.split_pages for run in each.watched if run.huge],
}
"""What is told beside times and counts, of runs that observed it; it decides only where a policy
names it."""
DECISIVE = ("discard_ns", "total_ns", "operations", "freed_pages")
"""What frees less memory is no better for being quicker."""
FLOOR_STRATEGY = "nop"


class UnlikeError(AerostatError):
    """Two results are not of the same thing, or not from the same kind of machine."""


@dataclass(frozen=True)
class Policy:
    """What a comparison demands.

    Args:
        gates: What counts as a difference.
        decisive: Metrics that the overall verdict is made of; the others are told beside it.
        unlike_environments: Compare results of machines that differ in a checked key.
        unlike_work: Compare results of different traces or settings.
        seed: Of the bootstrap.
    """

    gates: Gates = field(default_factory=Gates)
    decisive: tuple[str, ...] = DECISIVE
    unlike_environments: bool = False
    unlike_work: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Line:
    """One metric of one strategy (or queue). Only a decisive line weighs in the overall verdict."""

    subject: str
    metric: str
    decisive: bool
    difference: Difference


@dataclass(frozen=True)
class Comparison:
    """All lines and what they say together: worse, else inconclusive, else better, else same."""

    verdict: Verdict
    lines: tuple[Line, ...]
    warnings: tuple[str, ...]

    @property
    def exit_code(self) -> ExitCode:
        """3 for worse, 4 for inconclusive, else 0."""
        codes = {
            Verdict.WORSE: ExitCode.REGRESSION,
            Verdict.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
        }
        return codes.get(self.verdict, ExitCode.OK)

    def to_json(self) -> dict[str, Any]:
        """One JSON document."""
        return dataclasses.asdict(self)


def compare(base: Results, candidate: Results, policy: Policy | None = None) -> Comparison:
    """Compare two results, strategy by strategy and metric by metric.

    Args:
        base: The baseline.
        candidate: What is judged against it; lower times and counts are better.
        policy: What counts; the defaults where None.

    Raises:
        UnlikeError: The machines, traces or settings differ and the policy does not allow it; or
            the two have no strategy in common.
    """
    policy = policy or Policy()
    notes = (*_losses(base, candidate), *_refuse_unlike(base, candidate, policy))
    notes += (*_failures("baseline", base), *_failures("candidate", candidate))
    if base.aerostat_version != candidate.aerostat_version:
        versions = f"{base.aerostat_version} and {candidate.aerostat_version}"
        notes += (f"aerostat itself differs, {versions}: replay both anew to blame anything else",)
    old = {strategy.name: strategy for strategy in base.strategies}
    new = {strategy.name: strategy for strategy in candidate.strategies}
    shared = [name for name in old if name in new]
    if not set(shared) - {FLOOR_STRATEGY}:
        raise UnlikeError(
            "the two results have no strategy in common",
            reason=f"baseline: {', '.join(old)}; candidate: {', '.join(new)}",
            remedy="replay both with the same --strategy options",
        )
    one_sided = sorted(old.keys() ^ new.keys())
    if one_sided:
        notes += (f"only on one side, not compared: {', '.join(one_sided)}",)
    lines = [line for name in shared for line in _lines(old[name], new[name], policy)]
    return Comparison(overall(lines), tuple(lines), notes)


def overall(lines: Sequence[Line]) -> Verdict:
    """Weigh the decisive lines: one that is worse makes the whole worse, and so on."""
    seen = {line.difference.verdict for line in lines if line.decisive}
    for verdict in (Verdict.WORSE, Verdict.INCONCLUSIVE, Verdict.BETTER):
        if verdict in seen:
            return verdict
    return Verdict.SAME if seen else Verdict.INCONCLUSIVE


def _lines(old: StrategyResult, new: StrategyResult, policy: Policy) -> list[Line]:
    # A loop over nothing takes nanoseconds, and its scatter must not decide anything: that is all
    # of the floor, and stage d of whatever cannot discard, such as qemu on larger host pages.
    weighs = old.name != FLOOR_STRATEGY
    idle = not (old.operations or new.operations)
    lines = []

    def add(metric: str, difference: Difference) -> None:
        decisive = weighs and metric in policy.decisive
        decisive = decisive and not (idle and metric == "discard_ns")
        lines.append(Line(old.name, metric, decisive, difference))

    for metric, time_ns in TIMES.items():
        one, other = ([time_ns(run) for run in each.runs] for each in (old, new))
        add(metric, compare_samples(one, other, policy.gates, policy.seed))
    for metric, count in COUNTS.items():
        add(metric, compare_counts(count(old), count(new)))
    if old.runs and new.runs:
        add("freed_pages", _freed(old, new, policy))
    for metric, values in SEEN.items():
        one, other = values(old), values(new)
        if one and other:
            add(metric, compare_samples(one, other, policy.gates, policy.seed))
    return lines


def _failures(which: str, results: Results) -> list[str]:
    """Tell of operations that failed: what fails may well be quick."""
    return [
        f"{each.name}: {failures} of {each.operations} operations failed in the {which}"
        for each in results.strategies
        if (failures := max((run.failures for run in each.runs), default=0))
    ]


def _refuse_unlike(base: Results, candidate: Results, policy: Policy) -> tuple[str, ...]:
    """Raise, or return what differs as warnings where the policy allows it."""
    machines = differences(base.environment, candidate.environment)
    if machines and not policy.unlike_environments:
        raise UnlikeError(
            "the two results come from unlike machines",
            reason="; ".join(machines),
            remedy="replay both on one machine, or --unlike-environments to compare anyway",
        )
    work = _work_differences(base, candidate)
    if work and not policy.unlike_work:
        raise UnlikeError(
            "the two results are not of the same work",
            reason="; ".join(work),
            remedy="replay the same trace with the same settings, or --unlike-work",
        )
    return (*machines, *work)


def _freed(old: StrategyResult, new: StrategyResult, policy: Policy) -> Difference:
    """Judge the memory that came back: of this more is better."""
    one, other = ([max(run.freed_pages, 0) for run in each.runs] for each in (old, new))
    if any(one) and any(other):
        found = compare_samples(one, other, policy.gates, policy.seed)
    else:  # no ratio to nothing
        found = compare_counts(int(median(one)), int(median(other)))
    turned = {Verdict.WORSE: Verdict.BETTER, Verdict.BETTER: Verdict.WORSE}
    return replace(found, verdict=turned.get(found.verdict, found.verdict))


def _losses(*results: Results) -> list[str]:
    """Tell of traces that are not whole: whoever replayed them allowed it."""
    return [
        f"{trace.name}, which was replayed, {trace.missing}"
        for trace in dict.fromkeys(result.trace for result in results)
        if trace.missing is not None
    ]


def _work_differences(base: Results, candidate: Results) -> tuple[str, ...]:
    keys = ("backing", "siblings", "resting_threads", "residency", "requests_replayed")
    found = [
        f"{key} is {getattr(base.settings, key)!r} and {getattr(candidate.settings, key)!r}"
        for key in keys
        if getattr(base.settings, key) != getattr(candidate.settings, key)
    ]
    thp = [each.settings.thp for each in (base, candidate)]
    # Other memory takes none; results of before 5.2 name one all the same.
    if thp[0] != thp[1] and base.settings.backing == candidate.settings.backing == "anon":
        found.append(f"thp is {thp[0]!r} and {thp[1]!r}")
    pinned = [each.settings.cpu is not None for each in (base, candidate)]
    if pinned[0] != pinned[1]:
        found.append("one was kept on one CPU, the other was not (--cpu)")
    if base.trace.session_id != candidate.trace.session_id:
        found.append(f"the traces are {base.trace.name} and {candidate.trace.name}, two sessions")
    return tuple(found)
