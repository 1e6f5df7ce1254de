"""What recording costs the VM: the same move of the balloon with and without probes."""

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab.balloon import Move, move
from lab.recorders import GuestRecorder, HostCapture, host_recorder
from lab.session import LabOptions, open_vm
from lab.vm import LabVm
from tracer.trace.progress import Progress, silent


@dataclass(frozen=True)
class Overhead:
    """Wall times of the balloon's moves, pair by pair.

    Attributes:
        detail: What the traced side recorded.
        target_bytes: Guest memory at the end of each inflate.
        untraced_inflate_ns: One inflate per pair, no probe attached.
        traced_inflate_ns: The same with both sides recorded.
        untraced_deflate_ns: One deflate per pair, no probe attached.
        traced_deflate_ns: The same with both sides recorded.
    """

    detail: str
    target_bytes: int
    untraced_inflate_ns: tuple[int, ...]
    traced_inflate_ns: tuple[int, ...]
    untraced_deflate_ns: tuple[int, ...]
    traced_deflate_ns: tuple[int, ...]


def measure_overhead(
    options: LabOptions, pairs: int, seed: int = 1, progress: Progress = silent
) -> Overhead:
    """Boot one VM and move its balloon to a quarter of its memory and back, twice per pair.

    Which of a pair comes first is drawn anew each time, so that a drift of the machine or of the
    guest's memory falls on both. One pair more is run first and thrown away: the first inflate
    touches memory that the later ones find touched.

    Args:
        options: The VM and the detail to record; its output is not used.
        pairs: How many pairs to measure.
        seed: Of the order within the pairs.
        progress: Told how many pairs are done.

    Raises:
        AerostatError: The VM or a recorder failed.
    """
    target_bytes = options.memory_bytes // 4
    order = random.Random(seed)
    seen: dict[bool, list[tuple[Move, Move]]] = {False: [], True: []}
    with open_vm(options, progress) as vm:
        for pair in range(pairs + 1):
            progress("pairs", pair, pairs + 1)
            for traced in order.sample((False, True), 2):
                seen[traced].append(_moves(vm, options, target_bytes, traced=traced))
    plain, probed = seen[False][1:], seen[True][1:]
    return Overhead(
        detail=options.detail,
        target_bytes=target_bytes,
        untraced_inflate_ns=tuple(down.wall_ns for down, _ in plain),
        traced_inflate_ns=tuple(down.wall_ns for down, _ in probed),
        untraced_deflate_ns=tuple(up.wall_ns for _, up in plain),
        traced_deflate_ns=tuple(up.wall_ns for _, up in probed),
    )


def _moves(vm: LabVm, options: LabOptions, target_bytes: int, *, traced: bool) -> tuple[Move, Move]:
    if not traced:
        return move(vm.qmp, target_bytes), move(vm.qmp, options.memory_bytes)
    with tempfile.TemporaryDirectory(prefix="aerostat-overhead-") as work:
        guest = GuestRecorder(vm)
        guest.start()
        capture = HostCapture(
            Path(work) / "host.balloon", options.detail, force=False, scenario="overhead"
        )
        with host_recorder(vm, capture, silent) as host:
            host.wait_ready()
            guest.wait_ready()
            moves = move(vm.qmp, target_bytes), move(vm.qmp, options.memory_bytes)
            guest.stop()
            host.stop()
        return moves
