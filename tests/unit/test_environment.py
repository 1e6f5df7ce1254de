"""The machine's fingerprint, from made-up /proc and /sys and from the real ones."""

from dataclasses import replace
from pathlib import Path

import pytest

from replay.environment import CHECKED, differences, fingerprint

from .replay_results import MACHINE, make_results, make_strategy

FILES = {
    "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 800 kB\nSwapTotal: 4 kB\n",
    "proc/cpuinfo": "model name\t: Fast CPU\nflags\t: fpu hypervisor\n\nmodel name\t: Other\n",
    "proc/loadavg": "1.50 0.1 0.1 1/2 3\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    "sys/devices/system/cpu/smt/control": "on\n",
    "sys/devices/system/cpu/vulnerabilities/meltdown": "Not affected\n",
    "sys/devices/system/cpu/vulnerabilities/spectre_v2": "Mitigation: Retpolines\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    "sys/class/dmi/id/sys_vendor": "Some Cloud\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_fingerprint(root: Path) -> None:
    found = fingerprint(root)
    assert found.memory_bytes == 1000 << 10
    assert found.available_bytes == 800 << 10
    assert found.swap_bytes == 4 << 10
    assert found.cpu_model == "Fast CPU"
    assert found.load_1min == 1.5
    assert found.governor == "powersave"
    assert found.smt == "on"
    assert found.mitigations == "spectre_v2: Mitigation: Retpolines"
    assert found.thp == "madvise"
    assert found.shmem_thp == ""
    assert found.virtualisation == "Some Cloud"


def test_governors_that_differ_are_all_named(root: Path) -> None:
    other = root / "sys/devices/system/cpu/cpu11/cpufreq/scaling_governor"
    other.parent.mkdir(parents=True)
    other.write_text("performance\n")
    assert fingerprint(root).governor == "performance, powersave"


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    found = fingerprint(tmp_path)
    assert found.memory_bytes == 0
    assert found.cpu_model == found.governor == found.virtualisation == ""


def test_this_machine() -> None:
    found = fingerprint()
    assert found.memory_bytes > 0
    assert found.cpus >= found.cpus_allowed >= 1
    assert differences(found, fingerprint()) == ()


@pytest.mark.parametrize(
    ("share", "unlike"), [(1.0, 0), (0.95, 0), (0.91, 0), (1.09, 0), (0.89, 1), (1.13, 1), (0.5, 1)]
)
def test_memory_may_differ_by_a_tenth(share: float, unlike: int) -> None:
    """A kernel keeps more of it or less for itself; a zone of another size costs something else."""
    other = replace(MACHINE, memory_bytes=round(MACHINE.memory_bytes * share))
    assert len(differences(MACHINE, other)) == len(differences(other, MACHINE)) == unlike


@pytest.mark.parametrize("key", CHECKED)
def test_every_checked_key_counts(key: str) -> None:
    changed = 99 if isinstance(getattr(MACHINE, key), int) else "changed"
    other = make_results(make_strategy("qemu", [1]), **{key: changed}).environment
    assert len(differences(MACHINE, other)) == 1
    assert key in differences(MACHINE, other)[0]
