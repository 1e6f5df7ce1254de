"""Is one recording better or worse than another? Times of requests, and exact counts, by queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from replay.compare import Comparison, Line, Policy, UnlikeError, overall
from replay.stats import Difference, Gates, Samples, Verdict, compare_counts, compare_samples
from tracer.trace.errors import CaptureIncompleteError
from tracer.trace.missing import missing_events, unseen_requests
from tracer.trace.schema import Queue, Side

if TYPE_CHECKING:
    from tracer.trace.reader import Trace

BLOCKS = 30
"""Neighbouring requests resemble each other, so single requests are no independent samples: the
samples are medians of this many stretches of consecutive requests."""
ONE_SESSION = (
    "each side is one recording: how much one session differs from the next is in no interval,"
    " so record again before blaming a change"
)
QUEUES = (Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING)
DECISIVE = (
    "discard_ns_per_page",
    "device_ns_per_page",
    "round_trip_ns_per_page",
    "discard_calls",
)

TIMES: dict[str, tuple[Side, str, str]] = {
    "allocate_ns_per_page": (Side.GUEST, "begin_ns", "send_ns"),
    "round_trip_ns_per_page": (Side.GUEST, "send_ns", "wake_ns"),
    "device_ns_per_page": (Side.HOST, "pop_ns", "push_ns"),
}
"""Metric -> side and the two of its times that it lies between. The round trip, which is
all that the guest's driver waits for, holds the device's time and is not stage b."""


def compare_traces(base: Trace, candidate: Trace, policy: Policy | None = None) -> Comparison:
    """Compare two recordings, queue by queue.

    Times are per page, so that requests of unlike sizes can be set side by side. Metrics that one
    of the traces did not observe are left out and named in the warnings.

    Args:
        base: The baseline.
        candidate: What is judged against it.
        policy: What counts; unlike_work allows traces that miss events, and unlike details. Its
            decisive metrics are those of results; here these are `DECISIVE`.

    Raises:
        CaptureIncompleteError: A trace misses events and the policy does not allow it.
        UnlikeError: They are of unlike machines or details and the policy does not allow it.
    """
    policy = policy or Policy()
    notes = _refuse_unlike(base, candidate, policy)
    notes += [note for trace in (base, candidate) for note in _losses(trace, policy)]
    notes += [note for trace in (base, candidate) for note in _no_requests(trace)]
    lines: list[Line] = []
    for queue in QUEUES:
        old, new = (_of_queue(trace.table("requests"), queue) for trace in (base, candidate))
        if not old.num_rows and not new.num_rows:
            continue
        for metric in (*TIMES, "discard_ns_per_page"):
            one, other = _samples(old, metric), _samples(new, metric)
            if len(one) and len(other):
                found = compare_samples(one.tolist(), other.tolist(), policy.gates, policy.seed)
                # Reports go out in the background: nobody waits for them.
                decisive = metric in DECISIVE and queue is not Queue.REPORTING
                lines.append(Line(queue.name.lower(), metric, decisive, found))
            elif len(one) or len(other):
                notes.append(f"{queue.name.lower()} {metric}: observed in one trace only")
        one, other = (_worst_calls(trace, queue) for trace in (base, candidate))
        if len(one) and len(other):
            found = compare_samples(one.tolist(), other.tolist(), policy.gates, policy.seed)
            lines.append(Line(queue.name.lower(), "worst_call_ns", False, found))
        lines += _counts(queue, old, new, policy.gates)
    verdict = overall(lines)
    if verdict in (Verdict.BETTER, Verdict.WORSE):
        notes.append(ONE_SESSION)
    return Comparison(verdict, tuple(lines), tuple(notes))


def _refuse_unlike(base: Trace, candidate: Trace, policy: Policy) -> list[str]:
    """Raise, or return what differs as warnings where the policy allows it.

    Another kernel or VMM is what two traces are compared for, so neither is held against them. What
    one of them did not observe is not either.
    """
    old, new = (_machine(trace) for trace in (base, candidate))
    unlike = {
        what: f"{what} is {old[what]!r} in the baseline and {new[what]!r} in the candidate"
        for what in sorted(old.keys() & new.keys())
        if old[what] != new[what]
    }
    details = [unlike.pop(what) for what in list(unlike) if what.endswith(" detail")]
    machines = list(unlike.values())
    if machines and not policy.unlike_environments:
        raise UnlikeError(
            "the two traces come from unlike machines",
            reason="; ".join(machines),
            remedy="record both on one machine, or --unlike-environments to compare anyway",
        )
    if details and not policy.unlike_work:
        raise UnlikeError(
            "the two traces were recorded in unlike detail, and probes take part of the times",
            reason="; ".join(details),
            remedy="record both with the same --detail, or --unlike-work to compare anyway",
        )
    return machines + details


def _machine(trace: Trace) -> dict[str, str | int]:
    """What times of a trace depend on besides kernel and VMM, as far as it was observed."""
    vm = trace.manifest.vm
    seen = {"accelerator": vm.accel, "vCPUs": vm.vcpus} if vm is not None else {}
    for name, side in trace.manifest.sides.items():
        for what in ("arch", "cpus", "cpu_model", "thp", "detail"):
            seen[f"{name} {what.replace('_', ' ')}"] = getattr(side, what)
    return {what: value for what, value in seen.items() if value is not None}


def _losses(trace: Trace, policy: Policy) -> list[str]:
    missing = missing_events(trace)
    if missing is None:
        return []
    if not policy.unlike_work:
        raise CaptureIncompleteError(
            f"{trace.path} is not whole, so it cannot be compared",
            reason=f"it {missing}",
            remedy="record again, or --unlike-work to compare what there is",
        )
    return [f"{trace.path.name} {missing}"]


def _no_requests(trace: Trace) -> list[str]:
    """Say why a trace has nothing to compare."""
    if trace.table("requests").num_rows:
        return []
    unseen = unseen_requests(trace.manifest)
    why = "the balloon did not move" if unseen is None else f"only system calls: {unseen}"
    return [f"{trace.path.name} holds no requests: {why}"]


def _of_queue(table: pa.Table, queue: Queue) -> pa.Table:
    return table.filter(pc.equal(table["queue"], int(queue)))


def _samples(table: pa.Table, metric: str) -> Samples:
    """Medians of stretches of consecutive requests, in ns per page; empty if never observed."""
    if metric == "discard_ns_per_page":
        rows = table.filter(pc.equal(table["side"], int(Side.HOST)))
        spent = rows["discard_ns"]
    else:
        side, begin, end = TIMES[metric]
        rows = table.filter(pc.equal(table["side"], int(side)))
        spent = pc.subtract(rows[end], rows[begin])
    seen = pc.and_(pc.is_valid(spent), pc.greater(rows["pages"], 0))
    times: Samples = spent.filter(seen).to_numpy().astype(np.float64)
    times /= rows["pages"].filter(seen).to_numpy()
    times = times[times >= 0]  # a trace from elsewhere may hold times that run backwards
    if len(times) <= BLOCKS:
        return times
    return np.array([np.median(block) for block in np.array_split(times, BLOCKS)])


def _worst_calls(trace: Trace, queue: Queue) -> Samples:
    """The worst single discard of each of `BLOCKS` stretches of the trace, in ns."""
    calls, requests = trace.table("calls"), trace.table("requests")
    ours = pc.and_(pc.equal(calls["side"], int(Side.HOST)), pc.is_valid(calls["gpa"]))
    wanted = pc.and_(
        pc.equal(requests["side"], int(Side.HOST)), pc.equal(requests["queue"], int(queue))
    )
    of_queue = pc.is_in(calls["request_seq"], pa.array(requests.filter(wanted)["seq"].to_numpy()))
    worst: Samples = calls.filter(pc.and_(ours, of_queue))["worst_ns"].to_numpy().astype(np.float64)
    if len(worst) <= BLOCKS:
        return worst
    return np.array([block.max() for block in np.array_split(worst, BLOCKS)])


def _counts(queue: Queue, old: pa.Table, new: pa.Table, gates: Gates) -> list[Line]:
    """Requests and pages say whether the work was the same; calls for the same work are a cost."""
    lines = []
    old, new = _one_side(old), _one_side(new)
    pages = [_sum(table, "pages") for table in (old, new)]
    for metric, values in (("requests", [old.num_rows, new.num_rows]), ("pages", pages)):
        found = compare_counts(*values)
        verdict = Verdict.SAME if found.verdict is Verdict.SAME else Verdict.INCONCLUSIVE
        told = replace(found, verdict=verdict, reason="the guest's work: no cost by itself")
        lines.append(Line(queue.name.lower(), metric, False, told))
    calls = [_sum(table, "discard_calls") for table in (old, new)]
    if all(calls):
        found = compare_counts(calls[0], calls[1])
        alike = pages[0] == pages[1]
        if alike:
            found = _judge_calls(found, [_runs(table) for table in (old, new)], gates)
        else:
            reason = f"calls for {pages[0]:,} and for {pages[1]:,} pages are not the same work"
            found = replace(found, verdict=Verdict.INCONCLUSIVE, reason=reason)
        decisive = alike and queue is not Queue.REPORTING
        lines.append(Line(queue.name.lower(), "discard_calls", decisive, found))
    return lines


def _judge_calls(found: Difference, runs: Sequence[int], gates: Gates) -> Difference:
    """Hold a difference in calls to what the guest's own doing explains.

    A device that merges needs as many calls as the guest's pages come in runs, and no two sessions
    fragment a guest alike. So a difference counts only beyond the effect that matters and beyond
    the difference in runs, where that is in the same direction: fewer runs explain no more calls.
    """
    if found.verdict is Verdict.SAME or not found.ratio:
        return found
    size = max(found.ratio, 1 / found.ratio) - 1
    fewer, more = runs if found.ratio > 1 else runs[::-1]
    by_guest = max(more / fewer, 1) - 1 if fewer else 0.0
    told = f"{found.ratio - 1:+.2%} calls"
    if size < gates.effect:
        reason = f"{told}: within {gates.effect:.1%} of equality"
        return replace(found, verdict=Verdict.SAME, reason=reason)
    if size <= by_guest:
        reason = f"{told}, but the guest's pages came in {runs[0]:,} and {runs[1]:,} runs"
        return replace(found, verdict=Verdict.INCONCLUSIVE, reason=reason)
    return replace(found, reason=told)


def _runs(table: pa.Table) -> int:
    return int(pc.sum(pc.list_value_length(table["runs"])).as_py() or 0)


def _one_side(table: pa.Table) -> pa.Table:
    """The host's rows where there are any: both sides record every request."""
    host = table.filter(pc.equal(table["side"], int(Side.HOST)))
    return host if host.num_rows else table


def _sum(table: pa.Table, column: str) -> int:
    return int(pc.sum(table[column]).as_py() or 0)
