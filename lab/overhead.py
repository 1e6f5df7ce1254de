"""What recording costs the VM: the same moves of the balloon, with and without probes."""

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lab.balloon import move
from lab.errors import LabError
from lab.recorders import GuestRecorder, HostCapture, host_recorder
from lab.session import LabOptions, open_vm
from lab.vm import LabVm
from tracer.trace.progress import Progress, silent
from tracer.trace.reader import open_trace


@dataclass(frozen=True)
class Traced:
    """What is attached while the balloon moves.

    Attributes:
        name: How to call it.
        detail: What the host records (`requests`, `discards`, `calls`); None attaches nothing.
        guest: Whether the guest's side is recorded too.
    """

    name: str
    detail: str | None = None
    guest: bool = False


UNTRACED = Traced("untraced")


@dataclass(frozen=True)
class Moves:
    """Times of one inflate and the deflate after it.

    Attributes:
        inflate_ns: Wall time of the inflate.
        deflate_ns: Wall time of the deflate.
        inflate_cpu_ns: CPU time of QEMU's main thread, which serves the balloon, over the inflate.
            Where the guest is emulated this says more than the wall, most of which is the guest's.
        probes_ns: What the host's probes took of both moves: each probe's hits times what one hit
            was measured to cost, the trap included. None where nothing was recorded, or a probe
            that fired has no measured cost.
    """

    inflate_ns: int
    deflate_ns: int
    inflate_cpu_ns: int
    probes_ns: float | None = None


def measure_overhead(
    options: LabOptions,
    sides: Sequence[Traced],
    pairs: int,
    seed: int = 1,
    progress: Progress = silent,
) -> dict[str, tuple[Moves, ...]]:
    """Boot one VM and move its balloon to half of its memory and back, once per side and round.

    The order within a round is drawn anew each time, so that a drift of the machine or of the
    guest's memory falls on every side. One round more is run first and thrown away: the first
    inflate touches memory that the later ones find touched.

    Args:
        options: The VM; its output and detail are not used.
        sides: What to compare.
        pairs: How many rounds to measure.
        seed: Of the order within the rounds.
        progress: Told how many rounds are done.

    Returns:
        The rounds of each side, in order, by its name.

    Raises:
        AerostatError: The VM or a recorder failed.
    """
    order = random.Random(seed)
    seen: dict[str, list[Moves]] = {side.name: [] for side in sides}
    with open_vm(options, progress) as vm:
        for pair in range(pairs + 1):
            progress("rounds", pair, pairs + 1)
            for side in order.sample(list(sides), len(sides)):
                seen[side.name].append(_measured(vm, side))
    return {name: tuple(moves[1:]) for name, moves in seen.items()}


def _move(vm: LabVm) -> Moves:
    begin_ns = _main_thread_ns(vm.pid)
    inflate = move(vm.qmp, vm.options.memory_bytes // 2)
    cpu_ns = _main_thread_ns(vm.pid) - begin_ns
    deflate = move(vm.qmp, vm.options.memory_bytes)
    return Moves(inflate.wall_ns, deflate.wall_ns, cpu_ns)


def _main_thread_ns(pid: int) -> int:
    """CPU time of a process's first thread (first field of schedstat, since 2.6.9)."""
    path = Path(f"/proc/{pid}/task/{pid}/schedstat")
    try:
        return int(path.read_text().split()[0])
    except OSError as error:
        raise LabError(f"cannot read {path}", reason=str(error)) from error


def _measured(vm: LabVm, side: Traced) -> Moves:
    """Move the balloon while it is recorded into a trace that is thrown away."""
    if side.detail is None:
        return _move(vm)
    with tempfile.TemporaryDirectory(prefix="aerostat-overhead-") as work:
        bundle = Path(work) / "host.balloon"
        with _recorded(vm, HostCapture(bundle, side.detail, False, "overhead"), side.guest):
            moves = _move(vm)
        return replace(moves, probes_ns=_probes_ns(bundle))


@contextmanager
def _recorded(vm: LabVm, capture: HostCapture, with_guest: bool) -> Iterator[None]:
    """Record while the block runs."""
    guest = GuestRecorder(vm)
    if with_guest:
        guest.start()
    with host_recorder(vm, capture, silent) as host:
        host.wait_ready()
        if with_guest:
            guest.wait_ready()
        yield
        if with_guest:
            guest.stop()
        host.stop()


def _probes_ns(bundle: Path) -> float | None:
    probes = open_trace(bundle).manifest.sides["host"].probes
    fired = [probe for probe in probes if probe.hits]
    if any(probe.cost_ns is None for probe in fired):
        return None
    return sum((probe.hits or 0) * (probe.cost_ns or 0.0) for probe in fired)
