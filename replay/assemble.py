"""From the runs of a replay to its results: sums, projections, fidelity, warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from statistics import median
from typing import TYPE_CHECKING, TypeAlias

from replay.against import against
from replay.caveats import run_warnings, sibling_warnings, thread_warnings
from replay.environment import Environment
from replay.fidelity import TRACED_STRATEGY, judge, send_time_ns
from replay.rejections import rejections
from replay.results import Fidelity, Results, Run, Settings, StrategyResult, TraceFacts
from replay.rounds import chosen_cpu, resting_cpu
from replay.sending import balloon_waits
from replay.stability import calibration_stability, machine_warnings, run_stability
from replay.strategies import load_strategy
from replay.summary import summarise
from tracer.trace.missing import missing_events
from tracer.trace.schema import PFN_SHIFT

if TYPE_CHECKING:
    from replay.budget import Fitted
    from replay.foretell import Foretold
    from replay.job import Done
    from replay.plan import Context
    from replay.planning import Refused
    from replay.prepare import Planned
    from replay.requests import Requests
    from replay.schedule import ReplayOptions
    from replay.watched import WatchedRun
    from tracer.trace.reader import Trace


Made: TypeAlias = "tuple[Planned, Sequence[Done], Sequence[WatchedRun]]"


@dataclass(frozen=True, eq=False)
class Replay:
    """A replay that has been run.

    `done` holds each strategy's runs, warm-up runs first, and `watched` its watched ones.
    `touched_pages` were touched again in each run; `stolen_share` is the share of CPU time that the
    host took meanwhile, where that is known.
    """

    options: ReplayOptions
    trace: Trace
    requests: Requests
    fitted: Fitted
    context: Context
    planned: tuple[Planned, ...]
    refused: tuple[Refused, ...]
    done: Sequence[Sequence[Done]]
    watched: Sequence[Sequence[WatchedRun]]
    touched_pages: int
    environment: Environment
    stolen_share: float | None
    foretold: Foretold


def assemble(replay: Replay) -> Results:
    """Put together what is kept of a replay."""
    strategies = _strategies(replay)
    settings = _settings(replay)
    names = [strategy.name for strategy in strategies]
    return Results(
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        aerostat_version=metadata.version("aerostat"),
        trace=_trace_facts(replay),
        settings=settings,
        environment=replay.environment,
        warnings=_warnings(replay, settings, strategies),
        fidelity=_fidelity(replay, strategies),
        strategies=strategies,
        refused=replay.refused,
        calibration=replay.foretold.calibration,
        free_list=replay.foretold.free_list,
        against=against(strategies, settings.against) if settings.against in names else None,
    )


def _warnings(
    replay: Replay, settings: Settings, strategies: Sequence[StrategyResult]
) -> tuple[str, ...]:
    plans = [planned.plan for planned in replay.planned]
    found = []
    if (missing := missing_events(replay.trace)) is not None:
        found.append(
            f"the trace {missing}: it is not all that happened; record again for a whole one"
        )
    for note, names in _not_foretold(replay).items():
        found.append(f"stage d of {', '.join(names)} was not foretold: {note}")
    if replay.fitted.reason:
        found.append(f"{replay.fitted.reason}; free memory or raise --memory-limit for more of it")
    return (
        *found,
        *machine_warnings(replay.environment, settings.siblings),
        *calibration_stability(replay.foretold.calibration),
        *run_stability(settings, strategies, replay.stolen_share),
        *thread_warnings(plans, settings.siblings, replay.environment.cpus_allowed),
        *sibling_warnings(strategies, settings.siblings),
        *run_warnings(plans, strategies, replay.fitted.residency),
    )


def _not_foretold(replay: Replay) -> dict[str, list[str]]:
    """Names of the strategies that were not foretold, by the reason."""
    found: dict[str, list[str]] = {}
    for planned, note in zip(replay.planned, replay.foretold.notes, strict=True):
        if note:
            found.setdefault(note, []).append(planned.plan.name)
    return found


def _strategies(replay: Replay) -> tuple[StrategyResult, ...]:
    made = zip(replay.planned, replay.done, replay.watched, strict=True)
    results = strategy_results(list(made), replay.options.warmup, send_time_ns(replay.trace))
    return tuple(
        replace(result, predicted_discard_ns=foretold_ns)
        for result, foretold_ns in zip(results, replay.foretold.discard_ns, strict=True)
    )


def strategy_results(
    made: Sequence[Made], warmup: int, send_ns: float | None = None
) -> tuple[StrategyResult, ...]:
    """Put together each strategy's counts and runs.

    Args:
        made: The strategies, all runs of each, warm-up runs first, and the watched ones.
        warmup: How many those before are.
        send_ns: Stage b of an inflate or deflate in the trace; None where it was not observed.
    """
    runs = {
        planned.plan.name: tuple(each.run for each in done[warmup:]) for planned, done, _ in made
    }
    return tuple(_strategy_result(each, warmup, runs, send_ns) for each in made)


def _strategy_result(
    made: Made, warmup: int, runs: Mapping[str, tuple[Run, ...]], send_ns: float | None
) -> StrategyResult:
    planned, done, watched = made
    plan = planned.plan
    length_bytes = int(plan.length_bytes.sum())
    waits = balloon_waits(planned.sending)
    return StrategyResult(
        name=plan.name,
        protocol=plan.protocol,
        operations=len(plan),
        calls=plan.calls,
        threads=plan.threads,
        bytes=length_bytes,
        pages=length_bytes >> PFN_SHIFT,
        wire_requests=plan.wire_requests,
        wire_bytes=plan.wire_bytes,
        translated_entries=done[0].translated_entries,
        rejected_entries=done[0].rejected_entries,
        projected_send_ns=None if send_ns is None else round(send_ns * waits),
        predicted_discard_ns=None,
        runs=runs[plan.name],
        warmups=tuple(each.run for each in done[:warmup]),
        watched=tuple(watched),
        summary=summarise(runs, plan.name),
        deployable=bool(planned.strategy.causal and planned.strategy.discards),
    )


def _trace_facts(replay: Replay) -> TraceFacts:
    return TraceFacts(
        name=replay.options.trace.name,
        session_id=replay.trace.manifest.session_id,
        complete=replay.trace.is_complete,
        lost_events=sum(loss.count for loss in replay.trace.losses),
        requests=len(replay.requests),
        pages=int(replay.requests.pages.sum()),
        memory_bytes=replay.context.layout.memory_bytes,
        rejected=rejections(replay.requests, replay.context),
    )


def _settings(replay: Replay) -> Settings:
    options, fitted = replay.options, replay.fitted
    return Settings(
        runs=options.runs,
        warmup=options.warmup,
        watched_runs=options.watched_runs,
        seed=options.seed,
        backing=replay.context.backing,
        thp=options.chosen_thp if replay.context.backing == "anon" else "",
        siblings=options.siblings,
        resting_threads=int(resting_cpu(chosen_cpu(options), options.siblings) is not None),
        cpu=chosen_cpu(options),
        memory_limit_bytes=options.memory_limit_bytes,
        residency=fitted.residency.source,
        requests_replayed=len(fitted.requests),
        resident_bytes=fitted.residency.resident_pages << PFN_SHIFT,
        touched_pages=replay.touched_pages,
        cut_reason=fitted.reason,
        against=None if options.against is None else load_strategy(options.against).label,
    )


def _fidelity(replay: Replay, strategies: Sequence[StrategyResult]) -> Fidelity | None:
    """Judge the traced strategy where it was replayed; None where it was not."""
    names = [strategy.name for strategy in strategies]
    if TRACED_STRATEGY not in names:
        return None
    index = names.index(TRACED_STRATEGY)
    plan = replay.planned[index].plan
    if replay.fitted.reason:
        plan = replay.planned[index].strategy.plan(replay.requests, replay.context)
    note = _why_no_ratio(replay)
    replayed_ns = None
    if not note:
        replayed_ns = round(median(run.discard_ns for run in strategies[index].runs))
    return judge(replay.trace, len(plan), replayed_ns, note)


def _why_no_ratio(replay: Replay) -> str:
    if len(replay.fitted.requests) < len(replay.requests):
        return "only part of the trace was replayed"
    if replay.fitted.reason:
        return "pages that no request names were left untouched"
    backings = {region.backing for region in replay.context.regions}
    if backings != {replay.context.backing}:
        seen = ", ".join(sorted(backings))
        return f"the trace's memory was {seen}, the replay's {replay.context.backing}"
    return ""
