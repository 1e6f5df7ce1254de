"""The other queues and events of a real VM, by both kinds of guest probes and from the host.

Each count is held against QEMU's own or the guest kernel's own.
"""

import contextlib
import itertools
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from lab.balloon import move
from lab.balloon_scenarios import out_of_puff
from lab.queue_scenarios import flood, hinting, migration, oom, poll_stats
from lab.recorders import GuestRecorder
from lab.session import LabOptions, open_vm
from tests.vm.queue_recording import (
    let_vcpus_take_turns,
    lines,
    marks,
    nothing,
    recording,
    rows,
    wait_for_stats,
)
from tracer.account.join import join
from tracer.account.ledger import ledger
from tracer.account.stages import stage_table
from tracer.engine.host_engine import HostEngine
from tracer.engine.vm_probes import Quota, Target
from tracer.sites import host_probes
from tracer.sites.elf import Binary
from tracer.trace.check import check_trace
from tracer.trace.reader import Trace, open_trace
from tracer.trace.schema import Caller, Mark, Queue, Side
from tracer.vms.vmm import inspect, load_bias

MIB = 1 << 20
PAGE_BYTES = 4096
MEMORY_BYTES = 1536 * MIB
ODD_PAGES = 10_007
HANDLE_OUTPUT_OFFSET_BYTES = 0x58
"""Of VirtQueue.handle_output in QEMU 5.2 to 11.1, found by disassembly."""
HINT_BLOCK_PAGES = 1024
"""4 MiB, order 10 on x86 (drivers/virtio/virtio_balloon.c, since 5.0)."""
STOP_ID = 0
"""VIRTIO_BALLOON_CMD_ID_STOP, include/uapi/linux/virtio_balloon.h."""
DRIVER = "/sys/bus/virtio/drivers/virtio_balloon"
FLOOD_S = 4.0
ON_BOTH_SIDES = (Queue.INFLATE, Queue.DEFLATE, Queue.FREE_PAGE_HINT)


@pytest.fixture(scope="module", params=["7.2", "10.0"])
def vm(request):
    options = LabOptions(
        output=Path("unused.balloon"),
        memory_bytes=MEMORY_BYTES,
        pair=request.param,
        record=False,
        deflate_on_oom=True,
    )
    with open_vm(options) as booted:
        let_vcpus_take_turns(booted)
        yield booted


class Session(NamedTuple):
    """What was recorded of the same moves: both sides by fentry, the guest again by kprobe."""

    trace: Trace
    kprobe: Trace
    migrated_pages: int


@pytest.fixture(scope="module")
def session(vm, tmp_path_factory):
    home = tmp_path_factory.mktemp("queues")
    guests = [GuestRecorder(vm, kind, kind) for kind in ("fentry", "kprobe")]
    before = vm.agent.counters()
    with recording(vm, home, *guests):
        poll_stats(vm, 1)
        move(vm.qmp, MEMORY_BYTES - ODD_PAGES * PAGE_BYTES)
        move(vm.qmp, MEMORY_BYTES)
        hinting(vm, nothing)
        migration(vm, nothing)
        wait_for_stats(vm, answers=5)
        poll_stats(vm, 0)
        time.sleep(1.5)  # the last answer, and reports under way
    after = vm.agent.counters()
    migrated = after["balloon_migrate_pages"] - before["balloon_migrate_pages"]
    both, kprobe = (open_trace(home / f"{name}.balloon") for name in ("both", "guest-1"))
    return Session(both, kprobe, migrated)


def test_every_probe_attaches_by_the_way_that_was_asked_for(session):
    ways = (("fentry", "fexit"), ("kprobe", "kretprobe"))
    for trace, (entry, ret) in zip((session.trace, session.kprobe), ways, strict=True):
        probes = {probe.point: probe for probe in trace.manifest.sides["guest"].probes}
        assert {name for name, p in probes.items() if p.status != "attached"} == set()
        for name in ("send-enter", "hint-enter", "hint-id", "hint-block", "stats-ask"):
            assert probes[name].way == entry
        for name in ("send-exit", "hint-exit", "stats-exit", "kick-exit"):
            assert probes[name].way == ret
        assert (probes["target-enter"].way, probes["target-exit"].way) == ("kprobe", "kretprobe")
    host = {probe.point: probe for probe in session.trace.manifest.sides["host"].probes}
    for name in ("queues-pop", "reporting-push", "stats-pop", "hint-pop", "hint-push"):
        assert (host[name].status, host[name].way) == ("attached", "uprobe")


def test_probes_are_hit_once_a_block_however_often_qemu_polls(session):
    """QEMU pops the queue of hints millions of times a second while it wants some."""
    host = {probe.point: probe for probe in session.trace.manifest.sides["host"].probes}
    found = {
        name: sum(len(rows(session.trace, Side.HOST, queue)) for queue in queues)
        for name, queues in (
            ("hint", [Queue.FREE_PAGE_HINT]),
            ("reporting", [Queue.REPORTING]),
            ("queues", [Queue.INFLATE, Queue.DEFLATE]),
        )
    }
    # A buffer may be in the device's hands as the recording begins and ends.
    assert 0 <= host["hint-pop"].hits - found["hint"] <= 1
    assert 0 <= found["hint"] - host["hint-push"].hits <= 1
    assert 0 <= host["reporting-push"].hits - found["reporting"] <= 1
    for name in ("reporting", "queues"):
        assert found[name] > 0
        assert 0 <= host[f"{name}-pop"].hits - found[name] <= 1


def test_each_hint_is_a_hit_of_its_probe_in_the_guest(session):
    """QEMU's queue alone counts: the same functions serve every other virtio device."""
    for trace in (session.trace, session.kprobe):
        hits = {probe.point: probe.hits for probe in trace.manifest.sides["guest"].probes}
        hints = rows(trace, Side.GUEST, Queue.FREE_PAGE_HINT)
        identities = [row for row in hints if row["hint_id"] is not None]
        assert hits["hint-id"] == len(identities) == 2
        assert hits["hint-block"] == len(hints) - len(identities)
        assert hits["hint-enter"] == hits["hint-exit"] >= 1
        assert hits["stats-exit"] == len(rows(trace, Side.GUEST, Queue.STATS))


def test_nothing_is_lost_and_all_balances(session):
    for trace in (session.trace, session.kprobe):
        assert trace.is_complete
        assert trace.losses == ()
        assert [found for found in check_trace(trace) if found.severity == "error"] == []
        book = ledger(trace)
        wrong = [
            (line.name, line.pages, line.status) for line in book.lines if "differs" in line.status
        ]
        assert wrong == []
        assert book.balanced is True


def test_fentry_and_kprobe_record_the_same_pages_in_the_same_order(session):
    for queue in ON_BOTH_SIDES:
        by_fentry, by_kprobe = (
            [
                (row["runs"], row["hint_id"], row["caller"], row["pages"])
                for row in rows(trace, Side.GUEST, queue)
            ]
            for trace in (session.trace, session.kprobe)
        )
        assert len(by_fentry) > 0
        assert by_fentry == by_kprobe
    answers = [len(rows(t, Side.GUEST, Queue.STATS)) for t in (session.trace, session.kprobe)]
    assert answers[0] == answers[1]


def test_every_stage_of_the_guest_is_told_without_its_probes(session):
    """Each probe that was hit has a cost, so that the guest's stages can be corrected."""
    for trace in (session.trace, session.kprobe):
        for probe in trace.manifest.sides["guest"].probes:
            if probe.point.startswith(("send", "work", "leak", "target", "kick", "ack")):
                assert probe.cost_ns > 0
    inflate = stage_table(session.trace).direction(Queue.INFLATE)
    for name in ("allocate", "config write"):
        stage = inflate.stage(name)
        assert 0 < stage.corrected_ns < stage.total_ns


def test_host_and_guest_pair_in_every_queue_with_pages(session):
    found = {pairs.queue: pairs for pairs in join(session.trace).queues}
    for queue in ON_BOTH_SIDES:
        assert len(found[queue].guest_row) > 0
        assert len(found[queue].guest_only) == len(found[queue].host_only) == 0
    assert session.trace.manifest.alignment.consistent


def test_hints_begin_with_qemus_id_name_free_blocks_and_end(session):
    for side in Side:
        hints = rows(session.trace, side, Queue.FREE_PAGE_HINT)
        identities = [row["hint_id"] for row in hints if row["hint_id"] is not None]
        begin, *rest = identities
        assert begin & 0x8000_0000  # where QEMU begins to count
        assert rest == [STOP_ID]
        blocks = [row for row in hints if row["hint_id"] is None]
        assert {row["pages"] for row in blocks} == {HINT_BLOCK_PAGES}
        assert len(blocks) > 10
    guest = [row["hint_id"] for row in rows(session.trace, Side.GUEST, Queue.FREE_PAGE_HINT)]
    host = [row["hint_id"] for row in rows(session.trace, Side.HOST, Queue.FREE_PAGE_HINT)]
    assert guest == host
    for row in rows(session.trace, Side.GUEST, Queue.FREE_PAGE_HINT):
        assert row["send_ns"] < row["kick_ns"]
        assert row["wake_ns"] is None  # the driver does not wait for a hint's return


def test_every_request_for_statistics_is_seen_on_both_sides(session):
    guest, host = (rows(session.trace, side, Queue.STATS) for side in (Side.GUEST, Side.HOST))
    assert len(guest) >= 5
    assert lines(session.trace)["stats: host requests"] == (len(guest), "equal")
    for row in guest:
        assert row["begin_ns"] < row["kick_ns"] < row["end_ns"]
    for before, after in itertools.pairwise(guest):
        assert after["begin_ns"] - before["begin_ns"] > 0.5e9  # QEMU's interval is a second
    for row in host:
        assert row["pop_ns"] is not None
        assert row["push_ns"] is None  # QEMU keeps the buffer until it wants the next
        assert row["pages"] == 0


def test_page_migrations_are_two_requests_each_and_the_kernels_count(session):
    moved = [
        row
        for queue in (Queue.INFLATE, Queue.DEFLATE)
        for row in rows(session.trace, Side.GUEST, queue)
        if row["caller"] == Caller.MIGRATION
    ]
    assert {row["pages"] for row in moved} == {1}
    assert len(moved) == 2 * session.migrated_pages > 0
    assert lines(session.trace)["migration: guest kernel counter"] == (
        session.migrated_pages,
        "equal",
    )
    found = marks(session.trace, Side.GUEST, Mark.MIGRATION)
    assert sum(mark["value"] for mark in found) == session.migrated_pages


def test_guest_and_host_agree_on_every_target_and_on_the_size_reached(session):
    """The guest knows the balloon's size, the host what is left of the guest's memory."""
    host = marks(session.trace, Side.HOST, Mark.TARGET)
    guest = marks(session.trace, Side.GUEST, Mark.TARGET)
    assert len(host) >= 4
    assert [row["value"] for row in guest] == [MEMORY_BYTES - row["value"] for row in host]
    reached = {row["value"] for row in marks(session.trace, Side.GUEST, Mark.ACTUAL)}
    assert {row["value"] for row in guest} <= reached


def test_samples_show_both_kernels_under_pressure(session):
    guest, host = (
        session.trace.table("samples", side).to_pylist() for side in (Side.GUEST, Side.HOST)
    )
    for name in ("mem_available_bytes", "major_faults", "alloc_stalls", "psi_some_us"):
        for sample in (guest[-1], host[-1]):
            assert sample[name] is not None
    last = guest[-1]
    assert last["balloon_migrate_pages"] >= session.migrated_pages
    assert last["psi_full_us"] is not None
    assert last["rss_bytes"] is None
    assert host[-1]["rss_bytes"] > 100 * MIB
    assert any((row["pss_bytes"] or 0) > 100 * MIB for row in host)
    assert host[0]["minor_faults"] < host[-1]["minor_faults"]


@pytest.fixture(scope="module")
def pressed(vm, session, tmp_path_factory):
    """A guest that is flooded, runs out of memory, is asked for more, and loses its driver."""
    home = tmp_path_factory.mktemp("pressed")
    guest = GuestRecorder(vm)
    device = vm.agent.run(["sh", "-c", f"cd {DRIVER}; echo virtio*"]).strip()
    resident = []
    before = vm.agent.counters()
    with recording(vm, home, guest):
        for _ in range(2):
            flood(vm, nothing, FLOOD_S)
            resident.append(guest.resident_bytes())
        oom(vm, nothing)
        out_of_puff(vm, nothing)
        move(vm.qmp, MEMORY_BYTES - ODD_PAGES * PAGE_BYTES)
        vm.agent.run(["sh", "-c", f"echo {device} > {DRIVER}/unbind"], 60)
        time.sleep(1.5)  # a last batch
    after = vm.agent.counters()
    # Not while it is recorded: a driver that begins sends statistics that nobody asked for.
    vm.agent.run(["sh", "-c", f"echo {device} > {DRIVER}/bind"], 60)
    move(vm.qmp, MEMORY_BYTES)
    inflated = after["balloon_inflate_pages"] - before["balloon_inflate_pages"]
    return open_trace(home / "both.balloon"), resident, inflated


def test_a_recorder_outlives_a_flood_and_a_guest_without_memory(pressed):
    trace, resident, inflated = pressed
    assert trace.is_complete
    assert trace.losses == ()
    book = ledger(trace)
    assert book.balanced is True, [line for line in book.lines if line.status != "equal"]
    sent = sum(row["pages"] for row in rows(trace, Side.GUEST, Queue.INFLATE))
    assert sent == inflated > 200_000
    # The second flood finds all the memory that the first one needed.
    assert resident[1] - resident[0] < 16 * MIB


def test_deflates_for_oom_are_marked_and_are_no_target(pressed):
    trace, *_ = pressed
    deflates = [
        row for row in rows(trace, Side.GUEST, Queue.DEFLATE) if row["caller"] == Caller.OOM
    ]
    pages = sum(row["pages"] for row in deflates)
    assert pages * PAGE_BYTES >= 32 * MIB
    found = marks(trace, Side.GUEST, Mark.OOM_DEFLATE)
    assert sum(mark["value"] for mark in found) == pages
    assert all(mark["since_ns"] <= mark["ts_ns"] for mark in found)


def test_sleeps_for_want_of_memory_are_marked_and_timed(pressed):
    trace, *_ = pressed
    found = marks(trace, Side.GUEST, Mark.OUT_OF_PUFF)
    assert sum(mark["value"] for mark in found) > 0
    inflates = rows(trace, Side.GUEST, Queue.INFLATE)
    slept = [row["puff_ns"] for row in inflates if row["puff_ns"]]
    # msleep(200) of fill_balloon(), by the guest's clock; on a host that has little time for the
    # guest it is late, but never longer than all inflates together.
    sent = [row["send_ns"] for row in inflates if row["send_ns"]]
    assert all(0.19e9 < puff < max(sent) - min(sent) for puff in slept)


def test_a_driver_that_leaves_takes_its_pages_back_by_that_name(pressed):
    trace, *_ = pressed
    deflates = [
        row for row in rows(trace, Side.GUEST, Queue.DEFLATE) if row["caller"] == Caller.REMOVE
    ]
    assert sum(row["pages"] for row in deflates) == ODD_PAGES
    assert len(deflates) == 40
    for row in deflates:
        assert row["begin_ns"] < row["send_ns"] < row["wake_ns"] < row["free_ns"]


def test_recovered_functions_serve_the_live_queues(vm):
    """QEMU's own memory says which function serves each queue of the balloon."""
    sites = host_probes.find_sites(vm.pid)
    target = Target(
        pid=vm.pid,
        sites=sites,
        spans=(),
        descriptors=(),
        merge=True,
        ring_bytes=4 << 20,
        requests_ring_bytes=4 << 20,
        quota=Quota(),
    )
    with (
        HostEngine(calls=False) as engine,
        contextlib.closing(engine.add(target)) as probes,
    ):
        probes.attach()
        move(vm.qmp, MEMORY_BYTES - 300 * PAGE_BYTES)
        move(vm.qmp, MEMORY_BYTES)
        poll_stats(vm, 1)
        hinting(vm, nothing)
        poll_stats(vm, 0)
        records = probes.requests.read()
    number = {handler.queue: place for place, handler in enumerate(sites.handlers)}
    assert set(number) == {Queue.INFLATE, Queue.REPORTING, Queue.STATS, Queue.FREE_PAGE_HINT}
    assert {number[Queue.STATS], number[Queue.FREE_PAGE_HINT]} <= set(records["handler"].tolist())
    queues = np.unique(records[records["handler"] == 0]["vq"]).tolist()
    (hint,) = np.unique(records[records["handler"] == number[Queue.FREE_PAGE_HINT]]["vq"]).tolist()
    inflate, stride = min(queues), max(queues) - min(queues)
    bias = load_bias(vm.pid, inspect(vm.pid).exe)
    start = {handler.queue: bias + handler.function.start for handler in sites.handlers}
    assert serving(vm.pid, inflate) == serving(vm.pid, inflate + stride) == start[Queue.INFLATE]
    # QEMU adds the queues in this order; their VirtQueues are one array.
    assert serving(vm.pid, inflate + 2 * stride) == start[Queue.STATS]
    assert hint == inflate + 3 * stride
    assert serving(vm.pid, inflate + 4 * stride) == start[Queue.REPORTING]
    # Hints are popped in a bottom half, which is all that their queue's own function schedules.
    with contextlib.closing(Binary(Path(f"/proc/{vm.pid}/exe"))) as binary:
        schedules = binary.function_at(serving(vm.pid, hint) - bias)
        assert binary.calls(binary.symbols["qemu_bh_schedule"], schedules)


def serving(pid: int, queue: int) -> int:
    """Read the address of the function that serves a VirtQueue."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(queue + HANDLE_OUTPUT_OFFSET_BYTES)
        return int.from_bytes(memory.read(8), "little")
