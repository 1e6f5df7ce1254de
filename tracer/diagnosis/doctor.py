"""Says what this machine can record: predicts every way to every probe point, then proves it.

A prediction reads files; a proof attaches the probe, makes it run where that can be done without a
VM, times it, and takes it away. Points and ways come from the catalogue alone
(tracer/sites/probes.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import replace

from tracer.cost.function_cost import function_costs
from tracer.cost.trap_cost import try_trap_costs
from tracer.diagnosis.checks import (
    GUEST_DRIVER,
    HOST_CALLS,
    HOST_REQUESTS,
    Check,
    failed,
    predicted_check,
    with_choice,
)
from tracer.diagnosis.environment import Machine, read_machine
from tracer.diagnosis.predict import Prediction, machine_obstacles, predict
from tracer.diagnosis.probe_proof import (
    Row,
    UprobeTarget,
    prove_calls,
    prove_functions,
    prove_uprobes,
)
from tracer.diagnosis.requirements import check_requirements
from tracer.diagnosis.synthetic import SyntheticHandler
from tracer.engine.host_engine import HostEngine
from tracer.engine.libbpf import Btf
from tracer.engine.privilege import LOAD, lacking
from tracer.engine.vm_probes import Quota, Target
from tracer.sites import guest_layout, guest_probes, host_probes
from tracer.sites.probes import (
    GUEST_POINTS,
    HOST_CALL_POINTS,
    HOST_EVENT_POINTS,
    HOST_OTHER_CALL_POINTS,
    Kind,
    Point,
    host_request_points,
)
from tracer.sites.recover import HANDLERS
from tracer.trace.errors import AerostatError
from tracer.trace.progress import Progress, silent
from tracer.vms.vmm import inspect

_CALL_POINTS = (*HOST_CALL_POINTS, *HOST_OTHER_CALL_POINTS)
_REQUEST_POINTS = (*host_request_points(range(len(HANDLERS))), *HOST_EVENT_POINTS)
_RING_BYTES = 1 << 20
_TRAMPOLINES, _KPROBES = (Kind.FENTRY, Kind.FEXIT), (Kind.KPROBE, Kind.KRETPROBE)
_REQUESTS = 64


def diagnose(pid: int | None = None, progress: Progress = silent) -> list[Check]:
    """Check the environment and every probe point that this machine could have.

    Args:
        pid: A running QEMU, to put the probes of its balloon handlers into. Without it they are
            put into a handler of our own, in this process.
        progress: Told what is tried.

    Returns:
        One entry per requirement and per way of each point. Nothing raises: what fails is a row.
    """
    machine = read_machine()
    progress("environment")
    checks = list(check_requirements(machine))
    groups: tuple[tuple[str, tuple[Point, ...], Callable[[list[Row]], list[Check]]], ...] = (
        (HOST_CALLS, _CALL_POINTS, _host_calls),
        (HOST_REQUESTS, _REQUEST_POINTS, lambda rows: _host_requests(rows, pid)),
        (GUEST_DRIVER, GUEST_POINTS, _guest_driver),
    )
    for group, points, prove in groups:
        progress(group)
        rows = [
            (point, way, predicted_check(group, point, way, predict(way, machine)))
            for point in points
            for way in point.ways
        ]
        checks += _in_order(rows, _proven(rows, prove, machine))
    return with_choice(checks)


def _proven(
    rows: list[Row], prove: Callable[[list[Row]], list[Check]], machine: Machine
) -> list[Check]:
    if any(machine_obstacles(machine)) or lacking(LOAD, machine.held):
        return [check for _, _, check in rows]
    try:
        return prove(rows)
    except AerostatError as error:
        return [failed(check, error) for _, _, check in rows]


def _in_order(rows: list[Row], checks: Iterable[Check]) -> list[Check]:
    """Put checks back into the catalogue's order."""
    places = {(check.name, check.way): index for index, (_, _, check) in enumerate(rows)}
    return sorted(checks, key=lambda check: places[check.name, check.way])


def _host_calls(rows: list[Row]) -> list[Check]:
    with HostEngine(calls=False) as engine:
        return prove_calls(engine, rows)


def _host_requests(rows: list[Row], pid: int | None) -> list[Check]:
    traps_ns = try_trap_costs()
    bodies_ns: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(HostEngine(calls=False))
        ours = stack.enter_context(contextlib.closing(SyntheticHandler()))
        vm = Target(os.getpid(), ours.sites, (), (), True, _RING_BYTES, _RING_BYTES, Quota())
        stack.enter_context(contextlib.closing(engine.add(vm)))
        target = UprobeTarget(ours.sites, os.getpid(), lambda: ours.handle(_REQUESTS))
        own = prove_uprobes(engine.program, rows, target, traps_ns, bodies_ns)
        if pid is None:
            return [_unpriced(check) for check in own]
        inspect(pid)
        real = UprobeTarget(host_probes.find_sites(pid), pid, None)
        return prove_uprobes(engine.program, rows, real, traps_ns, bodies_ns)


def _unpriced(check: Check) -> Check:
    """Take the price off a probe whose place in a QEMU our handler does not have."""
    if check.name in {point.name for point in HOST_EVENT_POINTS}:
        return replace(check, cost_ns=None, floor_ns=None)
    return check


def _guest_driver(rows: list[Row]) -> list[Check]:
    if not guest_layout.DRIVER.exists():
        reason = f"this machine has no virtio balloon: {guest_layout.DRIVER} is absent"
        absent = Prediction(False, reason, "run inside a guest that has one")
        return [predicted_check(GUEST_DRIVER, point, way, absent) for point, way, _ in rows]
    floors_ns = function_costs()
    checks: list[Check] = []
    layout = guest_layout.driver_layout(Btf(guest_layout.MODULE))
    for point, _, check in rows:
        unreadable = layout.lacks(point)
        if unreadable is not None:
            checks.append(failed(check, unreadable))
    readable = [row for row in rows if layout.lacks(row[0]) is None]
    for fentry, kinds in ((True, _TRAMPOLINES), (False, _KPROBES)):
        family = [row for row in readable if row[1].kind in kinds]
        mechanisms = guest_probes.guest_mechanisms(layout, fentry=fentry)
        try:
            with guest_probes.compile_guest(layout, fentry=fentry) as program:
                checks += prove_functions(program, family, mechanisms, floors_ns)
        except AerostatError as error:
            checks += (failed(check, error) for _, _, check in family)
    return checks
