"""The guest's recorder where something is short or fails: rings, trampolines, types, time."""

import itertools
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from aerostat.cli import main
from lab.balloon import move
from lab.session import LabOptions, open_vm
from tests.vm.guest_recording import command, copied, end, refused, start
from tracer.account.ledger import ledger
from tracer.trace.check import check_trace
from tracer.trace.errors import ExitCode
from tracer.trace.reader import Trace
from tracer.trace.schema import Mark, Queue

MIB = 1 << 20
PAGE_BYTES = 4096
MEMORY_BYTES = 1024 * MIB
ODD_PAGES = 10_007
SMALL_BYTES = MEMORY_BYTES - ODD_PAGES * PAGE_BYTES
LONGEST_S = 400
MOVED = (Queue.INFLATE, Queue.DEFLATE)


@pytest.fixture(scope="module")
def vm():
    options = LabOptions(output=Path("unused.balloon"), memory_bytes=MEMORY_BYTES, record=False)
    with open_vm(options) as booted:
        yield booted


def pages(trace: Trace, queue: Queue) -> int:
    table = trace.table("requests")
    return int(table["pages"].to_numpy()[table["queue"].to_numpy() == queue].sum())


def losses(trace: Trace) -> list[dict]:
    return [row for row in trace.table("marks").to_pylist() if row["mark"] == Mark.LOSS]


@pytest.fixture(scope="module")
def overload(vm, tmp_path_factory):
    """The smallest rings, and a recorder that is kept from them: trace, exit code, pages moved."""
    bundle = "/tmp/overload.balloon"
    recorder = start(vm, bundle, "--ring", "4K", "--quiet")
    before = vm.agent.counters()
    for stopped in (False, True, False, True):
        vm.agent.signal(recorder, "SIGSTOP" if stopped else "SIGCONT")
        move(vm.qmp, SMALL_BYTES)
        move(vm.qmp, MEMORY_BYTES)
        time.sleep(1.5)  # longer than from one look for losses to the next
    vm.agent.signal(recorder, "SIGCONT")
    after = vm.agent.counters()
    time.sleep(4)  # free pages are reported two seconds later: no request is under way at the end
    code = end(vm, recorder, bundle)
    names = {queue: f"balloon_{queue.name.lower()}_pages" for queue in MOVED}
    moved = {queue: after[name] - before[name] for queue, name in names.items()}
    return copied(vm, bundle, tmp_path_factory.mktemp("overload")), code, moved


def test_pages_recorded_and_lost_are_those_that_the_kernel_counted(overload):
    trace, code, moved = overload
    assert code == ExitCode.CAPTURE_INCOMPLETE
    side = trace.manifest.sides["guest"]
    assert side.counters["requests_ring_bytes"] == side.counters["events_ring_bytes"] == 4096
    for queue in MOVED:
        lost = side.counters[f"lost_{queue.name.lower()}_pages"]
        assert lost > ODD_PAGES
        assert pages(trace, queue) + lost == moved[queue] == 4 * ODD_PAGES


def test_requests_recorded_and_lost_are_those_that_the_probes_counted(overload):
    trace, *_ = overload
    hits = {probe.point: probe.hits for probe in trace.manifest.sides["guest"].probes}
    lost = sum(loss.count for loss in trace.losses)
    assert trace.manifest.sides["guest"].counters["lost_requests"] == lost
    recorded = trace.table("requests").num_rows
    assert recorded + lost == hits["send-enter"] + hits["report-enter"] >= 8 * 40


def test_each_loss_is_a_row_with_the_time_in_which_it_was(overload):
    trace, *_ = overload
    rows = losses(trace)
    assert {(row["text"], row["cause"]) for row in rows} == {("requests", "ring")}
    assert len(rows) >= 2
    assert all(row["since_ns"] < row["ts_ns"] for row in rows)
    assert all(a["ts_ns"] <= b["since_ns"] for a, b in itertools.pairwise(rows))
    assert sum(row["value"] for row in rows) == sum(loss.count for loss in trace.losses)


def test_show_tells_of_the_loss_and_of_its_pages(overload, capsys):
    trace, *_ = overload
    assert main(["show", str(trace.path)]) == ExitCode.CAPTURE_INCOMPLETE
    said = capsys.readouterr().out
    assert "the ring was full" in said
    found = {line.name: (line.pages, line.status) for line in ledger(trace).lines}
    for queue in MOVED:
        name = queue.name.lower()
        assert f"{name}: guest driver and lost" in said
        assert found[f"{name}: guest driver and lost"] == (4 * ODD_PAGES, "not compared")
        assert found[f"{name}: guest kernel counter"] == (4 * ODD_PAGES, "equal")


FILL_TRAMPOLINE = """
import sys, time
sys.path.insert(0, "/opt/aerostat")
from pathlib import Path
from tracer.engine.libbpf import Btf
from tracer.engine.loader import EmptyPrograms
from tracer.errors import ProbeError

programs = EmptyPrograms()
try:
    while True:
        programs.attach_fentry("empty", Btf("virtio_balloon"), "leak_balloon", at_return=False)
except ProbeError as error:
    Path("/tmp/full").write_text(error.reason)
time.sleep(3600)
"""
"""A trampoline takes so many programs and no more (BPF_MAX_TRAMP_LINKS, 38)."""


DOCTOR = """
import json, sys
sys.path.insert(0, "/opt/aerostat")
from tracer.diagnosis import doctor
from tracer.diagnosis.checks import GUEST_DRIVER, predicted_check, with_choice
from tracer.diagnosis.environment import read_machine
from tracer.diagnosis.predict import predict
from tracer.sites.probes import GUEST_POINTS

machine = read_machine()
ways = [(point, way) for point in GUEST_POINTS for way in point.ways]
rows = [(p, w, predicted_check(GUEST_DRIVER, p, w, predict(w, machine))) for p, w in ways]
checks = with_choice(doctor._in_order(rows, doctor._guest_driver(rows)))
print(json.dumps({check.name: check.way for check in checks if check.chosen}))
"""
"""The doctor's rows of the guest's driver alone: the rest takes an emulated guest minutes."""


@pytest.fixture
def full_trampoline(vm):
    """leak_balloon takes no further fentry: the kernel itself refuses it."""
    filler = vm.agent.spawn([vm.agent.python, "-c", FILL_TRAMPOLINE], "/tmp/filler.log")
    deadline_s = time.monotonic() + 120
    while not vm.agent.exists("/tmp/full"):
        assert vm.agent.wait(filler, 0.1) is None, vm.agent.read_file("/tmp/filler.log").decode()
        assert time.monotonic() < deadline_s
    yield vm.agent.read_file("/tmp/full").decode()
    vm.agent.signal(filler, "SIGKILL")
    vm.agent.wait(filler, 10)


def test_a_point_that_fentry_does_not_reach_is_reached_by_kprobe(vm, full_trampoline, tmp_path):
    """Each point by itself; and the doctor marks the ways that the recorder goes."""
    assert "Argument list too long" in full_trampoline
    bundle = "/tmp/mixed.balloon"
    recorder = start(vm, bundle)
    move(vm.qmp, SMALL_BYTES)
    move(vm.qmp, MEMORY_BYTES)
    assert end(vm, recorder, bundle) == ExitCode.OK
    chosen = json.loads(vm.agent.run([vm.agent.python, "-c", DOCTOR], LONGEST_S))
    trace = copied(vm, bundle, tmp_path)
    probes = {probe.point: probe for probe in trace.manifest.sides["guest"].probes}
    attached = {name: p for name, p in probes.items() if p.status == "attached"}
    assert {name: f"{p.way} {p.target}" for name, p in attached.items()} == chosen
    assert (probes["leak-enter"].way, probes["leak-exit"].way) == ("kprobe", "kretprobe")
    assert "fentry leak_balloon: Argument list too long" in probes["leak-enter"].reason
    assert (probes["send-enter"].way, probes["work-exit"].way) == ("fentry", "fexit")
    assert probes["leak-enter"].cost_ns > 0
    deflates = [row for row in trace.table("requests").to_pylist() if row["queue"] == 1]
    assert sum(row["pages"] for row in deflates) == ODD_PAGES
    for row in deflates:
        assert row["begin_ns"] < row["send_ns"] < row["wake_ns"] < row["free_ns"] < row["end_ns"]
    assert ledger(trace).balanced is True


def test_where_fentry_is_insisted_on_such_a_point_is_left_out(vm, full_trampoline, tmp_path):
    bundle = "/tmp/insisted.balloon"
    recorder = start(vm, bundle, "--probes", "fentry")
    move(vm.qmp, SMALL_BYTES)
    move(vm.qmp, MEMORY_BYTES)
    assert end(vm, recorder, bundle) == ExitCode.OK
    trace = copied(vm, bundle, tmp_path)
    probes = {probe.point: probe for probe in trace.manifest.sides["guest"].probes}
    assert probes["leak-enter"].status == "failed"
    assert "fentry is insisted on" in probes["leak-enter"].reason
    assert trace.table("requests")["free_ns"].null_count == trace.table("requests").num_rows
    assert pages(trace, Queue.DEFLATE) == ODD_PAGES


def test_a_kernel_without_type_information_is_told_of(vm):
    vm.agent.run(["mount", "-t", "tmpfs", "none", "/sys/kernel/btf"])
    try:
        code, said = refused(vm, command(vm, "/tmp/untyped.balloon"))
    finally:
        vm.agent.run(["busybox", "umount", "/sys/kernel/btf"])
    assert code == ExitCode.MISSING_PRIVILEGE
    assert "the kernel has no type information (BTF)" in said
    assert "/sys/kernel/btf/vmlinux is absent" in said
    assert "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y" in said
    assert not vm.agent.exists("/tmp/untyped.balloon")


def dumped(vm, recorder: int, name: str, home: Path) -> tuple[Trace, dict]:
    """Wait for a flight recorder's first dump, end the recorder; the dump and its TRIGGER mark."""
    bundle = f"/tmp/{name}-00001.balloon"
    deadline_s = time.monotonic() + 60
    while not vm.agent.exists(f"{bundle}/manifest.json"):
        assert time.monotonic() < deadline_s, f"{name}: nothing was kept"
        time.sleep(0.1)
    assert end(vm, recorder, f"/tmp/{name}.balloon") == ExitCode.OK
    assert f"kept {bundle}" in vm.agent.read_file(f"/tmp/{name}.balloon.log").decode()
    assert not vm.agent.exists(f"/tmp/{name}.balloon")
    trace = copied(vm, bundle, home)
    assert trace.is_complete
    assert [found for found in check_trace(trace) if found.severity == "error"] == []
    (trigger,) = [r for r in trace.table("marks").to_pylist() if r["mark"] == Mark.TRIGGER]
    return trace, trigger


def test_a_dump_on_a_signal_has_all_that_was_until_then(vm, tmp_path):
    """What is still in the rings too: a stopped recorder takes it up and dumps in one go."""
    recorder = start(vm, "/tmp/asked.balloon", "--flight", "10m", "--sample-every", "100ms")
    move(vm.qmp, MEMORY_BYTES - 5000 * PAGE_BYTES)
    vm.agent.signal(recorder, "SIGSTOP")
    move(vm.qmp, SMALL_BYTES)
    vm.agent.signal(recorder, "SIGUSR1")
    vm.agent.signal(recorder, "SIGCONT")
    trace, trigger = dumped(vm, recorder, "asked", tmp_path)
    move(vm.qmp, MEMORY_BYTES)
    assert trigger["text"].startswith("signal: ")
    assert pages(trace, Queue.INFLATE) == ODD_PAGES
    side = trace.manifest.sides["guest"]
    assert side.kernel_release == vm.agent.release
    assert {probe.status for probe in side.probes} == {"attached"}
    assert "REPORTING" in trace.manifest.vm.features


def let_hardly_run(vm, seconds: float) -> None:
    """Let the whole guest run for a twentieth of the time, which goes on for it meanwhile."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        os.kill(vm.pid, signal.SIGSTOP)
        time.sleep(0.19)
        os.kill(vm.pid, signal.SIGCONT)
        time.sleep(0.01)


def test_a_target_that_comes_no_nearer_is_kept_with_what_was_sent_until_then(vm, tmp_path):
    options = ("--flight", "10m", "--stuck", "500ms", "--sample-every", "200ms")
    recorder = start(vm, "/tmp/stuck.balloon", *options)
    asked_bytes = MEMORY_BYTES // 2
    vm.qmp.balloon(MEMORY_BYTES - asked_bytes)
    let_hardly_run(vm, 8)
    move(vm.qmp, MEMORY_BYTES - asked_bytes)
    trace, trigger = dumped(vm, recorder, "stuck", tmp_path)
    move(vm.qmp, MEMORY_BYTES)
    assert trigger["text"].startswith("stuck-target: ")
    assert 64 * MIB < trigger["value"] < asked_bytes
    # A batch may wait for a second: without being asked for, some of that would be missing.
    assert pages(trace, Queue.INFLATE) * PAGE_BYTES >= asked_bytes - trigger["value"]


WATCH_REQUESTS = """
import json, sys, time
sys.path.insert(0, "/opt/aerostat")
from pathlib import Path
from tracer.engine.ring import Ring
from tracer.guest_side.guest_state import balloon_size, under_way
from tracer.sites.guest_probes import RINGS, attach_driver

driver = attach_driver()
Path("/tmp/watching").touch()
seen, sizes, until_s = {}, [], time.monotonic() + float(sys.argv[1])
while time.monotonic() < until_s:
    for request in under_way(driver.program["slots"]):
        seen[request.begin_ns] = [int(queue) for queue in request.queues]
    size = balloon_size(driver.program["state"][0], time.monotonic_ns())
    sizes.append((size.actual_bytes, size.target_bytes))
ring = Ring(driver.program.map_fd("requests"), driver.ring_bytes["requests"], RINGS["requests"])
sent = {int(record["send_ns"]): int(record["queue"]) for record in ring.read()}
print(json.dumps({"seen": list(seen.items()), "sent": list(sent.items()), "last": sizes[-1]}))
"""


def test_requests_under_way_are_those_that_become_rows(vm):
    log = "/tmp/watch.log"
    watcher = vm.agent.spawn([vm.agent.python, "-c", WATCH_REQUESTS, "15"], log)
    deadline_s = time.monotonic() + 120
    while not vm.agent.exists("/tmp/watching"):
        assert vm.agent.wait(watcher, 0.1) is None, vm.agent.read_file(log).decode()
        assert time.monotonic() < deadline_s
    move(vm.qmp, SMALL_BYTES)
    move(vm.qmp, MEMORY_BYTES)
    move(vm.qmp, SMALL_BYTES)
    assert vm.agent.wait(watcher, 60) == 0, vm.agent.read_file(log).decode()
    move(vm.qmp, MEMORY_BYTES)
    said = json.loads(vm.agent.read_file(log).decode())
    sent = dict(said["sent"])
    seen = dict(said["seen"])
    assert len(seen) > 10
    assert {begin_ns: sent[begin_ns] for begin_ns in seen} == {
        begin_ns: queue for begin_ns, (queue,) in seen.items()
    }
    assert {Queue.INFLATE, Queue.DEFLATE} <= set(np.unique(list(sent.values())).tolist())
    assert said["last"] == [-ODD_PAGES * PAGE_BYTES] * 2
