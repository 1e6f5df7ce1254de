"""VMs whose process is not what it seems: replaced on disk, in a container, gone and followed."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.recording import recording
from tests.standins.build import StandIn, firecracker_like, program, qemu_like, started
from tracer.errors import ProcessEndedError
from tracer.trace.reader import Trace, open_trace
from tracer.trace.schema import Mark, Side
from tracer.vms.discover import Watch, find_vm, find_vms
from tracer.vms.memory_map import find_memory
from tracer.vms.vmm import Vmm, inspect

QEMU = "qemu-system-x86_64"
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def recorded_pages(output: Path) -> tuple[int, int]:
    """Pages of the requests, and discard calls."""
    trace: Trace = open_trace(output)
    assert trace.losses == ()
    requests = trace.table("requests", Side.HOST).to_pylist()
    calls = trace.table("calls", Side.HOST).to_pylist()
    return sum(row["pages"] for row in requests), sum(row["count"] for row in calls)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A program file that a test may replace."""
    return Path(shutil.copy(program(QEMU), tmp_path / QEMU))


def upgrade(path: Path) -> None:
    """Do what a package manager does: another file takes the name, the old one has none."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(b"\x7fELF of another build")
    fresh.rename(path)


def test_a_qemu_that_an_upgrade_has_replaced_is_recorded(installed, tmp_path):
    output = tmp_path / "host.balloon"
    with qemu_like("-m", "512M", "-name", "guest=old", path=installed) as vm:
        upgrade(installed)
        found = inspect(vm.pid)
        assert (found.exe, found.exe_deleted, found.name) == (installed, True, "old")
        with recording(vm, output):
            vm.send("inflate", 1000, 700)
    assert recorded_pages(output) == (700, 700)


def test_an_upgrade_during_a_recording_costs_nothing(installed, tmp_path):
    output = tmp_path / "host.balloon"
    with qemu_like("-m", "512M", path=installed) as vm, recording(vm, output):
        vm.send("inflate", 1000, 300)
        upgrade(installed)
        vm.send("inflate", 2000, 300)
    assert recorded_pages(output) == (600, 600)


@contextmanager
def contained(tmp_path: Path, *arguments: str) -> Iterator[StandIn]:
    """A stand-in in pid and mount namespaces of its own; its program lies in a private tmpfs."""
    inside, source = tmp_path / "inside", tmp_path / "source"
    inside.mkdir()
    shutil.copy(program(QEMU), source)
    script = f'mount -t tmpfs none {inside} && cp {source} {inside}/{QEMU} && exec "$@"'
    prefix = ("unshare", "--mount", "--pid", "--fork", "sh", "-c", script, "sh")
    with started([f"{inside}/{QEMU}", *arguments], prefix=prefix) as vm:
        assert not any(inside.iterdir()), "the program can be seen from outside"
        yield vm


def test_a_vm_in_a_container_is_found_and_recorded(tmp_path):
    output, name = tmp_path / "host.balloon", f"in-a-container-{os.getpid()}"
    with contained(tmp_path, "-m", "512M", "-name", f"guest={name}") as vm:
        found = find_vm(name=name)
        assert (found.pid, found.container) == (vm.pid, True)
        assert found.exe == tmp_path / "inside" / QEMU
        assert found.program.stat().st_size == program(QEMU).stat().st_size
        with recording(vm, output):
            did = vm.send("inflate", 1000, 700)
    assert (did.pages, did.calls) == (700, 700)
    assert recorded_pages(output) == (700, 700)
    info = open_trace(output).manifest.vm
    assert (info.name, info.vmm, info.pid) == (name, "qemu", vm.pid)


def start_with_pid(pid: int, *arguments: str) -> subprocess.Popen[str] | None:
    """Start a stand-in as the process `pid`; None if another process was faster."""
    time.sleep(3 / os.sysconf("SC_CLK_TCK"))  # A kernel counts pids round in no less than a tick.
    LAST_PID.write_text(str(pid - 1))
    process = subprocess.Popen(
        [QEMU, *arguments],
        executable=program(QEMU),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    if process.pid == pid:
        return process
    end(process)
    return None


def end(process: subprocess.Popen[str]) -> None:
    with process:
        process.kill()


@pytest.fixture
def followed() -> Iterator[tuple[Vmm, int]]:
    """A VM that has ended, and another that has its pid."""
    for _ in range(50):
        with qemu_like("-m", "512M", "-name", "guest=first") as vm:
            first = inspect(vm.pid)
        process = start_with_pid(first.pid, "-m", "512M", "-name", "guest=second")
        if process is not None:
            process.stdout.readline()
            yield first, process.pid
            end(process)
            return
    raise AssertionError("no process could be started with the pid of an ended one")


def test_a_pid_that_is_used_again_is_not_taken_for_the_vm(followed):
    first, pid = followed
    second = inspect(pid)
    assert (second.pid, second.name) == (first.pid, "second")
    assert second.start_ticks > first.start_ticks
    os.close(second.hold())
    with pytest.raises(ProcessEndedError, match=f"no process {pid}") as error:
        first.hold()
    assert "another process has its pid" in error.value.reason


def test_a_vm_that_is_followed_by_another_with_its_pid_ends_for_a_watcher():
    for _ in range(50):
        watch = Watch()
        with qemu_like("-m", "512M", "-name", "guest=first") as vm:
            pid = vm.pid
            assert pid in [seen.pid for seen in watch.poll().appeared]
        process = start_with_pid(pid, "-m", "512M", "-name", "guest=second")
        if process is None:
            continue
        process.stdout.readline()
        changes = watch.poll()
        end(process)
        assert "first" in [seen.name for seen in changes.ended]
        assert [seen.name for seen in changes.appeared if seen.pid == pid] == ["second"]
        return
    raise AssertionError("no process could be started with the pid of an ended one")


def test_vms_that_come_and_go_fast_leave_a_watcher_right():
    """Every VM is told of at most once each way; one that lives until it is seen, just once."""
    watch, stop = Watch(), threading.Event()
    seen: dict[tuple[int, int], list[str]] = {}

    def look() -> None:
        while not stop.is_set():
            changes = watch.poll()
            for word, vms in (("appeared", changes.appeared), ("ended", changes.ended)):
                for vm in vms:
                    if (vm.name or "").startswith("fast-"):
                        seen.setdefault((vm.pid, vm.start_ticks), []).append(word)

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(30):
        with qemu_like("-m", "64M", "-name", f"fast-{number}") as vm:
            deadline = time.monotonic() + 20
            while number % 2 and vm.pid not in {pid for pid, _ in list(seen)}:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    stop.set()
    thread.join()
    left = watch.poll()
    assert not [vm for vm in left.appeared if (vm.name or "").startswith("fast-")]
    assert len(seen) >= 15
    assert all(words in (["appeared", "ended"], ["appeared"]) for words in seen.values())
    assert sum(words == ["appeared"] for words in seen.values()) <= 1


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Sixteen pages of 2 MiB set aside."""
    setting = Path("/proc/sys/vm/nr_hugepages")
    before = setting.read_text()
    setting.write_text("16")
    if int(setting.read_text()) < 16:
        setting.write_text(before)
        pytest.fail("this machine has no 16 huge pages to spare")
    yield
    setting.write_text(before)


def test_huge_pages_are_told_from_small_ones(huge_pages, tmp_path):
    output = tmp_path / "host.balloon"
    memory = "memory-backend-memfd,id=pc.ram,size=32M,hugetlb=on"
    with qemu_like("-m", "32M", "-machine", "pc,memory-backend=pc.ram", "-object", memory) as vm:
        (region,) = find_memory(inspect(vm.pid)).regions
        assert (region.backing, region.page_size_bytes) == ("hugetlb", 2 << 20)
        assert (region.hva, region.file_offset_bytes) == (vm.parts[0]["hva"], 0)
        vm.send("size", 1024)
        with recording(vm, output):
            did = vm.send("inflate", 1024, 1024)
    assert did.calls == 2
    assert recorded_pages(output) == (1024, 2)


def test_a_firecracker_is_found_beside_qemus():
    name = f"micro-{os.getpid()}"  # Another VM of this host may be called micro.
    with firecracker_like("--id", name, "--mem-size-mib", "256") as micro, qemu_like("-m", "64M"):
        kinds = {vm.pid: vm.kind for vm in find_vms()}
        assert kinds[micro.pid] == "firecracker"
        assert find_vm(name=name).pid == micro.pid


def shift_wall_clock(delta_ns: int) -> None:
    now_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
    time.clock_settime_ns(time.CLOCK_REALTIME, now_ns + delta_ns)


def test_a_clock_that_is_set_just_before_the_end_is_told(tmp_path):
    """Between the last sample and the end nobody would look again."""
    output, step_ns = tmp_path / "host.balloon", 40_000_000
    with qemu_like("-m", "512M", path=program(QEMU)) as vm:
        with recording(vm, output):
            vm.send("inflate", 1000, 700)
            shift_wall_clock(step_ns)
        shift_wall_clock(-step_ns)
    assert recorded_pages(output) == (700, 700)
    marks = open_trace(output).table("marks", Side.HOST).to_pylist()
    (step,) = [row for row in marks if row["mark"] == Mark.CLOCK_STEP]
    assert step["value"] == pytest.approx(step_ns, rel=0.05)
    assert step["since_ns"] < step["ts_ns"]
