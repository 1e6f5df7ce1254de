"""A recorder that stays on: what it does when the disk fills, a budget is spent, many VMs dump."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.all_vms.recording_all import WAIT_S, attached, pages, recording_all, until
from tests.kernel.test_record_verb import recording
from tests.standins.build import qemu_like
from tracer.trace.check import check_trace
from tracer.trace.errors import ExitCode
from tracer.trace.reader import open_trace
from tracer.trace.storage import LEAST_BUDGET_BYTES

SMALL_BYTES, FREE_BYTES = 40 << 20, (4 << 20) - (64 << 10)
"""What is free is less than a recording that ended for want of room waits for (again.py)."""
THREADS = 8
"""More than a recorder has; with a thread for each VM it would have more."""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    size = f"size={SMALL_BYTES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def end_reasons(directory: Path, vm: str) -> list[str]:
    """How each trace of a VM ended; `vm` is its name and pid."""
    traces = sorted(directory.glob(f"{vm}-*.balloon"))
    return [open_trace(path).manifest.end_reason for path in traces]


def test_a_full_disk_ends_the_trace_and_room_begins_the_next(small):
    """The recorder is never started anew; what it says is what a service's journal has."""
    ballast = small / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, SMALL_BYTES - FREE_BYTES)
    with (
        qemu_like("-m", "256M", "-name", "guest=web") as vm,
        recording_all(small, "--detail", "calls", "--quiet") as recorder,
    ):
        web = f"web-{vm.pid}"  # another tier's VM beside it may have its name
        until(lambda: attached(small, web))
        until(lambda: vm.send("flood", 2) and end_reasons(small, web) == ["disk-full"])
        ended = f"web (pid {vm.pid}): disk-full, to go on in another trace"
        until(lambda: ended in recorder.stderr.readline())
        time.sleep(12)
        assert len(end_reasons(small, web)) == 1, "there is no room yet"
        ballast.unlink()
        until(lambda: list(small.glob(f"{web}-002.balloon/marks/*")))
        did = vm.send("inflate", 1000, 3000, 1)
        recorder.send_signal(signal.SIGTERM)
        assert recorder.wait(WAIT_S) == ExitCode.CAPTURE_INCOMPLETE
        assert "recordings are not whole" in recorder.stderr.read()
    assert end_reasons(small, web) == ["disk-full", "stopped"]
    full, after = (open_trace(path) for path in sorted(small.glob(f"{web}-*.balloon")))
    assert full.is_complete
    assert "disk" in {loss.cause for loss in full.losses}
    assert pages(full) > 0
    assert after.losses == ()
    assert pages(after) == did.pages == 3000
    assert check_trace(after) == []


def test_a_spent_budget_stops_where_the_user_asks_for_that(tmp_path):
    output = tmp_path / "host.balloon"
    options = ["--detail", "calls", "--budget", "4M", "--when-spent", "stop"]
    with qemu_like("-m", "256M") as vm, recording(vm, output, *options) as recorder:
        sent = []

        def spent() -> bool:
            sent.append(vm.send("flood", 2).requests)
            return recorder.process.poll() is not None

        until(spent)  # how much a flood brings in a time is the machine's
        assert recorder.process.wait(WAIT_S) == ExitCode.CAPTURE_INCOMPLETE
        assert "events were lost" in recorder.process.stderr.read()
    trace = open_trace(output)
    assert (trace.is_complete, trace.manifest.end_reason) == (True, "budget")
    files = (path for path in output.rglob("*") if path.is_file())
    size_bytes = sum(path.stat().st_size for path in files)
    assert LEAST_BUDGET_BYTES * 3 // 4 < size_bytes <= LEAST_BUDGET_BYTES
    assert "budget" in {loss.cause for loss in trace.losses}
    assert {finding.code for finding in check_trace(trace)} <= {"loss", "call-orphan"}
    recorded = trace.table("requests").num_rows
    assert 0 < recorded < sum(sent)


def test_every_vm_is_kept_by_one_thread_that_goes_and_no_trace_is_named_that_is_not(tmp_path):
    directory = tmp_path / "traces.d"
    names = [f"web{number}" for number in range(6)]
    ready = tmp_path / "ready"
    options = ["--flight", "60s", "--ready-file", str(ready)]
    with contextlib.ExitStack() as stack:
        vms = [stack.enter_context(qemu_like("-m", "64M", "-name", name)) for name in names]
        recorder = stack.enter_context(recording_all(directory, *options))
        until(ready.exists)
        tasks = Path(f"/proc/{recorder.pid}/task")
        before = len(list(tasks.iterdir()))
        assert before < THREADS
        for number in (1, 2):
            for vm in vms:
                vm.send("inflate", 1000 * number, 256, 1)
            recorder.send_signal(signal.SIGUSR1)
            wanted = [f"{name}-*-0000{number}.balloon" for name in names]
            until(lambda wanted=wanted: all(kept(directory, each) for each in wanted))
        until(lambda: len(list(tasks.iterdir())) <= before)
        vms[0].send("runstate", 11)
        vms[0].end()
        until(lambda: not Path(f"/proc/{vms[0].pid}").exists())
        time.sleep(1)
        recorder.send_signal(signal.SIGTERM)
        assert recorder.wait(WAIT_S) == ExitCode.OK
        said = recorder.stderr.read()
    for name in names:
        traces = [open_trace(path) for path in sorted(directory.glob(f"{name}-*.balloon"))]
        assert [pages(trace) for trace in traces] == [256, 512]
        assert {trace.manifest.end_reason for trace in traces} == {"trigger: signal"}
        assert all(trace.manifest.ledger for trace in traces)
        assert said.count(f"{directory}/{name}-") == 2, said
    assert f"web0 (pid {vms[0].pid}): vm-exited\n" in said
    assert said.count(": stopped\n") == 5
    assert "aerostat show" not in said


def kept(directory: Path, pattern: str) -> bool:
    """Whether there is such a trace, and it is closed."""
    found = directory.glob(f"{pattern}/manifest.json")
    return any(open_trace(path.parent).is_complete for path in found)
