"""The real recorder as an ordinary user with exactly the capabilities of docs/privileges.md."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.standins.build import qemu_like
from tracer.trace.reader import open_trace
from tracer.trace.schema import Side

ROOT = Path(__file__).parents[2]
NOBODY = 65534
ENOUGH = ("sys_admin", "sys_ptrace", "dac_read_search")


def record(pid: int, output: Path, capabilities: Sequence[str]) -> subprocess.CompletedProcess[str]:
    names = ",".join(f"+{name}" for name in capabilities)
    user = ("--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups")
    granted = ("--inh-caps", names, "--ambient-caps", names) if names else ()
    arguments = ("record", "--pid", str(pid), "-o", str(output), "--duration", "2s")
    return subprocess.run(
        ["setpriv", *user, *granted, sys.executable, "-m", "aerostat", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=120,
    )


@pytest.fixture
def place(tmp_path):
    """A directory of nobody's, reachable by everybody."""
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    os.chown(tmp_path, NOBODY, NOBODY)
    return tmp_path


@pytest.fixture
def vm():
    """A VM of another user: root's."""
    with qemu_like("-m", "64M", "-name", "guest=theirs", "-device", "virtio-balloon-pci") as made:
        yield made


def test_three_capabilities_record_the_vm_of_another_user(vm, place):
    output = place / "theirs.balloon"
    done = record(vm.pid, output, ENOUGH)
    assert done.returncode == 0, done.stderr
    trace = open_trace(output)
    assert trace.is_complete
    assert trace.manifest.vm.name == "theirs"
    probes = {probe.point: probe for probe in trace.manifest.sides["host"].probes}
    assert probes["queues-pop"].way == "uprobe"
    assert probes["madvise-enter"].status == "attached"
    assert trace.table("residency", Side.HOST)["pages"].to_numpy().sum() == 64 * 256
    assert all(row["rss_bytes"] for row in trace.table("samples", Side.HOST).to_pylist())


@pytest.mark.parametrize("missing", ENOUGH)
def test_with_one_less_it_says_which(missing, vm, place):
    output = place / "theirs.balloon"
    done = record(vm.pid, output, [name for name in ENOUGH if name != missing])
    assert done.returncode == 6, done.stderr
    assert "aerostat: error: " in done.stderr
    if missing == "sys_admin":
        assert "lacks CAP_PERFMON, CAP_BPF" in done.stderr
    else:
        assert f"CAP_{missing.upper()}" in done.stderr
    assert "grant CAP_" in done.stderr
    assert not output.exists()


def test_with_tracing_capabilities_alone_the_kernel_asks_for_more(vm, place):
    output = place / "theirs.balloon"
    done = record(vm.pid, output, ("bpf", "perfmon", "sys_ptrace", "dac_read_search"))
    if done.returncode == 0:
        pytest.skip("this kernel is of the years in which CAP_PERFMON was enough for uprobes")
    assert done.returncode == 6
    assert "lacks CAP_SYS_ADMIN" in done.stderr
