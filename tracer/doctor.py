"""Says what this machine can record: predicts every way to every probe point, then proves it.

A prediction reads files; a proof loads the program and attaches it, and detaches at once.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tracer import guest_layout, guest_probes, host_probes
from tracer.attach import Attach
from tracer.errors import ProbeError
from tracer.host_engine import HostEngine
from tracer.libbpf import Btf
from tracer.loader import Program, import_bcc, mount_tracefs
from tracer.probes import (
    GUEST_POINTS,
    HOST_CALL_POINTS,
    HOST_EVENT_POINTS,
    Kind,
    Point,
    Way,
    host_request_points,
)
from tracer.recover import HANDLERS
from tracer.trace.errors import AerostatError
from tracer.trace.progress import Progress, silent
from tracer.vmm import inspect

_EVENT_SOURCES = Path("/sys/bus/event_source/devices")
_TRACEFS_EVENTS = Path("/sys/kernel/tracing/events")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that recording needs, or one way to one probe point.

    Attributes:
        group: environment, host calls, host requests or guest driver.
        name: What is checked; for a probe its point.
        way: Mechanism and target of a probe; empty for the environment.
        predicted: What the files of this machine say; None where nothing tells beforehand.
        proven: Whether it worked when tried; None where it was not tried.
        cost_ns: Measured cost of one hit, or None.
        reason: Why it did not work.
        remedy: The one command or step that mends it.
    """

    group: str
    name: str
    way: str = ""
    predicted: bool | None = None
    proven: bool | None = None
    cost_ns: float | None = None
    reason: str = ""
    remedy: str = ""


def diagnose(pid: int | None = None, progress: Progress = silent) -> list[Check]:
    """Check the environment and every probe point that this machine could have.

    Args:
        pid: A running QEMU, to try the probes of its balloon handlers too.
        progress: Told what is tried.

    Returns:
        One entry per requirement and per way of each point. Nothing raises: what fails is a row.
    """
    progress("environment")
    checks = list(_environment())
    progress("host system calls")
    checks += _host_calls()
    progress("host requests")
    checks += _host_requests(pid)
    progress("guest driver")
    checks += _guest_driver()
    return checks


def can_record(checks: list[Check]) -> bool:
    """Whether the points without which nothing can be recorded were proven on one side.

    Where no VM was named, the host counts as able if its system-call probes were proven and its
    uprobes are predicted.
    """
    required = {
        "host requests": {point.name for point in host_request_points((0,)) if point.required},
        "guest driver": {point.name for point in GUEST_POINTS if point.required},
    }
    return any(
        names <= {check.name for check in checks if check.group == group and check.proven}
        for group, names in required.items()
    ) or _host_is_ready(checks)


def _host_is_ready(checks: list[Check]) -> bool:
    """Whether all is there that can be tried without a VM at hand: uprobes wait for its pid."""
    calls = [check for check in checks if check.group == "host calls"]
    uprobes = [check for check in checks if check.group == "host requests"]
    return any(check.proven for check in calls) and all(
        check.predicted and check.proven is None for check in uprobes
    )


def _environment() -> Iterator[Check]:
    group = "environment"
    is_root = os.geteuid() == 0
    yield Check(
        group,
        "root",
        proven=is_root,
        reason="" if is_root else f"effective user id is {os.geteuid()}",
        remedy="" if is_root else "run with sudo",
    )
    for name, attempt in (("BCC", import_bcc), ("kernel BTF", Btf), ("tracefs", mount_tracefs)):
        try:
            attempt()
        except AerostatError as error:
            yield Check(group, name, proven=False, reason=error.what, remedy=error.remedy)
        else:
            yield Check(group, name, proven=True)
    yield Check(group, "x86-64", proven=platform.machine() == "x86_64")


def _host_calls() -> list[Check]:
    group = "host calls"
    try:
        program = host_probes.compile_host()
    except AerostatError as error:
        return [_untried(group, point, way, error) for point, way in _ways(HOST_CALL_POINTS)]
    mechanisms = host_probes.host_mechanisms(None, 0)
    with program:
        checks = [
            _tried(group, point, way, program, mechanisms) for point, way in _ways(HOST_CALL_POINTS)
        ]
    try:
        with HostEngine(calls=True) as engine:
            pair_ns = engine.call_cost_ns
            chosen = {_word(a.way) for a in engine.call_attachments if a.way is not None}
    except AerostatError:
        return checks
    cost_ns = None if pair_ns is None else pair_ns / 2
    return [
        _with_cost(check, cost_ns) if check.proven and check.way in chosen else check
        for check in checks
    ]


def _with_cost(check: Check, cost_ns: float | None) -> Check:
    return Check(check.group, check.name, check.way, check.predicted, check.proven, cost_ns=cost_ns)


def _host_requests(pid: int | None) -> list[Check]:
    group = "host requests"
    points = (*host_request_points(range(len(HANDLERS))), *HOST_EVENT_POINTS)
    if pid is None:
        remedy = "name a running QEMU: aerostat doctor --pid PID"
        return [
            Check(group, point.name, _word(way), _predict(way), None, None, "no VM named", remedy)
            for point, way in _ways(points)
        ]
    try:
        inspect(pid)
        sites = host_probes.find_sites(pid)
        program = host_probes.compile_host()
    except AerostatError as error:
        return [_untried(group, point, way, error) for point, way in _ways(points)]
    mechanisms = host_probes.host_mechanisms(sites, pid)
    with program:
        return [
            _tried(group, point, way, program, mechanisms)
            for point, way in _ways((*host_request_points(sites.numbers), *HOST_EVENT_POINTS))
        ]


def _guest_driver() -> list[Check]:
    group = "guest driver"
    if not guest_layout.DRIVER.exists():
        reason = f"this machine has no virtio balloon: {guest_layout.DRIVER} is absent"
        remedy = "run inside a guest that has one"
        return [
            Check(group, point.name, _word(way), False, None, None, reason, remedy)
            for point, way in _ways(GUEST_POINTS)
        ]
    checks = []
    for fentry in (True, False):
        mechanisms = guest_probes.guest_mechanisms(fentry=fentry)
        ways = [(point, way) for point, way in _ways(GUEST_POINTS) if way.kind in mechanisms]
        try:
            layout = guest_layout.driver_layout(Btf(guest_layout.MODULE))
            program = guest_probes.compile_guest(layout, fentry=fentry)
        except AerostatError as error:
            checks += [_untried(group, point, way, error) for point, way in ways]
            continue
        with program:
            for point, way in ways:
                lacks = layout.lacks(point)
                if lacks is None:
                    checks.append(_tried(group, point, way, program, mechanisms))
                else:
                    checks.append(_untried(group, point, way, ProbeError(lacks)))
    return checks


def _ways(points: tuple[Point, ...]) -> Iterator[tuple[Point, Way]]:
    return ((point, way) for point in points for way in point.ways)


def _word(way: Way) -> str:
    return f"{way.kind.value} {way.target}"


def _predict(way: Way) -> bool | None:
    """Say from files alone whether a way will work; None where this user may not look."""
    try:
        return _predict_from_files(way)
    except OSError:
        return None


def _predict_from_files(way: Way) -> bool:
    if way.kind is Kind.UPROBE:
        return (_EVENT_SOURCES / "uprobe").exists()
    if way.kind in (Kind.KPROBE, Kind.KRETPROBE):
        return (_EVENT_SOURCES / "kprobe").exists()
    if way.kind is Kind.TRACEPOINT:
        return (_TRACEFS_EVENTS / way.target.replace(":", "/")).exists()
    if way.kind is Kind.RAW_TRACEPOINT:
        return (_TRACEFS_EVENTS / "raw_syscalls" / way.target).exists()
    try:
        described = any(Btf(name).function_id(way.target) for name in guest_probes.MODULES)
    except ProbeError:
        return False
    return described and guest_layout.kernel_symbol("bpf_trampoline_link_prog") is not None


def _untried(group: str, point: Point, way: Way, error: AerostatError) -> Check:
    reason = f"{error.what}: {error.reason}" if error.reason else error.what
    return Check(
        group, point.name, _word(way), _predict(way), None, reason=reason, remedy=error.remedy
    )


def _tried(
    group: str, point: Point, way: Way, program: Program, mechanisms: Mapping[Kind, Attach]
) -> Check:
    predicted = _predict(way)
    try:
        mechanisms[way.kind](program, way)
    except AerostatError as error:
        return Check(
            group,
            point.name,
            _word(way),
            predicted,
            False,
            reason=f"{error.what}: {error.reason}" if error.reason else error.what,
            remedy=error.remedy,
        )
    finally:
        program.detach()
    return Check(group, point.name, _word(way), predicted, True)
