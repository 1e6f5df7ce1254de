"""Scenarios of the balloon itself, and of free page reporting."""

from lab.balloon import Move, try_move
from lab.errors import LabError
from lab.steps import WORKLOAD, leaving, share_of, through, workload
from lab.vm import LabVm
from tracer.trace.progress import Progress

_SETTLE_S = 5.0


def inflate_deflate(vm: LabVm, progress: Progress) -> list[Move]:
    """Take three quarters of the guest's memory (all but 448 MiB if less), and give it back."""
    full = vm.options.memory_bytes
    return through(vm, [leaving(full, 0.25), full], progress)


def stepwise(vm: LabVm, progress: Progress) -> list[Move]:
    """Take memory in three steps of unlike size, give back one, take again, and give all back."""
    full = vm.options.memory_bytes
    shares = (0.75, 0.6, 0.3, 0.5, 0.4)
    return through(vm, [*(leaving(full, share) for share in shares), full], progress)


def reporting(vm: LabVm, progress: Progress) -> list[Move]:
    """Allocate and free memory in the guest and wait for free page reporting; no target moves."""
    size = str(share_of(vm.options.memory_bytes, 0.25))
    progress("churn guest memory")
    vm.agent.run([vm.agent.python, WORKLOAD, "churn", size, "2", str(_SETTLE_S)], 180)
    return []


def fragmented(vm: LabVm, progress: Progress) -> list[Move]:
    """Break free memory into single pages, take all of those and some more, and give it back."""
    full = vm.options.memory_bytes
    available = vm.agent.counters()["MemAvailable_bytes"]
    progress("fragment guest memory")
    with workload(vm.agent, "fragment", str(share_of(available, 0.4))):
        return through(vm, [full - share_of(available, 0.3), full], progress)


def out_of_puff(vm: LabVm, progress: Progress) -> list[Move]:
    """Ask for more than the guest can give, wait until it stands still, and give all back.

    Raises:
        LabError: The guest reached the target.
    """
    full = vm.options.memory_bytes
    target = share_of(full, 1 / 32)
    progress("inflate", 0, full - target)
    stuck = try_move(vm.qmp, target)
    if stuck.is_reached:
        raise LabError(f"the guest gave all but {target} bytes, which was meant to be too much")
    return [stuck, *through(vm, [full], progress)]
