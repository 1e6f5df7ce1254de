"""A recorded session: both sides say the same pages as the device, and no temporary file stays."""

import pyarrow.compute as pc
import pytest

from lab.errors import LabError
from lab.guest_programs import IN_GUEST, kept_programs
from lab.recorders import GuestRecorder
from lab.session import LabOptions, open_vm, record_scenario, run_lab
from tracer.trace.reader import open_trace
from tracer.trace.schema import Queue, Side

MIB = 1 << 20
PAGE_BYTES = 4096
MEMORY_BYTES = 2048 * MIB


def pages(table, side, queue):
    wanted = pc.and_(
        pc.equal(table["side"], int(side)),
        pc.equal(table["queue"], int(queue)),
    )
    return pc.sum(table.filter(wanted)["pages"]).as_py()


def test_recorded_session_holds_both_sides_page_for_page(tmp_path):
    output = tmp_path / "lab.balloon"
    options = LabOptions(output=output, memory_bytes=MEMORY_BYTES)
    with open_vm(options) as vm:
        before = vm.agent.counters()
        outcome = record_scenario(vm, options)
        after = vm.agent.counters()
    assert [path.name for path in tmp_path.iterdir()] == ["lab.balloon"]
    trace = open_trace(output)
    assert trace.is_complete
    assert not trace.losses
    requests = trace.table("requests")
    moved = MEMORY_BYTES * 3 // 4 // PAGE_BYTES
    for queue, counter in ((Queue.INFLATE, "inflate"), (Queue.DEFLATE, "deflate")):
        name = f"balloon_{counter}_pages"
        assert after[name] - before[name] == moved
        assert pages(requests, Side.GUEST, queue) == moved
        assert pages(requests, Side.HOST, queue) == moved
    assert outcome.targets == (MEMORY_BYTES // 4, MEMORY_BYTES)


def test_a_guest_is_given_what_one_before_it_compiled(tmp_path):
    """With the program kept, a guest without a compiler records all the same."""
    options = LabOptions(output=tmp_path / "lab.balloon", memory_bytes=512 * MIB)
    with open_vm(options) as vm:
        recorder = GuestRecorder(vm)
        recorder.start()
        recorder.wait_ready()
        recorder.stop()
        kept = {path.name for path in kept_programs()}
        assert kept
        assert kept >= set(vm.agent.list_files(IN_GUEST))
    with open_vm(options) as vm:
        assert set(vm.agent.list_files(IN_GUEST)) >= kept
        vm.agent.run(["sh", "-c", "rm /usr/lib/x86_64-linux-gnu/libbcc.so*"])
        recorder = GuestRecorder(vm)
        recorder.start()
        recorder.wait_ready()
        recorder.stop()


def test_session_refuses_to_overwrite_before_it_boots(tmp_path):
    output = tmp_path / "lab.balloon"
    output.mkdir()
    phases = []
    with pytest.raises(LabError, match="exists"):
        run_lab(LabOptions(output=output), lambda phase, *rest: phases.append(phase))
    assert phases == []


def test_guest_recorder_that_cannot_start_says_why(tmp_path):
    options = LabOptions(output=tmp_path / "lab.balloon", memory_bytes=512 * MIB)
    with open_vm(options) as vm:
        vm.agent.run(["sh", "-c", "rm -r /opt/aerostat/tracer"])
        recorder = GuestRecorder(vm)
        recorder.start()
        with pytest.raises(LabError, match="before it was ready") as failed:
            recorder.wait_ready()
        assert "tracer" in failed.value.reason
