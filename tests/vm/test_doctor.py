"""The doctor and the table of privileges inside a real guest, where kprobes and fentry work."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lab.session import LabOptions, open_vm
from tracer.diagnosis.checks import GUEST_DRIVER, HOST_CALLS, HOST_REQUESTS, Check
from tracer.engine.privilege import Capability
from tracer.sites.probes import GUEST_POINTS, HOST_CALL_POINTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "privileges.md").read_text()
LONGEST_S = 400
BPF, PERFMON = Capability.CAP_BPF, Capability.CAP_PERFMON
ADMIN, SEARCH = Capability.CAP_SYS_ADMIN, Capability.CAP_DAC_READ_SEARCH
ACTS = """
import json, os, sys
sys.path.insert(0, "/opt/aerostat")
from tracer.engine.libbpf import Btf
from tracer.engine.loader import EmptyPrograms
from tracer.cost.machine_code import MachineCode, loop

def kprobe():
    with EmptyPrograms() as programs:
        programs.attach_kprobe("empty", "tell_host", at_return=False)

def fentry_of_the_kernel():
    with EmptyPrograms() as programs:
        programs.attach_fentry("empty", Btf(), "__x64_sys_madvise", at_return=False)

def fentry_of_a_module():
    with EmptyPrograms() as programs:
        programs.attach_fentry("empty", Btf("virtio_balloon"), "tell_host", at_return=False)

def tracepoint():
    with EmptyPrograms() as programs:
        programs.attach_tracepoint("empty", "syscalls", "sys_enter_madvise")

said = []
for name, capabilities in json.loads(sys.argv[1]):
    said.append(failure(capabilities, globals()[name]))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def vm():
    options = LabOptions(
        output=Path("unused.balloon"), memory_bytes=1 << 30, pair="7.2", record=False
    )
    with open_vm(options) as booted:
        yield booted


def doctor(vm, *arguments: str) -> str:
    words = " ".join([vm.agent.python, "-m", "aerostat", "doctor", *arguments])
    return vm.agent.run(["sh", "-c", f"{words} 2>&1; echo exit code $?"], LONGEST_S)


def attempts(vm, wanted: list[tuple[str, set[Capability]]]) -> list[str]:
    """Do each act in the guest with exactly these capabilities; empty text is success."""
    source = (ROOT / "tests" / "kernel" / "as_user.py").read_text() + ACTS
    plan = json.dumps([(name, sorted(capabilities)) for name, capabilities in wanted])
    return json.loads(vm.agent.run([vm.agent.python, "-c", source, plan], LONGEST_S))


def diagnosed(vm) -> dict[str, Any]:
    text, _, code = doctor(vm, "--json").rpartition("exit code ")
    assert code.strip() == "0"
    return json.loads(text[text.index("{") :])


def test_kprobes_that_were_turned_off_are_told_with_what_turns_them_on(vm):
    """First of all: what it was told to do is done, and the next test needs it."""
    debugfs = "mount -t debugfs none /sys/kernel/debug 2>/dev/null; "
    vm.agent.run(["sh", "-c", f"{debugfs} echo 0 > /sys/kernel/debug/kprobes/enabled"])
    rows = [row for row in diagnosed(vm)["checks"] if row["group"] == HOST_CALLS]
    off = [row for row in rows if row["way"].startswith(("kprobe", "kretprobe"))]
    assert {(row["proven"], row["fired"]) for row in off} == {(False, False)}
    assert {row["reason"] for row in off} == {"it attached, but did not run when it should"}
    (remedy,) = {row["remedy"] for row in off}
    vm.agent.run(["sh", "-c", remedy])
    assert all(row["fired"] for row in rows if row not in off)


def test_every_way_works_in_the_guest_and_the_cheapest_is_chosen(vm):
    document = diagnosed(vm)
    assert document["can_record"] == {"qemu": True, "other_vmm": True, "guest": True}
    fields = {field.name for field in dataclasses.fields(Check)}
    assert {frozenset(check) for check in document["checks"]} == {frozenset(fields)}
    rows = [check for check in document["checks"] if check["way"]]
    assert [row for row in rows if not row["proven"] or not row["predicted"]] == []
    for points, group in ((GUEST_POINTS, GUEST_DRIVER), (HOST_CALL_POINTS, HOST_CALLS)):
        ways = [(point.name, way.kind.value) for point in points for way in point.ways]
        mine = [row for row in rows if row["group"] == group][: len(ways)]
        assert [row["name"] for row in mine] == [name for name, _ in ways]
        assert all(row["way"].startswith(kind) for row, (_, kind) in zip(mine, ways, strict=True))
    first = {(row["group"], row["name"]): row["way"] for row in reversed(rows)}
    assert {(r["group"], r["name"]): r["way"] for r in rows if r["chosen"]} == first
    assert {way.split()[0] for way in first.values()} >= {"fentry", "fexit", "uprobe"}
    assert all(row["fired"] for row in rows if row["group"] in (HOST_CALLS, HOST_REQUESTS))
    # A difference of two timings in an emulated guest may come out as nothing: single ones are 0.
    assert min(row["floor_ns"] for row in rows if row["group"] == GUEST_DRIVER) >= 0
    assert min(row["cost_ns"] for row in rows if row["group"] == HOST_CALLS) >= 0
    assert max(row["cost_ns"] for row in rows if row["group"] == HOST_CALLS) > 0


def test_the_capabilities_of_kprobe_and_fentry_are_those_of_the_page(vm):
    vm.agent.run(["sh", "-c", "echo 2 > /proc/sys/kernel/perf_event_paranoid"])
    written = {
        name: {Capability[word] for word in re.findall("CAP_[A-Z_]+", needs)}
        for name, needs in re.findall(r"^\| ([^|]+) \| ([^|]*) \|", PAGE, re.MULTILINE)
    }
    acts = {
        "kprobe": written["kprobe"],
        "fentry_of_the_kernel": written["fentry of the kernel"],
        "fentry_of_a_module": written["fentry of a module"],
        "tracepoint": written["classic tracepoint"],
    }
    assert acts["kprobe"] == acts["fentry_of_the_kernel"] == {BPF, PERFMON}
    assert acts["fentry_of_a_module"] == {ADMIN}
    assert attempts(vm, list(acts.items())) == [""] * len(acts)
    less = [(name, needs - {one}, one) for name, needs in acts.items() for one in sorted(needs)]
    said = attempts(vm, [(name, held) for name, held, _ in less])
    for (_, _, missing), text in zip(less, said, strict=True):
        assert "lacks CAP_" in text
        assert missing.name in text


def test_a_paranoid_kernel_asks_for_more_and_is_understood(vm):
    vm.agent.run(["sh", "-c", "echo 3 > /proc/sys/kernel/perf_event_paranoid"])
    tracing = {BPF, PERFMON, SEARCH}
    said = attempts(
        vm,
        [
            ("kprobe", tracing),
            ("tracepoint", tracing),
            ("fentry_of_the_kernel", tracing),
            ("kprobe", {ADMIN}),
        ],
    )
    assert "lacks CAP_SYS_ADMIN" in said[0]
    assert "lacks CAP_SYS_ADMIN" in said[1]
    assert said[2:] == ["", ""]


def test_a_kernel_locked_down_for_confidentiality_is_recorded_from_the_host_side_alone(vm):
    """Last of all: a lockdown holds until the guest ends."""
    lock = "mount -t securityfs none /sys/kernel/security 2>/dev/null; "
    vm.agent.run(["sh", "-c", f"{lock} echo confidentiality > /sys/kernel/security/lockdown"])
    text = doctor(vm)
    lines = [line.rstrip() for line in text.splitlines()]
    tables = [line for line in lines if not line.startswith(("[", "    try"))]
    assert max(map(len, tables)) <= 101
    assert re.search(r"^  lockdown\s+✗ no\s+\[1\]\s*$", text, re.MULTILINE)
    assert "try: boot without lockdown=confidentiality" in text
    assert re.search(r"kprobe tell_host\s+✗ no", text)
    assert re.search(r"> tracepoint sys_enter_madvise\s+✓ fired", text)
    assert re.search(r"> uprobe 0:pop\s+✓ fired", text)
    assert "this guest's driver: cannot be recorded here" in text
    assert "any VMM, discards alone: can be recorded here" in text
    assert "exit code 0" in text
