"""What can be done to a booted lab VM's memory; each scenario ends with the balloon empty again."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from lab.agent import GuestAgent
from lab.balloon import Move, move, try_move
from lab.errors import LabError
from lab.vm import LabVm
from tracer.trace.errors import AerostatError
from tracer.trace.progress import Progress, silent

PAGE_BYTES = 4096
SETTLE_S = 5.0
NEEDED_BYTES = 448 << 20
"""What an inflate leaves in any case: with 256 MiB the kernel kills the guest's recorder, whose BPF
compiler has grown it."""
WORKLOAD = "/opt/aerostat/lab/workload.py"
WORKLOAD_LOG = "/tmp/workload.log"
FRAGMENT_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class ScenarioOutcome:
    """What a scenario did, and how long the balloon took.

    Attributes:
        name: The scenario.
        moves: Every change of the target, in order.
        start_ns: CLOCK_MONOTONIC when it began.
        end_ns: CLOCK_MONOTONIC when it ended.
    """

    name: str
    moves: tuple[Move, ...]
    start_ns: int
    end_ns: int

    @property
    def targets(self) -> tuple[int, ...]:
        """The targets in bytes of guest memory, in order."""
        return tuple(done.target_bytes for done in self.moves)

    @property
    def inflate_wall_ns(self) -> int:
        """Time the balloon took to grow, over all moves."""
        return sum(done.wall_ns for done in self.moves if done.is_inflate)

    @property
    def deflate_wall_ns(self) -> int:
        """Time the balloon took to shrink, over all moves."""
        return sum(done.wall_ns for done in self.moves if not done.is_inflate)


def inflate_deflate(vm: LabVm, progress: Progress) -> list[Move]:
    """Take three quarters of the guest's memory (all but 448 MiB if less), and give it back."""
    full = vm.options.memory_bytes
    return _through(vm, [_leaving(full, 0.25), full], progress)


def stepwise(vm: LabVm, progress: Progress) -> list[Move]:
    """Take memory in three steps of unlike size, give back one, take again, and give all back."""
    full = vm.options.memory_bytes
    shares = (0.75, 0.6, 0.3, 0.5, 0.4)
    return _through(vm, [*(_leaving(full, share) for share in shares), full], progress)


def reporting(vm: LabVm, progress: Progress) -> list[Move]:
    """Allocate and free memory in the guest and wait for free page reporting; no target moves."""
    size = str(_share(vm.options.memory_bytes, 0.25))
    progress("churn guest memory")
    vm.agent.run([vm.agent.python, WORKLOAD, "churn", size, "2", str(SETTLE_S)], 180)
    return []


def fragmented(vm: LabVm, progress: Progress) -> list[Move]:
    """Break free memory into single pages, take all of those and some more, and give it back."""
    agent = vm.agent
    full = vm.options.memory_bytes
    available = agent.counters()["MemAvailable_bytes"]
    ready = f"/tmp/fragmented-{time.monotonic_ns()}"
    progress("fragment guest memory")
    size = str(_share(available, 0.4))
    pid = agent.spawn([agent.python, WORKLOAD, "fragment", size, ready], WORKLOAD_LOG)
    try:
        _await_file(agent, pid, ready)
        return _through(vm, [full - _share(available, 0.3), full], progress)
    finally:
        agent.signal(pid, "SIGKILL")
        agent.wait(pid, 10)


def out_of_puff(vm: LabVm, progress: Progress) -> list[Move]:
    """Ask for more than the guest can give, wait until it stands still, and give all back.

    Raises:
        LabError: The guest reached the target.
    """
    full = vm.options.memory_bytes
    target = _share(full, 1 / 32)
    progress("inflate", 0, full - target)
    stuck = try_move(vm.qmp, target)
    if stuck.is_reached:
        raise LabError(f"the guest gave all but {target} bytes, which was meant to be too much")
    return [stuck, *_through(vm, [full], progress)]


SCENARIOS: dict[str, Callable[[LabVm, Progress], list[Move]]] = {
    "inflate-deflate": inflate_deflate,
    "stepwise": stepwise,
    "reporting": reporting,
    "fragmented": fragmented,
    "out-of-puff": out_of_puff,
}


def check_scenario(name: str) -> None:
    """Refuse an unknown name before anything expensive is done.

    Raises:
        AerostatError: There is no such scenario.
    """
    if name not in SCENARIOS:
        known = ", ".join(SCENARIOS)
        raise AerostatError(f"there is no scenario named {name!r}", remedy=f"use one of: {known}")


def run_scenario(name: str, vm: LabVm, progress: Progress = silent) -> ScenarioOutcome:
    """Run one scenario on a booted VM; it may be run again on the same VM.

    Args:
        name: A key of `SCENARIOS`.
        vm: A booted VM whose balloon is empty.
        progress: Told about each phase; balloon phases count bytes.

    Raises:
        AerostatError: No such scenario, or the guest, the balloon or the monitor failed.
    """
    check_scenario(name)
    start_ns = time.monotonic_ns()
    moves = SCENARIOS[name](vm, progress)
    return ScenarioOutcome(name, tuple(moves), start_ns, time.monotonic_ns())


def _through(vm: LabVm, targets: list[int], progress: Progress) -> list[Move]:
    moves: list[Move] = []
    for target in targets:
        before = moves[-1].end_bytes if moves else vm.options.memory_bytes
        phase = "inflate" if target < before else "deflate"
        size = abs(target - before)
        progress(phase, 0, size)
        moves.append(move(vm.qmp, target))
        progress(phase, size, size)
    return moves


def _leaving(full_bytes: int, share: float) -> int:
    return max(_share(full_bytes, share), NEEDED_BYTES)


def _share(size_bytes: int, share: float) -> int:
    return int(size_bytes * share) // PAGE_BYTES * PAGE_BYTES


def _await_file(agent: GuestAgent, pid: int, path: str) -> None:
    deadline = time.monotonic() + FRAGMENT_TIMEOUT_S
    while not agent.exists(path):
        status = agent.wait(pid, 0.1)
        if status is not None:
            reason = agent.read_file(WORKLOAD_LOG)[-2000:].decode(errors="replace").strip()
            raise LabError(f"the guest workload ended with status {status}", reason=reason)
        if time.monotonic() > deadline:
            raise LabError("the guest workload did not get ready in time")
