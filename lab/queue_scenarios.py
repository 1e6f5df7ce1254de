"""Scenarios of the other queues, and of what makes the driver move pages by itself."""

import time
from collections.abc import Callable

from lab.balloon import Move, move
from lab.errors import LabError
from lab.steps import leaving, share_of, through, workload
from lab.vm import LabVm
from tracer.trace.progress import Progress

STATS_S = 5.0
FLOOD_S = 10.0
_WAIT_S = 60.0
_STILL_S = 1.0
"""The guest has taken all it can for hints once its free memory has not fallen for so long."""
_BLOCK_BYTES = 4 << 20
"""A hint's block on x86: order 10, in every kernel (drivers/virtio/virtio_balloon.c, since 5.0)."""
_HINT_BANDWIDTH_BYTES = 32 << 10
"""Per second: so little that the migration is still under way when the guest has sent its hints."""
_FILL_BYTES = 4 << 20
_COMPACTIONS = 6
_OOM_BYTES = 32 << 20
"""What the driver has to take back before the workload that takes the memory is ended."""


def hinting(vm: LabVm, progress: Progress) -> list[Move]:
    """Begin a live migration to nowhere, so that the guest hints its free pages, and cancel it.

    Raises:
        LabError: The guest sent no hint, or does not take its pages back.
    """
    before = _free_bytes(vm)
    progress("migrate")
    vm.qmp.execute("migrate-set-parameters", **{"max-bandwidth": _HINT_BANDWIDTH_BYTES})
    vm.qmp.execute("migrate", uri="exec:cat > /dev/null")
    try:
        taken = _await_still(vm, before)
    finally:
        progress("cancel migration")
        vm.qmp.execute("migrate_cancel")
    _await(lambda: _migration(vm) == "cancelled", "QEMU to cancel the migration")
    _await(lambda: _free_bytes(vm) > before - taken // 2, "the guest to take its hints back")
    return []


def stats(vm: LabVm, progress: Progress) -> list[Move]:
    """Let QEMU ask for the guest's memory statistics once a second.

    Raises:
        LabError: No answer came.
    """
    progress("poll statistics")
    poll_stats(vm, 1)
    time.sleep(STATS_S)
    poll_stats(vm, 0)
    device = {"path": "/machine/peripheral/balloon0", "property": "guest-stats"}
    if not vm.qmp.execute("qom-get", **device)["last-update"]:
        raise LabError("the guest sent no statistics")
    return []


def poll_stats(vm: LabVm, every_s: int) -> None:
    """Set how often QEMU asks for statistics; 0 ends it."""
    name = "guest-stats-polling-interval"
    path = "/machine/peripheral/balloon0"
    vm.qmp.execute("qom-set", path=path, property=name, value=every_s)


def oom(vm: LabVm, progress: Progress) -> list[Move]:
    """Inflate, fill what is left until the driver deflates for it, and give all back.

    Raises:
        LabError: The balloon did not shrink.
    """
    full = vm.options.memory_bytes
    moves = through(vm, [leaving(full, 0.25)], progress)
    enough_bytes = moves[0].end_bytes + _OOM_BYTES
    progress("run out of memory")
    with workload(vm.agent, "fill", str(_FILL_BYTES)):
        _await(lambda: vm.qmp.query_balloon() >= enough_bytes, "the driver to deflate")
    return [*moves, move(vm.qmp, full)]


def migration(vm: LabVm, progress: Progress) -> list[Move]:
    """Scatter the balloon's pages, compact the guest's memory, and give all back.

    Where free memory and the balloon lie decides what compaction moves, so this is tried again
    while it moves nothing.

    Raises:
        LabError: Compaction moved no page of the balloon.
    """
    moves: list[Move] = []
    before = vm.agent.counters()["balloon_migrate_pages"]
    for _ in range(_COMPACTIONS):
        moves += _scatter_and_compact(vm, progress)
        if vm.agent.counters()["balloon_migrate_pages"] > before:
            return moves
    raise LabError("compaction moved no page of the balloon")


def _scatter_and_compact(vm: LabVm, progress: Progress) -> list[Move]:
    full, agent = vm.options.memory_bytes, vm.agent
    available = agent.counters()["MemAvailable_bytes"]
    progress("fragment guest memory")
    # The balloon takes the single pages and some more; then holes are left around its pages.
    with workload(agent, "fragment", str(share_of(available, 0.2))):
        moves = through(vm, [full - share_of(available, 0.2)], progress)
    progress("compact guest memory")
    agent.run(["sh", "-c", "echo 1 > /proc/sys/vm/compact_memory"], 120)
    return [*moves, *through(vm, [full], progress)]


def flood(vm: LabVm, progress: Progress, seconds: float = FLOOD_S) -> list[Move]:
    """Inflate and deflate in a loop, as fast as the guest can, for ten seconds."""
    full = vm.options.memory_bytes
    small = full - share_of(full, 1 / 16)
    moves: list[Move] = []
    begin_s = time.monotonic()
    while (passed_s := time.monotonic() - begin_s) < seconds:
        progress("flood", int(passed_s), int(seconds))
        moves += [move(vm.qmp, small), move(vm.qmp, full)]
    return moves


def _free_bytes(vm: LabVm) -> int:
    return vm.agent.counters()["MemFree_bytes"]


def _migration(vm: LabVm) -> str:
    return str(vm.qmp.execute("query-migrate").get("status"))


def _await_still(vm: LabVm, before_bytes: int) -> int:
    """Wait until the guest takes no more free memory; returns how much it took."""
    least_bytes, since_s = before_bytes, time.monotonic()
    deadline_s = since_s + _WAIT_S
    while time.monotonic() < deadline_s:
        time.sleep(0.1)
        free_bytes = _free_bytes(vm)
        if free_bytes < least_bytes - _BLOCK_BYTES:
            least_bytes, since_s = free_bytes, time.monotonic()
        taken = before_bytes - least_bytes
        if taken > _BLOCK_BYTES and time.monotonic() - since_s > _STILL_S:
            return taken
    raise LabError(
        "the guest sent no free page hints",
        reason=f"migration is {_migration(vm)}; free memory fell by {before_bytes - least_bytes}",
    )


def _await(holds: Callable[[], bool], awaited: str) -> None:
    deadline_s = time.monotonic() + _WAIT_S
    while not holds():
        if time.monotonic() > deadline_s:
            raise LabError(f"waited in vain for {awaited}")
        time.sleep(0.1)
