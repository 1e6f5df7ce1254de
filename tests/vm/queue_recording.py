"""How the tests of the other queues record a VM, and look at what came of it."""

import contextlib
import os
import time
from pathlib import Path

from lab.recorders import GuestRecorder, HostCapture, host_recorder
from tracer.account.ledger import ledger
from tracer.account.merge import merge_sides
from tracer.trace.reader import Trace
from tracer.trace.schema import Mark, Queue, Side


def nothing(phase: str, done: int = 0, total: int | None = None) -> None:
    pass


def let_vcpus_take_turns(vm) -> None:
    """Bind all vCPUs to one CPU, so that the guest's clock runs evenly.

    Of an emulated guest, QEMU makes the TSC from this machine's and never lets it fall: where vCPUs
    on two CPUs read it in turns, and one of them reads a little less than the other did, it skips
    ahead (cpu_get_ticks_locked of softmmu/cpu-timers.c, 7.2). In one recording that came to 110 us
    within a second, by jerks, and no line fits that.
    """
    (cpu, *_) = sorted(os.sched_getaffinity(0))
    for vcpu in vm.qmp.execute("query-cpus-fast"):
        os.sched_setaffinity(vcpu["thread-id"], {cpu})


@contextlib.contextmanager
def recording(vm, home: Path, *guests: GuestRecorder):
    """Record both sides while the block runs; merge the first guest's recording into the host's."""
    bundle = home / "both.balloon"
    for guest in guests:
        guest.start()
    capture = HostCapture(bundle, detail="discards", force=False, scenario="queues")
    with host_recorder(vm, capture, nothing) as host:
        host.wait_ready()
        for guest in guests:
            guest.wait_ready()
        yield
        for guest in guests:
            guest.stop()
        host.stop()
    for number, guest in enumerate(guests):
        guest.copy_out(home / f"guest-{number}.balloon")
    merge_sides(bundle, home / "guest-0.balloon")


def wait_for_stats(vm, answers: int) -> None:
    """Wait until the guest has told QEMU its statistics so many times more, a second apart."""
    told: set[int] = set()
    deadline_s = time.monotonic() + 60
    while len(told) <= answers:
        assert time.monotonic() < deadline_s, f"statistics were told at {sorted(told)} alone"
        device = {"path": "/machine/peripheral/balloon0", "property": "guest-stats"}
        told.add(vm.qmp.execute("qom-get", **device)["last-update"])
        time.sleep(0.1)


def rows(trace: Trace, side: Side, queue: Queue) -> list[dict]:
    return [row for row in trace.table("requests", side).to_pylist() if row["queue"] == queue]


def marks(trace: Trace, side: Side, mark: Mark) -> list[dict]:
    return [row for row in trace.table("marks", side).to_pylist() if row["mark"] == mark]


def lines(trace: Trace) -> dict[str, tuple[int | None, str]]:
    return {line.name: (line.pages, line.status) for line in ledger(trace).lines}
