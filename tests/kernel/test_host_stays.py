"""The host's recorder on a stand-in for QEMU, where it has to stop, to forget, or is killed."""

import json
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.kernel.recording import recording
from tests.standins.build import qemu_like
from tests.unit.command import run
from tracer.flight import FlightOptions
from tracer.flight_dump import Dump
from tracer.trace.check import check_trace
from tracer.trace.errors import ExitCode, TraceError
from tracer.trace.reader import open_trace
from tracer.trace.schema import Mark
from tracer.trace.storage import LEAST_BUDGET_BYTES, Storage
from tracer.triggers import TriggerRules

GUEST = ("-m", "2G", "-device", "virtio-balloon-pci,free-page-reporting=on")
S = 10**9


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def busy(vm, seconds):
    """Have the VM move its balloon, scattered pages, at a rate that loses nothing in the rings."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for first in range(0, 200_000, 7919):
            vm.send("inflate", first, 2000, 3)
            time.sleep(0.01)


def size_of(bundle: Path) -> int:
    return sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())


def test_a_full_disk_closes_the_trace(small_disk):
    with qemu_like(*GUEST) as vm, recording(vm, small_disk / "a.balloon", detail="calls"):
        busy(vm, 8)
    trace = open_trace(small_disk / "a.balloon")
    assert trace.is_complete
    assert trace.manifest.end_reason == "disk-full"
    assert trace.table("requests").num_rows > 0
    assert {loss.cause for loss in trace.losses} == {"disk"}
    assert {finding.code for finding in check_trace(trace)} <= {"loss", "call-orphan"}


def test_a_read_only_target_is_refused_before_any_probe_attaches(small_disk, monkeypatch):
    from tracer import host_probes

    def attach(*_: object) -> None:
        raise AssertionError("a probe was attached")

    monkeypatch.setattr(host_probes, "attach_requests", attach)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with (
        qemu_like(*GUEST) as vm,
        pytest.raises(TraceError, match="cannot create") as caught,
        recording(vm, small_disk / "a.balloon"),
    ):
        pass
    assert "Read-only" in caught.value.reason


def test_a_budget_forgets_the_oldest(tmp_path):
    storage = Storage(budget_bytes=LEAST_BUDGET_BYTES)
    output = tmp_path / "a.balloon"
    with qemu_like(*GUEST) as vm, recording(vm, output, detail="requests", storage=storage):
        busy(vm, 10)
    assert size_of(output) <= LEAST_BUDGET_BYTES
    trace = open_trace(output)
    assert trace.is_complete
    assert {loss.cause for loss in trace.losses} == {"budget"}
    assert {finding.code for finding in check_trace(trace)} <= {"loss", "call-orphan"}
    seq = trace.table("requests")["seq"].to_numpy()
    gone = sum(loss.count for loss in trace.losses if loss.stream == "requests")
    assert seq[0] == gone
    assert (seq == range(gone, gone + len(seq))).all()


def test_a_flight_recorder_keeps_the_last_seconds_when_asked(tmp_path):
    keep, dumps = threading.Event(), list[Dump]()
    flight = FlightOptions(2 * S, rules=TriggerRules(stall_ns=100 * S))
    options = {"flight": flight, "keep": keep, "kept": dumps.append, "sample_every_s": 0.2}
    with qemu_like(*GUEST) as vm, recording(vm, tmp_path / "vm.balloon", **options):
        vm.send("inflate", 1000, 256, 1)
        time.sleep(4)
        late = vm.send("inflate", 5000, 1024, 1)
        time.sleep(1.5)  # for the batch to be written: it is held for up to a second
        keep.set()
        end = time.monotonic() + 10
        while not dumps and time.monotonic() < end:
            time.sleep(0.05)
    (dump,) = dumps
    assert dump.problem is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vm-00001.balloon"]
    trace = open_trace(dump.path)
    assert trace.is_complete
    assert check_trace(trace) == []
    assert trace.table("requests").num_rows == late.requests == 4
    assert Mark.TRIGGER in trace.table("marks")["mark"].to_pylist()
    side = trace.manifest.sides["host"]
    assert 0 < side.end_ns - side.begin_ns < 4 * S


def test_a_killed_recorder_of_a_vm(tmp_path):
    with qemu_like(*GUEST) as vm:
        stop = threading.Event()

        def drive():
            while not stop.is_set():
                vm.send("inflate", 1000, 2000, 3)
                time.sleep(0.01)

        thread = threading.Thread(target=drive)
        thread.start()
        try:
            done = run(
                ["record", "--prove", "--pid", vm.pid, "--duration", "4s", "--json", "-q"],
                cwd=tmp_path,
            )
        finally:
            stop.set()
            thread.join()
    assert done.returncode in (0, ExitCode.INCONCLUSIVE), done.stderr
    kill = json.loads(done.stdout)["vm"]
    assert kill["gap_free"]
    assert kill["kept_rows"] > 100
    # A batch waits for a second, and then for the next look at the ring.
    assert kill["unseen_ns"] < 3 * S
    assert list(tmp_path.iterdir()) == []
