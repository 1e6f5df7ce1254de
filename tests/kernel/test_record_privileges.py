"""The real recorder as an ordinary user with exactly the capabilities of docs/privileges.md."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel import verb
from tests.standins.build import StandIn, firecracker_like, program, qemu_like, started
from tracer.engine.privilege import Capability
from tracer.trace.errors import ExitCode
from tracer.trace.reader import open_trace
from tracer.trace.schema import Side

ROOT = Path(__file__).parents[2]
NOBODY = 65534
ENOUGH = ("sys_admin", "sys_ptrace", "dac_read_search")
PRIVILEGES = (ROOT / "docs" / "privileges.md").read_text()
CALLS_ALONE = "a VMM of another user by its system calls alone"
OWN = "a VMM of one's own"


def as_nobody(capabilities: Iterable[str] = ()) -> list[str]:
    names = ",".join(f"+{name}" for name in sorted(capabilities))
    granted = ["--inh-caps", names, "--ambient-caps", names] if names else []
    return ["setpriv", "--reuid", f"{NOBODY}", "--regid", f"{NOBODY}", "--clear-groups", *granted]


def record(pid: int, output: Path, capabilities: Sequence[str]) -> subprocess.CompletedProcess[str]:
    arguments = ("record", "--pid", str(pid), "-o", str(output), "--duration", "2s")
    return subprocess.run(
        [*as_nobody(capabilities), sys.executable, "-m", "aerostat", *arguments],
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


def capabilities_while_recording(vm: StandIn, output: Path, *more: str) -> set[str]:
    """Record as root until every probe is attached, read what each thread has left, and end it."""
    ready = output.parent / "ready"
    arguments = ("--pid", str(vm.pid), "-o", str(output), "--ready-file", str(ready), *more)
    argv = [sys.executable, "-m", "aerostat", "record", *arguments]
    with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True) as recorder:
        deadline_s = time.monotonic() + 60
        while not ready.exists() and recorder.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.05)
        tasks = [path / "status" for path in Path(f"/proc/{recorder.pid}/task").iterdir()]
        texts = [path.read_text() for path in tasks]
        assert vm.send("inflate", 4000, 512, -1).pages == 512
        recorder.send_signal(signal.SIGINT)
        _, said = recorder.communicate(timeout=60)
    assert recorder.returncode == 0, said
    assert open_trace(output).is_complete
    assert sum(row["pages"] for row in open_trace(output).table("requests").to_pylist()) == 512
    assert all("NoNewPrivs:\t1" in text for text in texts)
    return {re.findall(r"Cap(?:Prm|Eff):\t(\w+)", text)[0] for text in texts}


def test_the_command_keeps_what_it_samples_with_and_nothing_else(vm, tmp_path):
    left = capabilities_while_recording(vm, tmp_path / "x.balloon")
    assert left == {f"{1 << Capability.CAP_SYS_PTRACE | 1 << Capability.CAP_DAC_READ_SEARCH:016x}"}


def test_root_still_writes_into_the_home_of_the_user_who_called_it(vm, place):
    place.chmod(0o700)
    left = capabilities_while_recording(vm, place / "x.balloon")
    (bits,) = left
    assert int(bits, 16) >> Capability.CAP_DAC_OVERRIDE & 1
    assert not int(bits, 16) >> Capability.CAP_SYS_ADMIN & 1


def documented(row: str) -> set[str]:
    """The capabilities in a row of the sum in docs/privileges.md, as setpriv names them."""
    (needs,) = re.findall(rf"^\| {re.escape(row)} \| (.+) \|$", PRIVILEGES, re.MULTILINE)
    held = {name.lower() for name in re.findall("CAP_([A-Z_]+)", needs)}
    return documented(CALLS_ALONE) - held if needs.startswith("the same without") else held


@contextmanager
def stranger(owner: str, place: Path) -> Iterator[StandIn]:
    """A VMM without known handlers, of root or of nobody."""
    if owner == "root":
        with firecracker_like("--id", "micro", "--mem-size-mib", "64") as vm:
            yield vm
        return
    copy = Path(shutil.copy(program("firecracker"), place))
    argv = [str(copy), "--id", "micro", "--mem-size-mib", "64"]
    with started(argv, prefix=tuple(as_nobody())) as vm:
        assert Path(f"/proc/{vm.pid}").stat().st_uid == NOBODY
        yield vm


@pytest.mark.parametrize(("owner", "row"), [("root", CALLS_ALONE), ("nobody", OWN)])
def test_the_capabilities_of_the_page_record_a_vmm_by_its_calls(owner, row, place):
    output = place / "micro.balloon"
    prefix = as_nobody(documented(row))
    with (
        stranger(owner, place) as vm,
        verb.recording(vm, output, "--detail", "calls", prefix=prefix) as recorder,
    ):
        did = vm.send("inflate", 1000, 600, 3)
        time.sleep(1.2)  # a second row of samples, by what is left of the capabilities
        assert recorder.end() == ExitCode.OK
    trace = open_trace(output)
    assert trace.is_complete
    assert trace.losses == ()
    found = [row["gpa"] for row in trace.table("calls", Side.HOST).to_pylist()]
    assert found == [4096 * pfn for pfn in range(1000, 2800, 3)]
    assert len(found) == did.calls
    assert trace.table("residency", Side.HOST)["pages"].to_numpy().sum() == 64 * 256
    samples = trace.table("samples", Side.HOST).to_pylist()
    assert len(samples) >= 2
    assert all(row["rss_bytes"] for row in samples)
    assert any(row["pss_bytes"] for row in samples)
    probes = {probe.point: probe for probe in trace.manifest.sides["host"].probes}
    for name in ("madvise-enter", "process_madvise-exit", "mmap-enter", "fallocate-exit"):
        assert probes[name].status == "attached"


@pytest.mark.parametrize("missing", sorted(documented(CALLS_ALONE)))
def test_with_one_less_a_vmm_of_another_user_is_refused_and_it_is_named(missing, place):
    output = place / "micro.balloon"
    with stranger("root", place) as vm:
        done = record(vm.pid, output, sorted(documented(CALLS_ALONE) - {missing}))
    assert done.returncode == ExitCode.MISSING_PRIVILEGE, done.stderr
    assert f"lacks CAP_{missing.upper()}" in done.stderr
    assert "grant CAP_" in done.stderr
    assert not output.exists()


def test_with_tracing_capabilities_alone_the_kernel_asks_for_more(vm, place):
    output = place / "theirs.balloon"
    done = record(vm.pid, output, ("bpf", "perfmon", "sys_ptrace", "dac_read_search"))
    if done.returncode == 0:
        pytest.skip("this kernel is of the years in which CAP_PERFMON was enough for uprobes")
    assert done.returncode == 6
    assert "lacks CAP_SYS_ADMIN" in done.stderr


def in_a_pid_namespace(*arguments: str) -> subprocess.CompletedProcess[str]:
    prefix = ("unshare", "--pid", "--fork", "--mount", "--mount-proc")
    return subprocess.run(
        [*prefix, sys.executable, "-m", "aerostat", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=120,
    )


@pytest.mark.parametrize("which", [("record", "--all", "-o", "DIRECTORY"), ("top", "--count", "1")])
def test_from_within_a_pid_namespace_nothing_is_recorded_and_that_is_said(which, tmp_path):
    """The kernel's programs would look for the VM by another number, and record nothing."""
    done = in_a_pid_namespace(*(str(tmp_path / "d") if a == "DIRECTORY" else a for a in which))
    assert done.returncode == ExitCode.MISSING_PRIVILEGE
    assert "PID namespace" in done.stderr
    assert "--pid=host" in done.stderr
