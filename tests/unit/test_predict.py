"""Predictions from the files of machines that cannot be had here."""

from pathlib import Path

import pytest

from tests.unit.machine_trees import ALL, ROOT_STATUS, machine_tree
from tracer.diagnosis.environment import read_machine
from tracer.diagnosis.predict import Prediction, predict
from tracer.diagnosis.requirements import check_requirements
from tracer.engine.privilege import Capability
from tracer.sites.probes import HOST_CALL_POINTS, Kind, Way, host_request_points

POINTS = (*HOST_CALL_POINTS[:2], *host_request_points((0,)))
WAYS = {way.kind: way for point in POINTS for way in point.ways}
USER = "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t{:016x}\n"


def bits(*capabilities: Capability) -> int:
    return sum(1 << capability for capability in capabilities)


def everything(function: str) -> bool:
    return function == WAYS[Kind.FENTRY].target


def predictions(root: Path, changes: dict[str, str | None]) -> dict[Kind, Prediction]:
    machine = read_machine(machine_tree(root, changes))
    return {kind: predict(way, machine, everything) for kind, way in WAYS.items()}


def works(found: dict[Kind, Prediction], answer: bool | None = True) -> set[Kind]:
    return {kind for kind, prediction in found.items() if prediction.works is answer}


def test_on_a_plain_machine_root_can_go_every_way(tmp_path):
    found = predictions(tmp_path, {})
    assert works(found) == set(WAYS)
    assert {prediction.reason for prediction in found.values()} == {""}


@pytest.mark.parametrize(
    ("changes", "failing", "reason", "remedy"),
    [
        (
            {"proc/sys/kernel/osrelease": "5.4.0-216-generic\n"},
            set(WAYS),
            "Linux 5.4 has no BPF ring buffer",
            "boot Linux 5.8",
        ),
        (
            {"proc/sys/kernel/arch": "aarch64\n"},
            set(WAYS),
            "the machine is aarch64",
            "x86-64 machine",
        ),
        (
            {"proc/self/uid_map": "         0     100000      65536\n"},
            set(WAYS),
            "user namespace",
            "--privileged",
        ),
        (
            {"sys/kernel/btf": None},
            {Kind.FENTRY, Kind.FEXIT},
            "no type information",
            "CONFIG_DEBUG_INFO_BTF=y",
        ),
        (
            {"sys/kernel/tracing/available_filter_functions": None},
            {Kind.FENTRY, Kind.FEXIT},
            "no function tracer",
            "CONFIG_DYNAMIC_FTRACE=y",
        ),
        (
            {"sys/kernel/tracing": None},
            {Kind.TRACEPOINT, Kind.FENTRY, Kind.FEXIT},
            "tracefs is not mounted",
            "mount -t tracefs tracefs /sys/kernel/tracing",
        ),
        (
            {"sys/kernel/tracing/events/syscalls": None, "sys/kernel/tracing/events/x/id": "1"},
            {Kind.TRACEPOINT},
            "no tracepoint syscalls:sys_e",
            "CONFIG_FTRACE_SYSCALLS=y",
        ),
        (
            {"sys/bus/event_source/devices/kprobe": None},
            {Kind.KPROBE, Kind.KRETPROBE},
            "no kprobes",
            "CONFIG_KPROBE_EVENTS=y",
        ),
        (
            {"sys/bus/event_source/devices/uprobe": None},
            {Kind.UPROBE},
            "no uprobes",
            "CONFIG_UPROBE_EVENTS=y",
        ),
        (
            {
                "proc/sys/kernel/osrelease": "5.10.0-30-amd64\n",
                "proc/self/limits": "Max locked memory         65536     65536     bytes\n",
                "proc/self/status": ROOT_STATUS.format(ALL & ~bits(Capability.CAP_SYS_RESOURCE)),
            },
            set(WAYS),
            "RLIMIT_MEMLOCK is 65536 bytes",
            "ulimit -l unlimited",
        ),
        (
            {"proc/self/status": ROOT_STATUS.format(0)},
            set(WAYS),
            "lacks CAP_PERFMON, CAP_BPF",
            "run with sudo, or grant CAP_PERFMON, CAP_BPF",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_what_stands_in_the_way(tmp_path, changes, failing, reason, remedy):
    found = predictions(tmp_path, changes)
    assert works(found, False) == failing
    assert works(found) == set(WAYS) - failing
    assert any(reason in found[kind].reason for kind in failing)
    assert any(remedy in found[kind].remedy for kind in failing)
    assert all(bool(each.reason) is bool(each.remedy) for each in found.values())


def test_a_full_lockdown_leaves_what_reads_no_kernel_memory(tmp_path):
    locked = {"sys/kernel/security/lockdown": "none integrity [confidentiality]\n"}
    found = predictions(tmp_path, locked)
    assert works(found) == {Kind.UPROBE, Kind.TRACEPOINT}
    assert works(found, False) == {Kind.KPROBE, Kind.KRETPROBE}
    assert "locked down for confidentiality" in found[Kind.FENTRY].reason
    assert "boot without lockdown" in found[Kind.KPROBE].remedy


def test_a_lockdown_for_integrity_changes_nothing(tmp_path):
    locked = {"sys/kernel/security/lockdown": "none [integrity] confidentiality\n"}
    assert works(predictions(tmp_path, locked)) == set(WAYS)


def test_a_paranoid_distribution_may_ask_for_more(tmp_path):
    held = bits(Capability.CAP_BPF, Capability.CAP_PERFMON, Capability.CAP_DAC_READ_SEARCH)
    changes = {"proc/self/status": USER.format(held), "proc/sys/kernel/perf_event_paranoid": "3"}
    found = predictions(tmp_path, changes)
    perf_events = {Kind.KPROBE, Kind.KRETPROBE, Kind.TRACEPOINT, Kind.UPROBE}
    assert works(found, None) == perf_events
    assert {found[kind].reason for kind in perf_events} == {"this process lacks CAP_SYS_ADMIN"}
    assert works(found) == set(WAYS) - perf_events


def test_a_user_with_tracing_capabilities_may_not_be_let_near_uprobes(tmp_path):
    user = USER.format(bits(Capability.CAP_BPF, Capability.CAP_PERFMON))
    changes = {"proc/self/status": user, "proc/sys/kernel/perf_event_paranoid": "2"}
    found = predictions(tmp_path, changes)
    assert works(found, None) == {Kind.UPROBE}
    assert "CAP_SYS_ADMIN" in found[Kind.UPROBE].reason
    assert works(found, False) == {Kind.TRACEPOINT}
    assert "CAP_DAC_READ_SEARCH" in found[Kind.TRACEPOINT].reason


def test_what_the_machine_lacks_is_told_before_what_the_user_lacks(tmp_path):
    changes = {"proc/self/status": USER.format(0), "sys/bus/event_source/devices/kprobe": None}
    found = predictions(tmp_path, changes)
    assert "no kprobes" in found[Kind.KPROBE].reason
    assert "lacks" in found[Kind.RAW_TRACEPOINT].reason


def test_the_memory_limit_does_not_count_on_newer_kernels(tmp_path):
    limits = "Max locked memory         65536     65536     bytes\n"
    status = ROOT_STATUS.format(ALL & ~bits(Capability.CAP_SYS_RESOURCE))
    found = predictions(tmp_path, {"proc/self/limits": limits, "proc/self/status": status})
    assert works(found) == set(WAYS)


def test_a_function_that_btf_does_not_list_cannot_be_entered(tmp_path):
    machine = read_machine(machine_tree(tmp_path))
    found = predict(Way(Kind.FENTRY, "no_such_function", "on_x"), machine, everything)
    assert found == Prediction(
        False,
        "the kernel's BTF does not list no_such_function",
        "nothing where another way of this point works, else boot a kernel built with "
        "CONFIG_DEBUG_INFO_BTF_MODULES=y",
    )


@pytest.mark.parametrize(
    ("changes", "name", "reason"),
    [
        (
            {"sys/kernel/security/lockdown": "none integrity [confidentiality]"},
            "lockdown",
            "locked",
        ),
        ({"proc/sys/kernel/osrelease": "4.19.0-27-amd64"}, "kernel", "Linux 4.19"),
        ({"proc/sys/kernel/osrelease": "?"}, "kernel", "Linux 0.0"),
        ({"proc/self/uid_map": "0 1000 1"}, "user namespace", "do not count"),
        (
            {"proc/self/status": USER.format(0)},
            "capabilities",
            "user id 1000 lacks CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE",
        ),
    ],
)
def test_requirements_that_files_tell(tmp_path, changes, name, reason):
    machine = read_machine(machine_tree(tmp_path, changes))
    rows = {check.name: check for check in check_requirements(machine)}
    assert rows[name].proven is False
    assert reason in rows[name].reason
    assert rows[name].remedy


def test_hostile_files_are_read_as_nothing(tmp_path):
    tree = machine_tree(
        tmp_path, {"proc/self/status": "Uid:\nCapEff:\n\xff", "proc/self/limits": ""}
    )
    (tree / "proc/sys/kernel/osrelease").write_bytes(b"\xff\xfe\x00")
    machine = read_machine(tree)
    assert machine.release == (0, 0)
    assert machine.held == frozenset()
    assert machine.memlock_bytes is None
