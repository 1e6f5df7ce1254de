"""Steps that scenarios are made of: moves, shares of memory, a workload in the guest."""

import contextlib
import time
from collections.abc import Iterator

from lab.agent import GuestAgent
from lab.balloon import Move, move
from lab.errors import LabError
from lab.vm import LabVm
from tracer.trace.progress import Progress

PAGE_BYTES = 4096
NEEDED_BYTES = 448 << 20
"""What an inflate leaves in any case: with 256 MiB the kernel kills the guest's recorder, whose BPF
compiler has grown it."""
WORKLOAD = "/opt/aerostat/lab/workload.py"
_LOG = "/tmp/workload.log"
_READY_TIMEOUT_S = 180.0


def through(vm: LabVm, targets: list[int], progress: Progress) -> list[Move]:
    """Move the balloon to each target in turn.

    Args:
        vm: A booted VM whose balloon is empty.
        targets: Guest memory in bytes.
        progress: Told about each move, in bytes.

    Raises:
        LabError: The guest stopped short of a target.
    """
    moves: list[Move] = []
    for target in targets:
        before = moves[-1].end_bytes if moves else vm.qmp.query_balloon()
        phase = "inflate" if target < before else "deflate"
        size = abs(target - before)
        progress(phase, 0, size)
        moves.append(move(vm.qmp, target))
        progress(phase, size, size)
    return moves


def share_of(size_bytes: int, share: float) -> int:
    """Return a share of a size, in whole pages."""
    return int(size_bytes * share) // PAGE_BYTES * PAGE_BYTES


def leaving(full_bytes: int, share: float) -> int:
    """Return a target that leaves a share of all memory, and what a recorder needs in any case."""
    return max(share_of(full_bytes, share), NEEDED_BYTES)


@contextlib.contextmanager
def workload(agent: GuestAgent, *arguments: str) -> Iterator[int]:
    """Run lab/workload.py in the guest until the block is left; enter it when the work is done.

    Args:
        agent: The guest's agent.
        arguments: Of workload.py, without the file that says it is ready, which comes last.

    Yields:
        The workload's pid.

    Raises:
        LabError: It ended before it was ready, or took too long.
    """
    ready = f"/tmp/{arguments[0]}-{time.monotonic_ns()}"
    pid = agent.spawn([agent.python, WORKLOAD, *arguments, ready], _LOG)
    try:
        _await_file(agent, pid, ready)
        yield pid
    finally:
        agent.signal(pid, "SIGKILL")
        agent.wait(pid, 10)


def _await_file(agent: GuestAgent, pid: int, path: str) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while not agent.exists(path):
        status = agent.wait(pid, 0.1)
        if status is not None:
            reason = agent.read_file(_LOG)[-2000:].decode(errors="replace").strip()
            raise LabError(f"the guest workload ended with status {status}", reason=reason)
        if time.monotonic() > deadline:
            raise LabError("the guest workload did not get ready in time")
