"""What a real QEMU says of a VM that is stopped, migrated away or asleep ends the VM's trace."""

from pathlib import Path

import pytest

from lab.balloon import move
from lab.session import LabOptions, open_vm
from tests.kernel.verb import WAIT_S, recording
from tracer.trace.errors import ExitCode
from tracer.trace.reader import Trace, open_trace
from tracer.trace.schema import Mark, Queue, Side

MIB = 1 << 20
PAGE_BYTES = 4096
MEMORY_BYTES = 512 * MIB
PAGES = 300
FAST_BYTES = 1 << 40
"""Per second: as fast as this machine can."""


@pytest.fixture(scope="module", params=["7.2", "10.0"])
def vm(request):
    options = LabOptions(
        output=Path("unused.balloon"), memory_bytes=MEMORY_BYTES, pair=request.param, record=False
    )
    with open_vm(options) as booted:
        yield booted


def recorded_until(vm, output: Path, command: str, **arguments: str) -> Trace:
    """Record an inflate, and on until the recorder ends by itself for what QEMU was told to do."""
    with recording(vm, output) as recorder:
        move(vm.qmp, MEMORY_BYTES - PAGES * PAGE_BYTES)
        vm.qmp.execute(command, **arguments)
        assert recorder.process.wait(WAIT_S) == ExitCode.OK
    vm.qmp.execute("cont")
    move(vm.qmp, MEMORY_BYTES)
    trace = open_trace(output)
    assert trace.is_complete
    assert trace.losses == ()
    requests = trace.table("requests", Side.HOST).to_pylist()
    inflates = [row["pages"] for row in requests if row["queue"] == Queue.INFLATE]
    assert sum(inflates) == PAGES
    return trace


def states(trace: Trace) -> list[str]:
    """The run states that were marked; the probe that told of them was hit for each."""
    probes = {probe.point: probe for probe in trace.manifest.sides["host"].probes}
    marks = trace.table("marks", Side.HOST).to_pylist()
    found = [row["text"] for row in marks if row["mark"] == Mark.RUN_STATE]
    assert (probes["run-state"].way, probes["run-state"].hits) == ("uprobe", len(found))
    return found


def test_a_vm_that_is_stopped_ends_its_trace(vm, tmp_path):
    trace = recorded_until(vm, tmp_path / "stopped.balloon", "stop")
    assert trace.manifest.end_reason == "vm-suspended"
    assert states(trace) == ["paused"]


def test_a_vm_that_is_migrated_to_its_end_ends_its_trace(vm, tmp_path):
    vm.qmp.execute("migrate-set-parameters", **{"max-bandwidth": FAST_BYTES})
    trace = recorded_until(vm, tmp_path / "gone.balloon", "migrate", uri="exec:cat > /dev/null")
    assert vm.qmp.execute("query-migrate")["status"] == "completed"
    assert trace.manifest.end_reason == "vm-migrated"
    assert states(trace) == ["finish-migrate", "postmigrate"]


def test_a_guest_that_suspends_to_memory_ends_its_trace(vm, tmp_path):
    """Last of all: it is not woken up."""
    output = tmp_path / "asleep.balloon"
    with recording(vm, output) as recorder:
        vm.agent.spawn(["sh", "-c", "sleep 1; echo mem > /sys/power/state"], "/tmp/suspend.log")
        assert recorder.process.wait(WAIT_S) == ExitCode.OK
    assert vm.qmp.execute("query-status")["status"] == "suspended"
    trace = open_trace(output)
    assert trace.is_complete
    assert trace.manifest.end_reason == "vm-suspended"
    assert states(trace) == ["suspended"]
