"""`record --guest` as an ordinary user with exactly the capabilities of docs/privileges.md."""

import re
from pathlib import Path

import pytest

from lab.balloon import move
from lab.session import LabOptions, open_vm
from tests.vm.guest_recording import as_nobody, command, copied, end, refused, start
from tracer.account.ledger import ledger
from tracer.engine.privilege import Capability
from tracer.trace.errors import ExitCode
from tracer.trace.schema import Queue

PAGE = (Path(__file__).parents[3] / "docs" / "privileges.md").read_text()
PAGE_BYTES = 4096
MEMORY_BYTES = 1 << 30
ODD_PAGES = 10_007
BPF, PERFMON = Capability.CAP_BPF, Capability.CAP_PERFMON
ADMIN, SYSLOG = Capability.CAP_SYS_ADMIN, Capability.CAP_SYSLOG


@pytest.fixture(scope="module")
def vm():
    options = LabOptions(output=Path("unused.balloon"), memory_bytes=MEMORY_BYTES, record=False)
    with open_vm(options) as booted:
        booted.agent.run(["sh", "-c", "echo 2 > /proc/sys/kernel/perf_event_paranoid"])
        booted.agent.run(["sh", "-c", "echo 1 > /proc/sys/kernel/kptr_restrict"])
        yield booted


def in_sum(row: str) -> set[Capability]:
    """What the page's second table says that recording takes."""
    found = re.search(rf"^\| {re.escape(row)} \| ([^|]*) \|$", PAGE, re.MULTILINE)
    return {Capability[name] for name in re.findall("CAP_[A-Z_]+", found[1])}


def kept(vm, recorder: int) -> list[tuple[str, str, str]]:
    """Permitted and effective capabilities and no_new_privs of each thread of a recorder."""
    text = vm.agent.run(["sh", "-c", f"cat /proc/{recorder}/task/*/status"])
    found = re.findall(r"CapPrm:\t(\w+)\nCapEff:\t(\w+)\n.*?NoNewPrivs:\t(\d)", text, re.DOTALL)
    assert len(found) == text.count("CapPrm:") >= 1
    return found


def moved(vm, bundle: str, home: Path, *more: str, held: set[Capability] | None = None):
    """Record an inflate and a deflate; what its threads kept while it recorded, and the trace."""
    recorder = start(vm, bundle, *more, held=held)
    left = kept(vm, recorder)
    move(vm.qmp, MEMORY_BYTES - ODD_PAGES * PAGE_BYTES)
    move(vm.qmp, MEMORY_BYTES)
    assert end(vm, recorder, bundle) == ExitCode.OK
    return left, copied(vm, bundle, home)


def whole(trace) -> bool:
    table = trace.table("requests")
    queues, pages = table["queue"].to_numpy(), table["pages"].to_numpy()
    assert ledger(trace).balanced is True
    return all(pages[queues == queue].sum() == ODD_PAGES for queue in (0, 1))


def unattached(trace) -> set[str]:
    probes = trace.manifest.sides["guest"].probes
    return {probe.point for probe in probes if probe.status != "attached"}


BY_ADDRESS = {
    *("report-enter", "report-exit", "target-enter", "target-exit"),
    *("hint-enter", "hint-exit", "hint-id", "hint-block"),
}
"""Points that need addresses of the kernel, which it hides from those without CAP_SYSLOG."""
NOTHING = ("0" * 16, "0" * 16, "1")


def test_two_capabilities_record_a_guest_by_kprobes(vm, tmp_path):
    needs = in_sum("a guest, by kprobes")
    assert needs == {BPF, PERFMON}
    left, trace = moved(vm, "/tmp/k.balloon", tmp_path, "--probes", "kprobe", held=needs)
    assert set(left) == {NOTHING}
    assert whole(trace)
    probes = {probe.point: probe for probe in trace.manifest.sides["guest"].probes}
    assert probes["send-enter"].way == "kprobe"
    assert unattached(trace) == BY_ADDRESS


def test_two_capabilities_record_a_guest_by_fentry_with_reports(vm, tmp_path):
    needs = in_sum("a guest, by fentry, free page reports included")
    assert needs == {ADMIN, SYSLOG}
    left, trace = moved(vm, "/tmp/f.balloon", tmp_path, "--probes", "fentry", held=needs)
    assert set(left) == {NOTHING}
    assert whole(trace)
    probes = {probe.point: probe for probe in trace.manifest.sides["guest"].probes}
    assert probes["send-enter"].way == probes["report-enter"].way == "fentry"
    assert unattached(trace) == set()
    assert all(probe.cost_ns for name, probe in probes.items() if name.startswith("send"))


@pytest.mark.parametrize("missing", [BPF, PERFMON], ids=lambda one: one.name)
def test_by_kprobes_with_one_less_it_says_which(missing, vm):
    argv = command(vm, "/tmp/less.balloon", "--probes", "kprobe")
    code, said = refused(vm, as_nobody(vm, argv, {BPF, PERFMON} - {missing}))
    assert code == ExitCode.MISSING_PRIVILEGE
    assert f"lacks {missing.name}" in said
    assert not vm.agent.exists("/tmp/less.balloon")


def test_by_fentry_without_the_system_administrators_it_says_so(vm):
    argv = command(vm, "/tmp/less.balloon", "--probes", "fentry")
    code, said = refused(vm, as_nobody(vm, argv, {BPF, PERFMON, SYSLOG}))
    assert code == ExitCode.MISSING_PRIVILEGE
    assert "lacks CAP_SYS_ADMIN" in said
    assert not vm.agent.exists("/tmp/less.balloon")


def test_by_fentry_without_addresses_all_but_what_needs_them_is_recorded(vm, tmp_path):
    _, trace = moved(vm, "/tmp/l.balloon", tmp_path, "--probes", "fentry", held={ADMIN})
    assert whole(trace)
    probes = {probe.point: probe for probe in trace.manifest.sides["guest"].probes}
    assert "vmemmap_base" in probes["report-enter"].reason
    assert unattached(trace) == BY_ADDRESS


def test_root_keeps_nothing_either_once_the_probes_are_attached(vm, tmp_path):
    left, trace = moved(vm, "/tmp/r.balloon", tmp_path)
    assert set(left) == {NOTHING}
    assert whole(trace)
    assert Queue.INFLATE in trace.table("requests")["queue"].to_pylist()
