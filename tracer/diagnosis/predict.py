"""Says from files alone whether a way to a probe point will work, and what stands in its way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tracer.diagnosis.environment import Machine
from tracer.engine.libbpf import UNLISTED, Btf
from tracer.engine.privilege import TRACEFS, Capability, lacking, lacking_for, names, remedy_for
from tracer.errors import ProbeError
from tracer.sites.guest_probes import MODULES
from tracer.sites.probes import Kind, Way

RING_BUFFER_SINCE = (5, 8)
"""First kernel with BPF_MAP_TYPE_RINGBUF, and with CAP_BPF and CAP_PERFMON."""
MEMORY_BY_CGROUP_SINCE = (5, 11)
"""First kernel that charges BPF memory to the memory cgroup, not to RLIMIT_MEMLOCK."""
_MEMLOCK_NEEDED_BYTES = 32 << 20
_FULL_LOCKDOWN = "confidentiality"
_LOCKED = {
    Kind.KPROBE: False,
    Kind.KRETPROBE: False,
    Kind.FENTRY: None,
    Kind.FEXIT: None,
    Kind.RAW_TRACEPOINT: None,
}
_FUNCTION_KINDS = (Kind.FENTRY, Kind.FEXIT, Kind.KPROBE, Kind.KRETPROBE)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is to be expected.

    Attributes:
        works: None where files do not tell.
        reason: Why not.
        remedy: The one step that mends it.
    """

    works: bool | None
    reason: str = ""
    remedy: str = ""


def machine_obstacles(machine: Machine) -> Iterator[Prediction]:
    """Say what keeps every probe from working, whatever its kind and whoever attaches it."""
    if machine.arch != "x86_64":
        yield Prediction(False, f"the machine is {machine.arch}", "record on an x86-64 machine")
    if (0, 0) < machine.release < RING_BUFFER_SINCE:
        version = ".".join(map(str, machine.release))
        yield Prediction(
            False, f"Linux {version} has no BPF ring buffer", "boot Linux 5.8 or a later one"
        )
    if machine.in_user_namespace:
        yield Prediction(
            False,
            "in a user namespace, whose capabilities BPF does not accept",
            "run outside the container, or start it with --privileged --userns=host --pid=host",
        )
    if memlock_obstacle(machine):
        yield Prediction(
            False,
            f"RLIMIT_MEMLOCK is {machine.memlock_bytes} bytes, which BPF maps count against",
            "ulimit -l unlimited",
        )


def memlock_obstacle(machine: Machine) -> bool:
    """Whether the limit on locked memory is too low for our maps on such an old kernel."""
    return (
        machine.release < MEMORY_BY_CGROUP_SINCE
        and machine.memlock_bytes is not None
        and machine.memlock_bytes < _MEMLOCK_NEEDED_BYTES
        and Capability.CAP_SYS_RESOURCE not in machine.held
    )


def predict(
    way: Way, machine: Machine, describes: Callable[[str], bool] | None = None
) -> Prediction:
    """Predict one way.

    Args:
        way: The way.
        machine: Where it is to be.
        describes: Whether a BTF of that machine lists a function; the running kernel's where None.
    """
    for obstacle in machine_obstacles(machine):
        return obstacle
    return _of_kind(way, machine, describes or running_kernel_describes)


def _of_kind(way: Way, machine: Machine, describes: Callable[[str], bool]) -> Prediction:
    if machine.lockdown == _FULL_LOCKDOWN and way.kind in _LOCKED:
        # Kprobes are off; of the others those programs fail that read kernel memory.
        return Prediction(
            _LOCKED[way.kind],
            "the kernel is locked down for confidentiality",
            "boot without lockdown=confidentiality",
        )
    if way.kind in _FUNCTION_KINDS:
        prediction = _function(way, machine, describes)
    elif way.kind is Kind.UPROBE:
        prediction = _uprobe(machine)
    else:
        prediction = _tracepoint(way, machine)
    missing = lacking_for(way.kind, machine.held, machine.user, machine.paranoia)
    if missing and prediction.works:
        # Whether this kernel asks for the last of them cannot be read anywhere.
        works = None if missing == {Capability.CAP_SYS_ADMIN} else False
        return Prediction(works, f"this process lacks {names(missing)}", remedy_for(missing))
    return prediction


def _uprobe(machine: Machine) -> Prediction:
    if "uprobe" not in machine.pmus:
        return Prediction(
            False, "the kernel has no uprobes", "boot a kernel built with CONFIG_UPROBE_EVENTS=y"
        )
    return Prediction(True)


def _function(way: Way, machine: Machine, describes: Callable[[str], bool]) -> Prediction:
    if way.kind in (Kind.KPROBE, Kind.KRETPROBE):
        if "kprobe" in machine.pmus:
            return Prediction(True)
        return Prediction(
            False, "the kernel has no kprobes", "boot a kernel built with CONFIG_KPROBE_EVENTS=y"
        )
    if not machine.has_btf:
        return Prediction(
            False,
            "the kernel has no type information (BTF)",
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y",
        )
    if not describes(way.target):
        return Prediction(False, f"the kernel's BTF does not list {way.target}", UNLISTED)
    if machine.can_patch_functions is False:
        return Prediction(
            False,
            "the kernel has no function tracer, or forbids it",
            "boot a kernel built with CONFIG_DYNAMIC_FTRACE=y, with no policy against it",
        )
    return Prediction(machine.can_patch_functions)


def _tracepoint(way: Way, machine: Machine) -> Prediction:
    if way.kind is Kind.RAW_TRACEPOINT:
        return Prediction(True)
    missing = lacking(TRACEFS, machine.held)
    if missing and machine.user != 0:
        return Prediction(False, f"this process lacks {names(missing)}", remedy_for(missing))
    if machine.has_tracefs is False:
        return Prediction(
            False, "tracefs is not mounted", "mount -t tracefs tracefs /sys/kernel/tracing"
        )
    found = machine.has_tracepoint(*way.target.split(":"))
    if found is False:
        return Prediction(
            False,
            f"the kernel has no tracepoint {way.target}",
            "boot a kernel built with CONFIG_FTRACE_SYSCALLS=y",
        )
    return Prediction(found)


def running_kernel_describes(function: str) -> bool:
    """Whether a BTF of the running kernel, or of a module that is probed, lists a function."""
    try:
        return any(Btf(name).function_id(function) is not None for name in (None, *MODULES))
    except ProbeError:
        return False
