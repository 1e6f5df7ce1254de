"""The doctor on this machine: what it says of each way is what happened when it was tried."""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.standins.build import qemu_like
from tracer.diagnosis.checks import ENVIRONMENT, HOST_CALLS, HOST_REQUESTS, Check, able, word
from tracer.diagnosis.doctor import diagnose
from tracer.diagnosis.probe_proof import attach_rows, provoked
from tracer.engine import libbpf
from tracer.engine.host_engine import HostEngine
from tracer.errors import REPORT
from tracer.sites.host_probes import host_mechanisms
from tracer.sites.probes import (
    GUEST_POINTS,
    HOST_CALL_POINTS,
    HOST_EVENT_POINTS,
    HOST_OTHER_CALL_POINTS,
    Kind,
    host_request_points,
)
from tracer.sites.recover import HANDLERS

ROOT = Path(__file__).parents[2]
TRACING = ("+bpf", "+perfmon", "+dac_read_search")


@pytest.fixture(scope="module")
def checks() -> list[Check]:
    return diagnose()


def run(
    arguments: Sequence[str],
    capabilities: Sequence[str] = (),
    flags: Sequence[str] = (),
    path: Sequence[Path | str] = (),
) -> tuple[int, dict[str, Any]]:
    """Run the real command and see that it names a remedy for every failure.

    Args:
        arguments: Of the command.
        capabilities: As nobody with these, where any are named.
        flags: Of Python.
        path: Where Python looks for modules first.
    """
    argv = [sys.executable, *flags, "-m", "aerostat", "doctor", "--json", "--quiet", *arguments]
    if capabilities:
        names = ",".join(capabilities)
        user = ("--reuid", "65534", "--regid", "65534", "--clear-groups")
        argv = ["setpriv", *user, "--inh-caps", names, "--ambient-caps", names, *argv]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120, env=environment
    )
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    for row in document["checks"]:
        failed = row["proven"] is False or (row["proven"] is None and row["predicted"] is False)
        assert not failed or (row["reason"] and row["remedy"]), row
    return done.returncode, document


def ways(document: dict[str, Any], group: str) -> list[dict[str, Any]]:
    return [check for check in document["checks"] if check["group"] == group]


def test_every_way_of_the_catalogue_has_one_row_in_its_order(checks):
    points = (
        *HOST_CALL_POINTS,
        *HOST_OTHER_CALL_POINTS,
        *host_request_points(range(len(HANDLERS))),
        *HOST_EVENT_POINTS,
        *GUEST_POINTS,
    )
    expected = [(point.name, way.kind.value) for point in points for way in point.ways]
    mechanisms = sorted({way.kind.value for point in points for way in point.ways}, key=len)
    found = []
    for check in checks:
        if check.way:
            mechanism = max(m for m in mechanisms if check.way.startswith(f"{m} "))
            found.append((check.name, mechanism))
    assert found == expected


def test_what_was_predicted_is_what_was_proven(checks):
    wrong = [c for c in checks if c.way and c.predicted is not None and c.proven != c.predicted]
    guest = [c for c in wrong if c.group == "guest driver" and c.predicted]
    # The guest's own probes may need more than files tell: the driver's layout, its addresses.
    assert [c for c in wrong if c not in guest] == []


def test_every_failure_has_a_reason_with_a_remedy_and_every_success_none(checks):
    for check in checks:
        failed = check.proven is False or check.predicted is False
        assert bool(check.reason) is bool(check.remedy) is failed, check
        assert not (check.remedy and check.proven), check


def test_a_probe_that_nothing_makes_run_is_told_with_a_remedy():
    point = HOST_CALL_POINTS[0]
    rows = [
        (point, way, Check(HOST_CALLS, point.name, word(way)))
        for way in point.ways
        if way.kind in (Kind.TRACEPOINT, Kind.RAW_TRACEPOINT)
    ]
    with HostEngine(calls=False) as engine:
        attached = attach_rows(engine.program, rows, host_mechanisms(None, 0))
        seen, _ = provoked(engine.program, attached, lambda: None)
        engine.program.detach()
    classic = {way.kind: check for _, way, check in seen}[Kind.TRACEPOINT]
    assert (classic.proven, classic.fired) == (False, False)
    assert classic.reason == "it attached, but did not run when it should"
    assert classic.remedy == REPORT


def test_what_attached_was_seen_to_run(checks):
    host = [c for c in checks if c.group in (HOST_CALLS, HOST_REQUESTS) and c.proven]
    assert {c.name for c in host} >= {"madvise-enter", "madvise-exit", "queues-pop", "queues-push"}
    assert [c for c in host if not c.fired] == []


def test_the_first_way_that_works_is_the_chosen_one(checks):
    for name in {c.name for c in checks if c.way}:
        rows = [c for c in checks if c.name == name]
        working = [c for c in rows if c.proven]
        assert [c for c in rows if c.chosen] == working[:1]


def test_costs_are_measured_and_ordered(checks):
    by_way = {(c.name, c.way.partition(" sys")[0]): c for c in checks if c.group == HOST_CALLS}
    classic, raw = by_way["madvise-enter", "tracepoint"], by_way["madvise-enter", "raw tracepoint"]
    assert classic.cost_ns is not None
    assert raw.cost_ns is not None
    assert raw.bystander_ns > 0
    requests = {c.name: c for c in checks if c.group == HOST_REQUESTS}
    # A push copies 256 PFNs into the ring, a pop only notes a time.
    assert requests["queues-push"].cost_ns > requests["queues-pop"].cost_ns > 0
    assert requests["queues-push"].bystander_ns == 0
    assert requests["target"].cost_ns is None  # Where it is in a QEMU is not known without one.


def test_with_a_pid_the_probes_are_put_into_that_process():
    with qemu_like("-m", "64M", "-device", "virtio-balloon-pci,free-page-reporting=on") as vm:
        code, document = run(["--pid", str(vm.pid)])
        # Nothing is left behind: the VM works on, and no probe is in it.
        assert vm.send("inflate", 1000, 256, -1).requests == 1
    assert code == 0
    rows = {row["name"]: row for row in ways(document, HOST_REQUESTS)}
    assert rows["queues-pop"]["proven"] is True
    assert rows["queues-push"]["proven"] is True
    assert rows["queues-push"]["fired"] is None
    assert rows["queues-push"]["cost_ns"] > 0
    assert document["can_record"]["qemu"] is True


def test_with_the_pid_of_something_else_the_requests_fail_with_its_reason():
    code, document = run(["--pid", str(os.getpid())])
    assert code == 0  # Discards of another VMM can still be recorded.
    rows = ways(document, HOST_REQUESTS)
    assert {row["proven"] for row in rows} == {False}
    assert all("is not a VMM" in row["reason"] for row in rows)
    assert document["can_record"]["qemu"] is False


def test_a_user_with_tracing_capabilities_has_calls_but_no_uprobes():
    code, document = run([], TRACING)
    assert code == 0
    proven = {row["way"].partition(" ")[0] for row in ways(document, HOST_CALLS) if row["proven"]}
    assert "tracepoint" in proven
    assert document["can_record"]["other_vmm"] is True
    uprobes = ways(document, HOST_REQUESTS)
    if all(row["proven"] for row in uprobes):
        pytest.skip("this kernel is of the years in which CAP_PERFMON was enough for uprobes")
    for row in uprobes:
        assert "lacks CAP_SYS_ADMIN" in row["reason"]
        assert "CAP_SYS_ADMIN" in row["remedy"]


def test_a_user_with_one_capability_less_is_told_which():
    code, document = run([], TRACING[:-1])
    rows = {row["way"]: row for row in ways(document, HOST_CALLS)}
    classic = rows["tracepoint sys_enter_madvise"]
    assert classic["proven"] is not True
    assert "lacks CAP_DAC_READ_SEARCH" in classic["reason"]
    assert rows["raw tracepoint sys_enter"]["chosen"] is True
    assert code == 0
    code, document = run([], ["+perfmon", "+dac_read_search"])
    assert code == 6
    assert {row["proven"] for row in ways(document, HOST_CALLS)} == {None}
    assert any("lacks CAP_BPF" in row["reason"] for row in ways(document, HOST_CALLS))


def test_the_system_administrators_capability_is_enough_for_all_of_the_host():
    code, document = run([], ["+sys_admin", "+sys_ptrace", "+dac_read_search"])
    assert code == 0
    assert document["can_record"]["qemu"] is True
    assert all(row["fired"] for row in ways(document, HOST_REQUESTS))


def test_without_btf_the_host_is_recorded_by_uprobes_and_tracepoints(tmp_path, monkeypatch):
    monkeypatch.setattr(libbpf, "_BTF_DIRECTORY", tmp_path)
    checks = diagnose()
    fentry = [c for c in checks if c.way.startswith(("fentry", "fexit"))]
    assert not any(c.proven for c in fentry)
    assert able(checks)["qemu"] is True
    assert able(checks)["other_vmm"] is True
    (btf,) = [c for c in checks if c.name == "kernel BTF"]
    assert btf.proven is False
    assert "CONFIG_DEBUG_INFO_BTF" in btf.remedy


def bcc_row(document: dict[str, Any]) -> dict[str, Any]:
    """The row of BCC, in a document that says of every probe that it failed for BCC's sake."""
    (row,) = [row for row in ways(document, ENVIRONMENT) if row["name"] == "BCC"]
    assert row["proven"] is False
    probes = [*ways(document, HOST_CALLS), *ways(document, HOST_REQUESTS)]
    in_vain = {(probe["reason"], probe["remedy"]) for probe in probes if probe["predicted"]}
    assert in_vain == {(row["reason"], row["remedy"])}
    assert not any(document["can_record"].values())
    return row


def test_without_bcc_the_package_to_install_is_named():
    site = sysconfig.get_paths()["purelib"]
    code, document = run([], flags=["-S"], path=[ROOT, site])  # -S: not the distribution's own
    assert code == 6
    row = bcc_row(document)
    assert "No module named 'bcc'" in row["reason"]
    assert row["remedy"].startswith("apt-get install python3-bpfcc")


def test_another_package_of_that_name_is_told_with_what_removes_it(tmp_path):
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "__init__.py").write_text('"""N-dim BCC lattice."""\n')
    code, document = run([], path=[tmp_path])
    assert code == 6
    row = bcc_row(document)
    assert "is not BCC" in row["reason"]
    assert str(tmp_path) in row["reason"]
    assert row["remedy"].startswith("pip uninstall --yes bcc")
