"""The machine a replay ran on: what must agree before results are compared, and what is shaky."""

import os
import platform
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Environment:
    """A machine's fingerprint. Empty text means that the machine does not say."""

    kernel: str
    architecture: str
    cpu_model: str
    cpus: int
    cpus_allowed: int
    governor: str
    turbo: str
    smt: str
    mitigations: str
    thp: str
    shmem_thp: str
    memory_bytes: int
    swap_bytes: int
    available_bytes: int
    load_1min: float
    virtualisation: str
    python: str
    libc: str
    numpy: str
    scipy: str
    pyarrow: str


CHECKED = (
    "kernel",
    "architecture",
    "cpu_model",
    "cpus",
    "cpus_allowed",
    "governor",
    "turbo",
    "smt",
    "mitigations",
    "thp",
    "shmem_thp",
    "memory_bytes",
    "virtualisation",
)
"""Keys that must agree for two results to be comparable; sizes of memory within `MEMORY_TOLERANCE`.
What freeing a page costs depends on how long the kernel's lists of free pages may grow, and that on
the size of a zone. Load, free memory and library versions are kept for the reader: they do not
change what the kernel does with one operation."""
MEMORY_TOLERANCE = 0.1
"""Share of the larger memory. MemTotal of one machine differs by less between kernels, which keep
more or less of it for themselves."""


def fingerprint(root: Path = Path("/")) -> Environment:
    """Read this machine's fingerprint.

    Args:
        root: Directory that holds proc and sys; another one in tests.
    """
    cpu = root / "sys/devices/system/cpu"
    meminfo = _table(root / "proc/meminfo")
    cpuinfo = _table(root / "proc/cpuinfo")
    load = _text(root / "proc/loadavg").split()
    return Environment(
        kernel=platform.release(),
        architecture=platform.machine(),
        cpu_model=cpuinfo.get("model name", ""),
        cpus=os.cpu_count() or 1,
        cpus_allowed=len(os.sched_getaffinity(0)),
        governor=_governors(cpu),
        turbo=_text(cpu / "intel_pstate/no_turbo") or _text(cpu / "cpufreq/boost"),
        smt=_text(cpu / "smt/control"),
        mitigations="; ".join(_mitigations(cpu / "vulnerabilities")),
        thp=_chosen(_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        shmem_thp=_chosen(_text(root / "sys/kernel/mm/transparent_hugepage/shmem_enabled")),
        memory_bytes=_kib(meminfo, "MemTotal"),
        swap_bytes=_kib(meminfo, "SwapTotal"),
        available_bytes=_kib(meminfo, "MemAvailable"),
        load_1min=float(load[0]) if load else 0.0,
        virtualisation=_virtualisation(root, cpuinfo),
        python=platform.python_version(),
        libc=" ".join(platform.libc_ver()),
        numpy=metadata.version("numpy"),
        scipy=metadata.version("scipy"),
        pyarrow=metadata.version("pyarrow"),
    )


def differences(base: Environment, candidate: Environment) -> tuple[str, ...]:
    """Say which checked keys differ, one sentence each."""
    pairs = (
        (name, getattr(base, name), getattr(candidate, name))
        for name in (field.name for field in fields(Environment))
        if name in CHECKED
    )
    return tuple(
        f"{name} is {old!r} in the baseline and {new!r} in the candidate"
        for name, old, new in pairs
        if (_unlike_sizes(old, new) if name == "memory_bytes" else old != new)
    )


def _unlike_sizes(old: int, new: int) -> bool:
    return abs(old - new) > MEMORY_TOLERANCE * max(old, new)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _table(path: Path) -> dict[str, str]:
    """`key : value` lines; the first of a key counts (cpuinfo repeats them for each CPU)."""
    table: dict[str, str] = {}
    for line in _text(path).splitlines():
        key, _, value = line.partition(":")
        table.setdefault(key.strip(), value.strip())
    return table


def _kib(table: dict[str, str], key: str) -> int:
    number = table.get(key, "").split()
    return int(number[0]) << 10 if number and number[0].isdigit() else 0


def _chosen(text: str) -> str:
    """The word in brackets of `always [madvise] never`."""
    return text.partition("[")[2].partition("]")[0]


def _governors(cpu: Path) -> str:
    """The governor of all CPUs; several names where they differ."""
    found = {_text(path) for path in cpu.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    return ", ".join(sorted(found - {""}))


def _mitigations(directory: Path) -> list[str]:
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError:
        return []
    states = ((name, _text(directory / name)) for name in names)
    return [f"{name}: {state}" for name, state in states if state.startswith("Mitigation")]


def _virtualisation(root: Path, cpuinfo: dict[str, str]) -> str:
    """What the machine runs on: the firmware's word for it, or just that there is a hypervisor."""
    if "hypervisor" not in cpuinfo.get("flags", "").split():
        return _text(root / "sys/hypervisor/type")
    return _text(root / "sys/class/dmi/id/sys_vendor") or "hypervisor"
