"""The table of docs/privileges.md, measured: each act with exactly these capabilities, and less."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.as_user import failure
from tracer.cost.machine_code import MachineCode, loop
from tracer.engine.bpf_programs import RunStats
from tracer.engine.loader import EmptyPrograms
from tracer.engine.privilege import LOAD, Capability
from tracer.sites.guest_layout import kernel_symbol

PAGE = Path(__file__).parents[2] / "docs" / "privileges.md"
TRACEFS = Path("/sys/kernel/tracing")
BPF, PERFMON = Capability.CAP_BPF, Capability.CAP_PERFMON
ADMIN, PTRACE = Capability.CAP_SYS_ADMIN, Capability.CAP_SYS_PTRACE
SEARCH, SYSLOG = Capability.CAP_DAC_READ_SEARCH, Capability.CAP_SYSLOG


@pytest.fixture(scope="module")
def other() -> Iterator[int]:
    """A process of another user: root's, while the act is nobody's."""
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        yield sleeper.pid
        sleeper.terminate()


def uprobe(_: int) -> None:
    code = MachineCode({"nop": loop(b"\x90")})
    with EmptyPrograms() as programs:
        programs.attach_uprobe("empty", code.path, code.offset("nop"), os.getpid())


def tracepoint(_: int) -> None:
    with EmptyPrograms() as programs:
        programs.attach_tracepoint("empty", "syscalls", "sys_enter_madvise")


def raw_tracepoint(_: int) -> None:
    with EmptyPrograms() as programs:
        programs.attach_raw_tracepoint("empty", "sys_enter")


def time_programs(_: int) -> None:
    RunStats().close()


def proc_file(name: str) -> Callable[[int], None]:
    def read(pid: int) -> None:
        with Path(f"/proc/{pid}/{name}").open("rb", buffering=0) as file:
            file.read(0 if name == "mem" else 8)

    return read


def descriptors(pid: int) -> None:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        entry.readlink()


def addresses(_: int) -> None:
    assert kernel_symbol("_text"), "the address is hidden"


ACTS: dict[str, tuple[Callable[[int], None], set[Capability], str]] = {
    "raw tracepoint": (raw_tracepoint, {BPF, PERFMON}, "CAP_"),
    "classic tracepoint": (tracepoint, {BPF, PERFMON, SEARCH}, "CAP_"),
    "uprobe": (uprobe, {ADMIN}, "CAP_SYS_ADMIN"),
    "time BPF programs": (time_programs, {ADMIN}, "CAP_SYS_ADMIN"),
    "/proc/PID/exe": (proc_file("exe"), {PTRACE}, "Permission denied"),
    "/proc/PID/maps": (proc_file("maps"), {PTRACE}, "Permission denied"),
    "/proc/PID/fd": (descriptors, {PTRACE, SEARCH}, "Permission denied"),
    "/proc/PID/smaps_rollup": (proc_file("smaps_rollup"), {PTRACE}, "Permission denied"),
    "/proc/PID/pagemap": (proc_file("pagemap"), {PTRACE, SEARCH}, "Permission denied"),
    "/proc/PID/mem": (proc_file("mem"), {PTRACE, SEARCH}, "Permission denied"),
    "/proc/PID/stat": (proc_file("stat"), set(), ""),
    "/proc/PID/statm": (proc_file("statm"), set(), ""),
    "kernel addresses": (addresses, {SYSLOG}, "the address is hidden"),
}
"""Act of the table, what it takes, and what a process with one less is told."""


def hides_addresses() -> bool:
    paranoid = int(Path("/proc/sys/kernel/perf_event_paranoid").read_text())
    return paranoid > 1 or Path("/proc/sys/kernel/kptr_restrict").read_text().strip() != "0"


@pytest.mark.parametrize("act", ACTS)
def test_exactly_these_capabilities_are_enough(act: str, other: int) -> None:
    do, needs, _ = ACTS[act]
    assert failure(needs, lambda: do(other)) == ""


@pytest.mark.parametrize(
    ("act", "missing"), [(act, one) for act, (_, needs, _) in ACTS.items() for one in sorted(needs)]
)
def test_one_capability_less_is_told(act: str, missing: Capability, other: int) -> None:
    do, needs, said = ACTS[act]
    if act == "kernel addresses" and not hides_addresses():
        pytest.skip("this kernel shows its addresses to everybody")
    # CAP_SYS_ADMIN stands for these two, and it is the rest of it that is asked for here.
    held = LOAD if missing is ADMIN else needs - {missing}
    text = failure(held, lambda: do(other))
    if act == "uprobe" and not text:
        pytest.skip("this kernel is of the years in which CAP_PERFMON was enough for uprobes")
    assert said in text
    if said.startswith("CAP_"):
        assert missing.name in text


@pytest.mark.parametrize("act", ACTS)
def test_the_page_says_what_was_measured(act: str) -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]*) \|", PAGE.read_text(), re.MULTILINE)
    written = {name.strip(" `"): set(re.findall(r"CAP_[A-Z_]+", needs)) for name, needs in rows}
    assert written[act] == {capability.name for capability in ACTS[act][1]}
