"""Measures what a probe on a kernel function costs on this machine, by its mechanism."""

from __future__ import annotations

from collections.abc import Iterable

from tracer.cost.machine_code import SYSTEM_CALLS, MachineCode
from tracer.engine.libbpf import Btf
from tracer.engine.loader import EmptyPrograms
from tracer.errors import ProbeError
from tracer.sites.probes import Kind

FUNCTION_KINDS = (Kind.FENTRY, Kind.FEXIT, Kind.KPROBE, Kind.KRETPROBE)
_PROBED = "__x64_sys_getpgid"
"""A function that does almost nothing, that anybody can have called, and that BTF lists (it leaves
getppid out, which has no argument)."""
_NR_GETPGID = 121
_COUNT = 400


def function_cost(kind: Kind) -> float:
    """Time an empty program on a system call's own function, from calls of this process.

    Args:
        kind: One of FUNCTION_KINDS.

    Returns:
        Nanoseconds that one hit adds, without what the BPF program does.

    Raises:
        BccError: libbpf is missing.
        ProbeError: The kernel has no such probes, or this process may not set them.
    """
    code = MachineCode({"calls": SYSTEM_CALLS})
    try:
        bare_ns = code.pass_ns("calls", _COUNT, _NR_GETPGID, 0)
        with EmptyPrograms() as programs:
            _attach(programs, kind)
            return max(0.0, code.pass_ns("calls", _COUNT, _NR_GETPGID, 0) - bare_ns)
    finally:
        code.close()


def _attach(programs: EmptyPrograms, kind: Kind) -> None:
    at_return = kind in (Kind.FEXIT, Kind.KRETPROBE)
    if kind in (Kind.FENTRY, Kind.FEXIT):
        programs.attach_fentry("empty", Btf(), _PROBED, at_return=at_return)
    else:
        programs.attach_kprobe("empty", _PROBED, at_return=at_return)


def function_costs(kinds: Iterable[Kind] = FUNCTION_KINDS) -> dict[Kind, float]:
    """Time each of these mechanisms that works here; the others are left out."""
    costs = {}
    for kind in kinds:
        try:
            costs[kind] = function_cost(kind)
        except ProbeError:
            continue
    return costs
