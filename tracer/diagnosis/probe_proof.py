"""Proves probes by attaching them: does it attach, does it run when provoked, what does it cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from tracer.cost.call_cost import CallCost
from tracer.cost.trap_cost import site_cost
from tracer.diagnosis.checks import Check, failed
from tracer.engine.attach import Attach
from tracer.engine.bpf_programs import RunStats
from tracer.engine.host_engine import HostEngine
from tracer.engine.loader import Program
from tracer.errors import REPORT, ProbeError
from tracer.sites.host_probes import QemuSites, host_mechanisms
from tracer.sites.probes import Kind, Point, Way
from tracer.trace.errors import AerostatError

Row = tuple[Point, Way, Check]
_ARM_KPROBES = "echo 1 > /sys/kernel/debug/kprobes/enabled"
"""A kernel whose kprobes were turned off takes new ones without a word (kernel/kprobes.c)."""
_FAMILIES = {Kind.FEXIT: Kind.FENTRY, Kind.KRETPROBE: Kind.KPROBE}


def base(point: Point) -> str:
    """What a point and its counterpart share: `madvise` of madvise-enter and madvise-exit."""
    return point.name.rpartition("-")[0] or point.name


def families(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Group ways that are attached together: those of one call or handler, of one mechanism."""

    def family(row: Row) -> tuple[str, str]:
        point, way, _ = row
        return base(point), _FAMILIES.get(way.kind, way.kind).value

    ordered = sorted(rows, key=family)
    return (list(group) for _, group in groupby(ordered, family))


def attach_rows(program: Program, rows: list[Row], mechanisms: Mapping[Kind, Attach]) -> list[Row]:
    """Try to attach each; what attaches stays so."""
    tried = []
    for point, way, check in rows:
        try:
            mechanisms[way.kind](program, way)
        except AerostatError as error:
            tried.append((point, way, failed(check, error)))
        else:
            tried.append((point, way, replace(check, proven=True, reason="", remedy="")))
    return tried


def provoked(
    program: Program, rows: list[Row], provoke: Callable[[], object]
) -> tuple[list[Row], dict[str, float]]:
    """See whether what attached runs when it should, and for how long.

    Returns:
        The rows, and nanoseconds of one run by point; rows stay as they are, and no times are
        known, where this process may not have programs timed.
    """
    before = {way: program.runs(way.program) for _, way, check in rows if check.proven}
    try:
        with RunStats():
            provoke()
    except ProbeError:
        return rows, {}
    bodies, seen = {}, []
    for point, way, check in rows:
        if way not in before:
            seen.append((point, way, check))
            continue
        runs = program.runs(way.program).since(before[way])
        seen.append((point, way, _fired(way, check, runs.count > 0)))
        if runs.mean_ns is not None:
            bodies[point.name] = runs.mean_ns
    return seen, bodies


def _fired(way: Way, check: Check, fired: bool) -> Check:
    if fired:
        return replace(check, fired=True)
    reason = "it attached, but did not run when it should"
    remedy = _ARM_KPROBES if way.kind in (Kind.KPROBE, Kind.KRETPROBE) else REPORT
    return replace(check, proven=False, fired=False, reason=reason, remedy=remedy)


def prove_calls(engine: HostEngine, rows: Iterable[Row]) -> list[Check]:
    """Prove system-call probes with calls of this process, and time them.

    Args:
        engine: Without system-call probes of its own.
        rows: Points, ways and what was predicted.
    """
    return [check for family in families(rows) for _, _, check in _prove_call(engine, family)]


def _prove_call(engine: HostEngine, rows: list[Row]) -> list[Row]:
    with CallCost(base(rows[0][0])) as cost:
        try:
            rows = attach_rows(engine.program, rows, host_mechanisms(None, 0))
            rows, _ = provoked(engine.program, rows, cost.call)
            count = sum(check.proven is True for _, _, check in rows)
            if not count:
                return rows
            traced_ns, bystander_ns = cost.traced_ns(engine), cost.bystander_ns()
        finally:
            engine.program.detach()
    # Entry and exit are timed as a pair; their shares cannot be told apart from outside.
    share = None if traced_ns is None else traced_ns / count
    return [
        (
            point,
            way,
            replace(check, cost_ns=share, bystander_ns=bystander_ns / count)
            if check.proven
            else check,
        )
        for point, way, check in rows
    ]


@dataclass(frozen=True, slots=True)
class UprobeTarget:
    """A process whose memory is probed.

    Attributes:
        sites: Its program file and the places in it.
        pid: The process.
        provoke: Makes it handle requests; None for a VM, which is left alone.
    """

    sites: QemuSites
    pid: int
    provoke: Callable[[], object] | None


def prove_uprobes(
    program: Program,
    rows: Iterable[Row],
    target: UprobeTarget,
    traps_ns: Mapping[str, float],
    bodies_ns: dict[str, float],
) -> list[Check]:
    """Prove the probes in a VMM, or in a handler of our own, and say what each costs.

    Args:
        program: The host's programs.
        rows: Points, ways and what was predicted.
        target: Where to put them.
        traps_ns: Cost of a trap by instruction (tracer/cost/trap_cost.py).
        bodies_ns: Nanoseconds of one run of our own program by point; what is timed here is added.
    """
    proven: list[Check] = []
    for family in families(rows):
        try:
            tried = attach_rows(program, family, host_mechanisms(target.sites, target.pid))
            if target.provoke is not None:
                tried, timed = provoked(program, tried, target.provoke)
                bodies_ns.update(timed)
        finally:
            program.detach()
        for point, way, check in tried:
            proven.append(
                _priced(check, _trap_ns(target, way, traps_ns), bodies_ns.get(point.name))
            )
    return proven


def _trap_ns(target: UprobeTarget, way: Way, traps_ns: Mapping[str, float]) -> float | None:
    offset = target.sites.file_offsets.get(way.target)
    return None if offset is None else site_cost(target.sites.exe, offset, traps_ns)


def _priced(check: Check, trap_ns: float | None, body_ns: float | None) -> Check:
    """Add what a hit costs: the trap, and our own program. It is in one process's memory alone."""
    if not check.proven or trap_ns is None:
        return check
    if body_ns is None:
        return replace(check, floor_ns=trap_ns, bystander_ns=0.0)
    return replace(check, cost_ns=trap_ns + body_ns, bystander_ns=0.0)


def prove_functions(
    program: Program,
    rows: Iterable[Row],
    mechanisms: Mapping[Kind, Attach],
    floors_ns: Mapping[Kind, float],
) -> list[Check]:
    """Prove probes on kernel functions, which this process cannot have called.

    Args:
        program: The guest's programs, compiled for these mechanisms.
        rows: Points, ways and what was predicted.
        mechanisms: How to attach them.
        floors_ns: Cost of an empty program by mechanism (tracer/cost/function_cost.py).
    """
    try:
        tried = attach_rows(program, list(rows), mechanisms)
    finally:
        program.detach()
    return [
        replace(check, floor_ns=floors_ns.get(way.kind)) if check.proven else check
        for _, way, check in tried
    ]
