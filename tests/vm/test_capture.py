"""Both sides of a real VM, on two pairs of QEMU and kernel: every page, no loss."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from lab.balloon import move
from lab.recorders import GuestRecorder, HostCapture, host_recorder
from lab.session import LabOptions, open_vm
from tracer.account.join import join
from tracer.account.ledger import ledger
from tracer.account.ledger_host import captured_discards
from tracer.account.merge import merge_sides
from tracer.account.stages import stage_table
from tracer.engine import decode
from tracer.engine.host_engine import HostEngine
from tracer.engine.vm_probes import Quota, Target
from tracer.record.machine import cpu_model
from tracer.sites import host_probes
from tracer.trace.check import check_trace
from tracer.trace.reader import open_trace
from tracer.trace.salvage import salvage
from tracer.trace.schema import Caller, Mark, Queue, Side
from tracer.vms.vmm import guest_ram, inspect, load_bias

MIB = 1 << 20
PAGE_BYTES = 4096
MEMORY_BYTES = 1024 * MIB
ODD_PAGES = 10_007
"""A prime number: 39 whole requests of 256 pages and one of 23."""
HANDLE_OUTPUT_OFFSET_BYTES = 0x58
"""Of VirtQueue.handle_output in QEMU 5.2 to 11.1, found by disassembly."""


def nothing(phase: str, done: int = 0, total: int | None = None) -> None:
    pass


KERNELS = {"7.2": "6.1.", "10.0": "6.12."}
"""How `uname -r` begins in the guest, by the QEMU that it comes with."""


@pytest.fixture(scope="module", params=list(KERNELS))
def vm(request):
    options = LabOptions(
        output=Path("unused.balloon"), memory_bytes=MEMORY_BYTES, pair=request.param, record=False
    )
    with open_vm(options) as booted:
        yield booted


@pytest.fixture(scope="module")
def trace(vm, tmp_path_factory):
    """A merged trace of an inflate and a deflate of a prime number of pages."""
    home = tmp_path_factory.mktemp("capture")
    bundle = home / "odd.balloon"
    guest = GuestRecorder(vm)
    guest.start()
    capture = HostCapture(bundle, detail="discards", force=False, scenario="odd pages")
    with host_recorder(vm, capture, nothing) as host:
        host.wait_ready()
        guest.wait_ready()
        move(vm.qmp, MEMORY_BYTES - ODD_PAGES * PAGE_BYTES)
        move(vm.qmp, MEMORY_BYTES)
        guest.stop()
        host.stop()
    guest.copy_out(home / "guest.balloon")
    merge_sides(bundle, home / "guest.balloon")
    return open_trace(bundle)


def target_of(pid: int, sites: host_probes.QemuSites) -> Target:
    return Target(
        pid=pid,
        sites=sites,
        spans=(),
        descriptors=(),
        merge=True,
        ring_bytes=4 << 20,
        requests_ring_bytes=4 << 20,
        quota=Quota(),
    )


def test_the_pair_is_what_its_name_says(vm, trace, request):
    name = request.node.callspec.params["vm"]
    release = vm.agent.run(["busybox", "uname", "-r"]).strip()
    assert vm.qmp.version().startswith(f"{name}.")
    assert release.startswith(KERNELS[name])
    assert trace.manifest.vm.vmm_version.startswith(f"{name}.")
    assert trace.manifest.sides["guest"].kernel_release == release


def test_recovered_functions_are_the_handlers_of_the_live_queues(vm):
    """QEMU's own memory says which function serves each queue: it must be the recovered one."""
    sites = host_probes.find_sites(vm.pid)
    with (
        HostEngine(calls=False) as engine,
        contextlib.closing(engine.add(target_of(vm.pid, sites))) as probes,
    ):
        probes.attach()
        move(vm.qmp, MEMORY_BYTES - 300 * PAGE_BYTES)
        move(vm.qmp, MEMORY_BYTES)
        records = probes.requests.read()
    assert {Queue.INFLATE, Queue.DEFLATE} <= set(decode.host_queues(records).tolist())
    bias = load_bias(vm.pid, inspect(vm.pid).exe)
    with Path(f"/proc/{vm.pid}/mem").open("rb", buffering=0) as memory:
        for record in records:
            memory.seek(int(record["vq"]) + HANDLE_OUTPUT_OFFSET_BYTES)
            serves = int.from_bytes(memory.read(8), "little")
            assert serves == bias + sites.handlers[record["handler"]].function.start


def test_stripped_qemu_gives_every_handler_at_an_emulated_instruction(vm):
    """But for hints: QEMU polls their queue, so the way of a popped element alone is probed."""
    handlers = host_probes.find_sites(vm.pid).handlers
    assert [handler.way for handler in handlers] == ["recovered"] * 4
    stepped = {handler.queue for handler in handlers if not handler.pop_is_emulated}
    assert stepped <= {Queue.FREE_PAGE_HINT}
    assert len({handler.function.start for handler in handlers}) == 4


def test_every_page_is_recorded_on_both_sides(trace):
    for side in Side:
        table = trace.table("requests", side=side)
        queues = table["queue"].to_numpy()
        pages = table["pages"].to_numpy()
        for queue in (Queue.INFLATE, Queue.DEFLATE):
            assert pages[queues == queue].sum() == ODD_PAGES
            assert np.count_nonzero(queues == queue) == 40
    assert not trace.losses
    assert trace.is_complete


def test_both_sides_recorded_the_same_pages_in_the_same_order(trace):
    table = trace.table("requests")
    runs = table["runs"].to_pylist()
    for pairs in join(trace).queues:
        assert len(pairs.guest_row) > 0
        for guest, host in zip(pairs.guest_row, pairs.host_row, strict=True):
            assert runs[guest] == runs[host]
        if pairs.queue != Queue.REPORTING:
            assert len(pairs.guest_only) == len(pairs.host_only) == 0


def test_the_ledger_balances(trace):
    book = ledger(trace)
    assert book.balanced is True, [line for line in book.lines if line.status != "equal"]
    assert trace.manifest.ledger == book.lines


def test_discards_are_one_call_a_page(trace):
    found = captured_discards(trace)
    assert found[Queue.INFLATE].calls == ODD_PAGES
    assert found[Queue.DEFLATE].calls == ODD_PAGES
    calls = trace.table("calls")
    assert set(calls["errno"].to_pylist()) == {0}
    assert calls["count"].to_numpy().sum() >= 2 * ODD_PAGES
    assert calls.num_rows < ODD_PAGES  # merged in the kernel
    assert calls["gpa"].null_count == 0


def test_calls_lie_where_the_requests_pages_lie(trace):
    """HVA to GPA: the first discard of each inflate is of the first PFN the guest sent."""
    requests = trace.table("requests", side=Side.HOST).to_pylist()
    inflates = {row["seq"]: row for row in requests if row["queue"] == Queue.INFLATE}
    first: dict[int, int] = {}
    for call in trace.table("calls").to_pylist():
        if call["request_seq"] in inflates:
            first.setdefault(call["request_seq"], call["gpa"])
    assert len(first) == 40
    for seq, gpa in first.items():
        assert gpa == inflates[seq]["runs"][0]["pfn"] * PAGE_BYTES


def test_times_are_in_order_and_callers_are_known(trace):
    guest = trace.table("requests", side=Side.GUEST)
    balloon = [row for row in guest.to_pylist() if row["queue"] != Queue.REPORTING]
    assert {row["caller"] for row in balloon} == {Caller.TARGET}
    for row in balloon:
        assert row["begin_ns"] < row["send_ns"] < row["kick_ns"] <= row["wake_ns"] < row["end_ns"]
        # A driver that finds the buffer used before it sleeps is awake before the interrupt.
        assert row["ack_ns"] is None or row["send_ns"] < row["ack_ns"] < row["wake_ns"]
        freed = row["free_ns"]
        assert (freed is not None) == (row["queue"] == Queue.DEFLATE)
    assert any(row["ack_ns"] is not None for row in balloon)
    host = trace.table("requests", side=Side.HOST).to_pylist()
    assert all(row["pop_ns"] < row["push_ns"] for row in host)
    assert all(row["discard_ns"] < row["push_ns"] - row["pop_ns"] for row in host)


def test_clocks_fit_and_every_stage_is_observed(trace):
    assert trace.manifest.alignment.consistent
    assert trace.manifest.alignment.bound_ns < 10_000_000
    table = stage_table(trace)
    inflate = next(d for d in table.directions if d.queue == Queue.INFLATE)
    named = {stage.name: stage for stage in inflate.stages}
    for name in ("allocate", "send", "translate", "discard", "config write"):
        assert named[name].total_ns > 0


def test_probes_used_are_the_cheaper_kinds(trace):
    sides = trace.manifest.sides
    guest = {probe.point: probe for probe in sides["guest"].probes}
    assert {probe.status for probe in guest.values()} == {"attached"}
    assert (guest["send-enter"].way, guest["send-exit"].way) == ("fentry", "fexit")
    host = {probe.point: probe for probe in sides["host"].probes}
    assert host["queues-pop"].way == "uprobe"
    assert host["madvise-enter"].cost_ns > 0


def test_both_sides_tell_their_cpu(trace):
    """An emulated guest's CPU is QEMU's and not the host's."""
    sides = trace.manifest.sides
    assert sides["host"].cpu_model == cpu_model()
    emulated = trace.manifest.vm.accel == "tcg"
    assert ("QEMU" in (sides["guest"].cpu_model or "")) == emulated


def test_the_guest_tells_the_negotiated_features(trace):
    assert {"STATS_VQ", "REPORTING"} <= set(trace.manifest.vm.features)


def test_memory_map_and_residency_cover_the_guest(trace, vm):
    (region,) = trace.manifest.regions
    assert (region.gpa, region.length_bytes) == (0, MEMORY_BYTES)
    assert region.hva == guest_ram(inspect(vm.pid)).start
    assert trace.manifest.sides["host"].counters["misplaced_requests"] == 0
    residency = trace.table("residency")
    taken = residency["ts_ns"].to_numpy()
    targets = trace.table("marks").filter(pc.equal(trace.table("marks")["mark"], int(Mark.TARGET)))
    # One at attach, and one for each change of the target that did not follow the last too soon.
    assert 2 <= len(np.unique(taken)) <= 1 + targets.num_rows
    residency = residency.filter(taken == taken.min())
    pages = residency["pages"].to_numpy()
    assert pages.sum() == MEMORY_BYTES // PAGE_BYTES
    resident = residency["resident"].to_numpy(zero_copy_only=False)
    assert 0 < pages[resident].sum() < MEMORY_BYTES // PAGE_BYTES
    assert residency["pfn"].to_numpy().tolist() == (np.cumsum(pages) - pages).tolist()


def test_the_trace_keeps_its_own_rules(trace):
    assert [finding for finding in check_trace(trace) if finding.severity == "error"] == []
    marks = set(trace.table("marks")["mark"].to_pylist())
    assert {Mark.ATTACH, Mark.DETACH, Mark.END} <= marks


def test_the_host_sees_targets_and_actual_without_a_monitor(trace):
    marks = trace.table("marks", side=Side.HOST).to_pylist()
    values = {mark: [row["value"] for row in marks if row["mark"] == mark] for mark in Mark}
    assert values[Mark.TARGET] == [MEMORY_BYTES - ODD_PAGES * PAGE_BYTES, MEMORY_BYTES]
    assert values[Mark.ACTUAL][-1] == MEMORY_BYTES
    probes = {probe.point: probe for probe in trace.manifest.sides["host"].probes}
    assert probes["target"].hits == 2
    assert probes["actual"].hits >= 2 * 40


def test_every_way_to_the_system_calls_sees_the_same_ones(vm):
    """In the guest, whose kernel has them all: so they are what a user's host would use."""
    script = (Path(__file__).parent / "call_ways.py").read_text()
    seen = json.loads(vm.agent.run([vm.agent.python, "-c", script], timeout_s=240))
    assert list(seen) == ["fentry", "kprobe", "tracepoint", "raw tracepoint"]
    for name, found in seen.items():
        kinds = {"fentry": {"fentry", "fexit"}, "kprobe": {"kprobe", "kretprobe"}}.get(name, {name})
        assert set(found["ways"].values()) == kinds, found["ways"]
        assert found["runs"] == [[1000, -1, 4], [1, 0, 3]]
        assert found["calls"] == 1002
        assert (found["pieces"], found["lost_pieces"]) == (1000, 0)


def start_recorder(vm, bundle: Path, *more: str) -> subprocess.Popen:
    ready = bundle.with_suffix(".ready")
    argv = [sys.executable, "-m", "aerostat", "record", "--pid", str(vm.pid), "-o", str(bundle)]
    recorder = subprocess.Popen([*argv, "--ready-file", str(ready), *more])
    deadline = time.monotonic() + 120
    while not ready.exists():
        assert recorder.poll() is None, f"the recorder ended with {recorder.returncode}"
        assert time.monotonic() < deadline, "the recorder was not ready in time"
        time.sleep(0.05)
    return recorder


def test_a_killed_recorder_leaves_a_trace_that_can_be_salvaged(vm, tmp_path):
    bundle = tmp_path / "killed.balloon"
    recorder = start_recorder(vm, bundle)
    move(vm.qmp, MEMORY_BYTES - ODD_PAGES * PAGE_BYTES)
    time.sleep(2.5)  # longer than a batch waits
    recorder.send_signal(signal.SIGKILL)
    recorder.wait()
    move(vm.qmp, MEMORY_BYTES)
    torn = open_trace(bundle)
    assert not torn.is_complete
    salvage(bundle)
    kept = open_trace(bundle)
    assert not kept.is_complete
    assert kept.manifest.vm.pid == vm.pid
    requests = kept.table("requests")
    inflate = requests["queue"].to_numpy() == Queue.INFLATE
    assert requests["pages"].to_numpy()[inflate].sum() == ODD_PAGES


def test_what_an_overloaded_recorder_lost_and_kept_is_what_the_guest_counted(vm, tmp_path):
    """The smallest ring, and a recorder that is kept from it: the guest's own counter decides."""
    bundle = tmp_path / "overload.balloon"
    recorder = start_recorder(vm, bundle, "--detail", "requests", "--ring", "4K", "--quiet")
    before = vm.agent.counters()
    for stopped in (False, True, False, True):
        recorder.send_signal(signal.SIGSTOP if stopped else signal.SIGCONT)
        move(vm.qmp, MEMORY_BYTES - ODD_PAGES * PAGE_BYTES)
        move(vm.qmp, MEMORY_BYTES)
    recorder.send_signal(signal.SIGCONT)
    after = vm.agent.counters()
    recorder.send_signal(signal.SIGINT)
    assert recorder.wait(60) == 5
    trace = open_trace(bundle)
    requests = trace.table("requests")
    queues, pages = requests["queue"].to_numpy(), requests["pages"].to_numpy()
    counters = trace.manifest.sides["host"].counters
    for queue in (Queue.INFLATE, Queue.DEFLATE):
        name = f"balloon_{queue.name.lower()}_pages"
        lost = counters[f"lost_{queue.name.lower()}_pages"]
        assert lost > 0
        assert pages[queues == queue].sum() + lost == after[name] - before[name] == 4 * ODD_PAGES
    lost = [loss for loss in trace.losses if loss.stream == "requests"]
    assert {loss.cause for loss in lost} == {"ring"}
    moving = np.isin(queues, (Queue.INFLATE, Queue.DEFLATE))
    assert np.count_nonzero(moving) + sum(loss.count for loss in lost) >= 2 * 4 * 40


def test_an_interrupt_ends_a_capture_cleanly(vm, tmp_path):
    bundle = tmp_path / "interrupted.balloon"
    recorder = start_recorder(vm, bundle, "--detail", "requests")
    move(vm.qmp, MEMORY_BYTES - ODD_PAGES * PAGE_BYTES)
    move(vm.qmp, MEMORY_BYTES)
    recorder.send_signal(signal.SIGINT)
    assert recorder.wait(60) == 0
    trace = open_trace(bundle)
    assert trace.is_complete
    requests = trace.table("requests")
    assert requests["discard_ns"].null_count == requests.num_rows  # not observed is not zero
    assert trace.table("calls").num_rows == 0
    assert ledger(trace).balanced is not False


def test_a_vm_that_exits_ends_the_capture_with_a_mark(tmp_path):
    options = LabOptions(output=tmp_path / "x", memory_bytes=MEMORY_BYTES, record=False)
    bundle = tmp_path / "exit.balloon"
    with open_vm(options) as booted:
        recorder = start_recorder(booted, bundle)
        move(booted.qmp, MEMORY_BYTES - ODD_PAGES * PAGE_BYTES)
        os.kill(booted.pid, signal.SIGKILL)
        status = recorder.wait(60)
    trace = open_trace(bundle)
    assert status == 0
    assert trace.manifest.end_reason == "vm-exited"
    assert Mark.VM_EXIT in trace.table("marks")["mark"].to_pylist()
    requests = trace.table("requests")
    inflate = requests["queue"].to_numpy() == Queue.INFLATE
    assert requests["pages"].to_numpy()[inflate].sum() == ODD_PAGES


def test_kprobes_record_the_same_where_fentry_is_not_wanted(vm, tmp_path):
    agent = vm.agent
    bundle, ready = "/tmp/kprobe.balloon", "/tmp/kprobe.ready"
    argv = [agent.python, "-m", "aerostat", "record", "--guest", "--quiet", "--force"]
    argv += ["--probes", "kprobe", "-o", bundle, "--ready-file", ready]
    recorder = agent.spawn(argv, "/tmp/kprobe.log")
    deadline = time.monotonic() + 180
    while not agent.exists(ready):
        assert agent.wait(recorder, 0.2) is None, agent.read_file("/tmp/kprobe.log").decode()
        assert time.monotonic() < deadline, "the recorder was not ready in time"
    move(vm.qmp, MEMORY_BYTES - ODD_PAGES * PAGE_BYTES)
    move(vm.qmp, MEMORY_BYTES)
    agent.signal(recorder, "SIGINT")
    assert agent.wait(recorder, 60) == 0
    agent.copy_out(bundle, tmp_path / "kprobe.balloon")
    trace = open_trace(tmp_path / "kprobe.balloon")
    ways = {probe.point: probe.way for probe in trace.manifest.sides["guest"].probes}
    assert (ways["send-enter"], ways["send-exit"]) == ("kprobe", "kretprobe")
    requests = trace.table("requests")
    queues, pages = requests["queue"].to_numpy(), requests["pages"].to_numpy()
    for queue in (Queue.INFLATE, Queue.DEFLATE):
        assert pages[queues == queue].sum() == ODD_PAGES
    assert ledger(trace).balanced is True
