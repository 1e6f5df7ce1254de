"""The host's recorder where it has to forget, or is killed; on a stand-in."""

import json
import threading
import time
from pathlib import Path

from tests.kernel.recording import recording
from tests.standins.build import qemu_like
from tests.unit.command import run
from tracer.trace.check import check_trace
from tracer.trace.errors import ExitCode
from tracer.trace.reader import open_trace
from tracer.trace.storage import LEAST_BUDGET_BYTES, Storage

GUEST = ("-m", "2G", "-device", "virtio-balloon-pci,free-page-reporting=on")
S = 10**9


def busy(vm, seconds):
    """Have the VM move its balloon, scattered pages, at a rate that loses nothing in the rings."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for first in range(0, 200_000, 7919):
            vm.send("inflate", first, 2000, 3)
            time.sleep(0.01)


def size_of(bundle: Path) -> int:
    return sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())


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


def open_parts(bundle: Path) -> dict[str, int]:
    """The open segments by table: the inode of each."""
    return {path.parent.name: path.stat().st_ino for path in bundle.glob("*/*.part")}


def test_the_first_drain_of_a_flood_opens_no_segment(tmp_path):
    output = tmp_path / "a.balloon"
    with qemu_like(*GUEST) as vm, recording(vm, output, detail="calls", ring_bytes=1 << 20):
        expected = open_parts(output)
        did = vm.send("flood", 1)
        part = output / "calls" / "_host-00001.arrow.part"
        deadline_s = time.monotonic() + 60
        while part.stat().st_size < 1 << 16:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        assert open_parts(output) == expected
    assert expected.keys() == {"residency", "marks", "samples", "requests", "calls"}
    trace = open_trace(output)
    lost = sum(loss.count for loss in trace.losses if loss.stream == "requests")
    assert trace.table("requests").num_rows + lost == did.requests


def test_a_balloon_that_does_not_move_leaves_no_segment_of_its_requests(tmp_path):
    output = tmp_path / "a.balloon"
    with qemu_like(*GUEST) as vm, recording(vm, output):
        assert "requests" in open_parts(output)
    tables = {path.name for path in output.iterdir() if path.is_dir()}
    assert not tables & {"requests", "calls"}
    assert check_trace(open_trace(output)) == []
