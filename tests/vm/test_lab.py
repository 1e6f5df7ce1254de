"""A real guest: boots, obeys, and moves exactly the pages the device says it moved."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lab.balloon import move
from lab.errors import AgentError, GuestTimeoutError, VmDiedError
from lab.scenarios import run_scenario
from lab.session import LabOptions, open_vm, run_lab

MIB = 1 << 20
PAGE_BYTES = 4096
MEMORY_BYTES = 2048 * MIB
# A prime number of pages: a lost or doubled request cannot hide in a round number.
ODD_PAGES = 10_007


def options(**changes):
    wanted = {"output": Path("not-written.balloon"), "memory_bytes": MEMORY_BYTES, "record": False}
    return LabOptions(**{**wanted, **changes})


@pytest.fixture(scope="module")
def vm():
    with open_vm(options()) as booted:
        yield booted


def moved_pages(vm, before):
    now = vm.agent.counters()
    return tuple(
        now[name] - before[name] for name in ("balloon_inflate_pages", "balloon_deflate_pages")
    )


def resident_bytes(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(x.split()[1]) * 1024 for x in status.splitlines() if x.startswith("VmRSS"))


def is_gone(pid):
    """True once the process has ended, be it a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_guest_runs_the_unpacked_kernel_with_the_projects_libraries(vm):
    assert vm.agent.release == vm.options.kernel.release
    code = "import bcc, numpy, pyarrow, tracer.engine._drain as d; print(d.__file__, bcc.BPF)"
    printed = vm.agent.run([vm.agent.python, "-c", code], 180)
    assert "/opt/aerostat/tracer/engine/_drain." in printed


def test_guest_kernel_offers_what_probes_need(vm):
    assert vm.agent.exists("/sys/kernel/btf/virtio_balloon")
    assert vm.agent.exists("/sys/kernel/tracing/kprobe_events")
    assert " T tell_host" in vm.agent.run(["cat", "/proc/kallsyms"]).replace(" t ", " T ")


def test_inflate_and_deflate_move_exactly_the_pages_the_device_counts(vm):
    before = vm.agent.counters()
    small = MEMORY_BYTES - ODD_PAGES * PAGE_BYTES
    down = move(vm.qmp, small)
    assert (down.start_bytes, down.end_bytes) == (MEMORY_BYTES, small)
    assert vm.qmp.query_balloon() == small
    assert moved_pages(vm, before) == (ODD_PAGES, 0)
    up = move(vm.qmp, MEMORY_BYTES)
    assert up.end_bytes == MEMORY_BYTES
    assert moved_pages(vm, before) == (ODD_PAGES, ODD_PAGES)
    assert down.wall_ns > 0
    assert up.wall_ns > 0


def test_inflate_deflate_scenario_takes_three_quarters_and_gives_them_back(vm):
    before = vm.agent.counters()
    outcome = run_scenario("inflate-deflate", vm)
    assert outcome.targets == (MEMORY_BYTES // 4, MEMORY_BYTES)
    pages = MEMORY_BYTES * 3 // 4 // PAGE_BYTES
    assert moved_pages(vm, before) == (pages, pages)
    assert outcome.inflate_wall_ns + outcome.deflate_wall_ns <= outcome.end_ns - outcome.start_ns


def test_stepwise_scenario_goes_through_every_target(vm):
    before = vm.agent.counters()
    outcome = run_scenario("stepwise", vm)
    assert all(done.is_reached for done in outcome.moves)
    assert len(outcome.targets) == 6
    grown = sum(d.start_bytes - d.end_bytes for d in outcome.moves if d.is_inflate) // PAGE_BYTES
    assert moved_pages(vm, before) == (grown, grown)


def test_reporting_gives_memory_back_without_a_target(vm):
    before = vm.agent.counters()
    seen = []
    over = threading.Event()

    def watch():
        while not over.wait(0.1):
            seen.append(resident_bytes(vm.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    run_scenario("reporting", vm)
    over.set()
    watcher.join()
    assert moved_pages(vm, before) == (0, 0)
    peak = seen.index(max(seen))
    assert min(seen[peak:]) < seen[peak] - 64 * MIB


def test_fragmented_scenario_balances_and_ends_its_workload(vm):
    before = vm.agent.counters()
    outcome = run_scenario("fragmented", vm)
    down, up = outcome.moves
    assert (up.start_bytes, up.end_bytes) == (down.end_bytes, MEMORY_BYTES)
    pages = (down.start_bytes - down.end_bytes) // PAGE_BYTES
    assert moved_pages(vm, before) == (pages, pages)
    assert "workload.py" not in vm.agent.run(["ps"])


def test_out_of_puff_stops_short_and_recovers(vm):
    before = vm.agent.counters()
    stuck, freed = run_scenario("out-of-puff", vm).moves
    assert not stuck.is_reached
    assert stuck.target_bytes < stuck.end_bytes < MEMORY_BYTES
    assert freed.end_bytes == MEMORY_BYTES
    inflated, deflated = moved_pages(vm, before)
    assert inflated == deflated


def test_of_a_guest_that_does_not_answer_the_place_of_each_vcpu_is_told(vm):
    with pytest.raises(GuestTimeoutError) as failed:
        vm.agent._receive(time.monotonic() + 0.1, "nothing that was asked for")
    places = re.findall("RIP=[0-9a-f]{16}", failed.value.reason)
    assert len(places) == 3 * vm.options.vcpus
    assert vm.agent.run(["sh", "-c", "echo still here"]) == "still here\n"


def test_agent_names_what_failed(vm):
    with pytest.raises(AgentError, match="ended with status 3") as failed:
        vm.agent.run(["sh", "-c", "echo to the point >&2; exit 3"])
    assert failed.value.reason == "to the point"
    with pytest.raises(AgentError, match="FileNotFoundError"):
        vm.agent.run(["/no/such/command"])
    with pytest.raises(AgentError, match="could not run") as failed:
        vm.agent.run(["sh", "-c", "echo before; exec sleep 60"], 1.5)
    assert "ran for more than 1.5 s; it wrote: 'before\\n'" in failed.value.reason
    assert re.search(r"\(sleep\) S: .*nanosleep", failed.value.reason)
    with pytest.raises(AgentError, match="KeyError"):
        vm.agent.signal(1, "SIGTERM")
    assert vm.agent.run(["sh", "-c", "echo still here"]) == "still here\n"


def test_agent_signals_what_it_spawned(vm):
    pid = vm.agent.spawn(["sleep", "600"], "/tmp/sleep.log")
    assert vm.agent.wait(pid, 0.1) is None
    assert vm.agent.signal(pid, "SIGINT") is True
    assert vm.agent.wait(pid, 10) == -signal.SIGINT
    assert vm.agent.signal(pid, "SIGINT") is False


def test_agent_copies_a_directory_out_whole(vm, tmp_path):
    script = "rm -rf /tmp/d; mkdir -p /tmp/d/in; echo one > /tmp/d/a; : > /tmp/d/empty; "
    vm.agent.run(["sh", "-c", script + "busybox dd if=/dev/urandom of=/tmp/d/in/b bs=1M count=9"])
    vm.agent.copy_out("/tmp/d", tmp_path / "out")
    found = {str(p.relative_to(tmp_path / "out")): p for p in (tmp_path / "out").rglob("*")}
    assert set(found) == {"a", "empty", "in", "in/b"}
    assert found["a"].read_text() == "one\n"
    assert found["empty"].stat().st_size == 0
    digest = vm.agent.run(["busybox", "sha256sum", "/tmp/d/in/b"]).split()[0]
    here = subprocess.run(["sha256sum", found["in/b"]], capture_output=True, text=True, check=True)
    assert here.stdout.split()[0] == digest
    with pytest.raises(AgentError, match="more than 1000 bytes"):
        vm.agent.copy_out("/tmp/d", tmp_path / "small", limit_bytes=1000)


@pytest.fixture
def lab_tmp(tmp_path, monkeypatch):
    """A private TMPDIR, to see what a VM leaves in it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_killed_vm_is_a_clear_error_and_leaves_nothing(lab_tmp):
    sockets = Path("/proc/net/unix").read_text().count("\n")
    machine = open_vm(options(memory_bytes=512 * MIB))
    with pytest.raises(VmDiedError, match="the lab VM died") as died, machine:
        pid = machine.pid
        machine.qmp.balloon(256 * MIB)
        os.kill(pid, signal.SIGKILL)
        move(machine.qmp, 256 * MIB)
    assert "status -9" in died.value.reason
    assert not Path(f"/proc/{pid}").exists()
    assert list(lab_tmp.iterdir()) == []
    assert Path("/proc/net/unix").read_text().count("\n") <= sockets + 2


def test_hung_guest_is_given_up_and_ended():
    machine = open_vm(options(memory_bytes=512 * MIB))
    with machine:
        pid = machine.pid
        os.kill(pid, signal.SIGSTOP)
        machine.agent.timeout_s = 1.0
        with pytest.raises(GuestTimeoutError, match="waited in vain"):
            machine.agent.counters()
        os.kill(pid, signal.SIGCONT)
    assert not Path(f"/proc/{pid}").exists()


def test_guest_that_does_not_boot_shows_its_console(tmp_path):
    kernel = tmp_path / "kernel"
    good = open_vm(options()).options.kernel
    (kernel / "boot").mkdir(parents=True)
    (kernel / "boot" / good.image.name).symlink_to(good.image)
    modules = kernel / "lib" / "modules" / good.release
    modules.mkdir(parents=True)
    (modules / "modules.builtin").write_text("")
    for path in good.modules.rglob("*virtio*.ko*"):
        (modules / path.name).symlink_to(path)
    (modules / "overlay.ko").write_bytes(b"not a module")
    machine = open_vm(options(kernel=kernel, accelerator="tcg"))
    with pytest.raises(VmDiedError, match="did not boot") as died, machine:
        pass
    assert "lab-init: cannot load /modules/07-overlay.ko" in died.value.reason


BOOT_AND_WAIT = """
from pathlib import Path
import signal
import time
from lab.session import LabOptions, open_vm
# Whoever runs the tests in the background may have had it ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
wanted = LabOptions(output=Path("none"), memory_bytes=512 << 20, record=False)
with open_vm(wanted) as vm:
    print(vm.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_vm_ends_with_the_process_that_booted_it(how, lab_tmp):
    argv = [sys.executable, "-c", BOOT_AND_WAIT]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as owner:
        pid = int(owner.stdout.readline())
        owner.send_signal(how)
        owner.wait(60)
    deadline = time.monotonic() + 10
    while not is_gone(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert is_gone(pid)
    assert list(lab_tmp.iterdir()) == []


def test_untraced_session_on_the_newer_pair(tmp_path):
    outcome = run_lab(options(pair="10.0", output=tmp_path / "none.balloon"))
    assert outcome.trace is None
    assert outcome.qemu_version.startswith("10.0.")
    assert outcome.guest_release.startswith("6.12.")
    assert outcome.scenario.targets == (MEMORY_BYTES // 4, MEMORY_BYTES)
    assert list(tmp_path.iterdir()) == []
