"""From the runs of a replay to its results: sums, projections, fidelity, warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from statistics import median
from typing import TYPE_CHECKING

from replay.caveats import run_warnings, thread_warnings
from replay.environment import Environment, stability_warnings
from replay.fidelity import TRACED_STRATEGY, judge, send_time_ns
from replay.rejections import rejections
from replay.results import Fidelity, Results, Settings, StrategyResult, TraceFacts
from tracer.trace.missing import missing_events
from tracer.trace.schema import PFN_SHIFT

if TYPE_CHECKING:
    from replay.budget import Fitted
    from replay.plan import Context
    from replay.planning import Refused
    from replay.prepare import Planned
    from replay.requests import Requests
    from replay.schedule import ReplayOptions
    from replay.worker import Done
    from tracer.trace.reader import Trace


@dataclass(frozen=True, eq=False)
class Replay:
    """A replay that has been run. `done` holds each strategy's runs, warm-up runs first."""

    options: ReplayOptions
    trace: Trace
    requests: Requests
    fitted: Fitted
    context: Context
    planned: tuple[Planned, ...]
    refused: tuple[Refused, ...]
    done: Sequence[Sequence[Done]]
    environment: Environment


def assemble(replay: Replay) -> Results:
    """Put together what is kept of a replay."""
    send_ns = send_time_ns(replay.trace)
    strategies = tuple(
        _strategy_result(planned, done, replay.options.warmup, send_ns)
        for planned, done in zip(replay.planned, replay.done, strict=True)
    )
    cut = (replay.fitted.reason,) if replay.fitted.reason else ()
    missing = missing_events(replay.trace)
    lossy = () if missing is None else (f"the trace {missing}: it is not all that happened",)
    shaky = stability_warnings(replay.environment, replay.options.siblings)
    return Results(
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        aerostat_version=metadata.version("aerostat"),
        trace=_trace_facts(replay),
        settings=_settings(replay),
        environment=replay.environment,
        warnings=(*lossy, *cut, *shaky, *_run_warnings(replay, strategies)),
        fidelity=_fidelity(replay, strategies),
        strategies=strategies,
        refused=replay.refused,
    )


def _run_warnings(replay: Replay, strategies: Sequence[StrategyResult]) -> tuple[str, ...]:
    plans = [planned.plan for planned in replay.planned]
    cpus = replay.environment.cpus_allowed
    return (
        *thread_warnings(plans, replay.options.siblings, cpus),
        *run_warnings(plans, strategies, replay.fitted.residency),
    )


def _strategy_result(
    planned: Planned, done: Sequence[Done], warmup: int, send_ns: float | None
) -> StrategyResult:
    plan = planned.plan
    length_bytes = int(plan.length_bytes.sum())
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
        projected_send_ns=None if send_ns is None else round(send_ns * plan.wire_requests),
        runs=tuple(each.run for each in done[warmup:]),
        warmups=tuple(each.run for each in done[:warmup]),
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
        seed=options.seed,
        backing=replay.context.backing,
        thp=options.thp,
        siblings=options.siblings,
        cpu=options.cpu,
        per_operation=options.per_operation,
        memory_limit_bytes=options.memory_limit_bytes,
        residency=fitted.residency.source,
        requests_replayed=len(fitted.requests),
        resident_bytes=fitted.residency.resident_pages << PFN_SHIFT,
        cut_reason=fitted.reason,
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
    if replay.fitted.reason:
        return "only part of the trace was replayed"
    backings = {region.backing for region in replay.context.regions}
    if backings != {replay.context.backing}:
        seen = ", ".join(sorted(backings))
        return f"the trace's memory was {seen}, the replay's {replay.context.backing}"
    if replay.options.per_operation:
        return "every operation was timed by itself"
    return ""
