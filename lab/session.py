"""One lab session: boot, record both sides, run a scenario, merge, shut down.

From the command line this is `aerostat lab`; from Python:

    run_lab(LabOptions(output=Path("lab.balloon"), scenario="inflate-deflate"))

Recording needs root and BCC. With `record=False` neither is needed. To run several scenarios, or
the same one with and without recorders, on one boot, enter `open_vm` and call `run_scenario` and
`record_scenario` yourself.
"""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from lab.accelerator import proven_accelerator
from lab.errors import LabError
from lab.pairs import DEFAULT_PAIR, Kernel, Qemu, ensure_pair, find_kernel
from lab.qemu_command import MIB, VmOptions
from lab.recorders import GuestRecorder, HostCapture, host_recorder
from lab.scenarios import DEFLATES_ON_OOM, ScenarioOutcome, check_scenario, run_scenario
from lab.vm import LabVm
from tracer.trace.progress import Progress, silent

SMALLEST_MEMORY_BYTES = 512 * MIB
"""Below it the guest has no room for a recorder and a balloon."""


@dataclass(frozen=True)
class LabOptions:
    """What a session does.

    Attributes:
        output: The trace to write; not used when `record` is false.
        scenario: A key of `lab.scenarios.SCENARIOS`.
        memory_bytes: Guest memory; a multiple of 1 MiB, 512 MiB or more.
        vcpus: Virtual CPUs.
        force: Replace an existing trace.
        record: Attach recorders; false runs the same scenario untraced.
        detail: How much of the host's discards to keep.
        pair: A key of `lab.pairs.PAIRS`.
        qemu: Emulator to use in place of the pair's.
        kernel: Root of an unpacked kernel package to use in place of the pair's.
        accelerator: `kvm` or `tcg`; None takes KVM where it is proven to boot.
        deflate_on_oom: Let the guest take memory back when it runs out; always so for
            the scenarios that run it out.
    """

    output: Path
    scenario: str = "inflate-deflate"
    memory_bytes: int = 2048 * MIB
    vcpus: int = 2
    force: bool = False
    record: bool = True
    detail: str = "discards"
    pair: str = DEFAULT_PAIR
    qemu: Path | None = None
    kernel: Path | None = None
    accelerator: str | None = None
    deflate_on_oom: bool = False


@dataclass(frozen=True)
class LabOutcome:
    """What came of a session.

    Attributes:
        trace: The merged bundle, or None for an untraced session.
        scenario: What the scenario did and how long the balloon took.
        qemu_version: As the running emulator says.
        guest_release: As the running guest says.
        accelerator: What the guest ran on.
        boot_ns: From starting QEMU to the agent's first word.
    """

    trace: Path | None
    scenario: ScenarioOutcome
    qemu_version: str
    guest_release: str
    accelerator: str
    boot_ns: int


def run_lab(options: LabOptions, progress: Progress = silent) -> LabOutcome:
    """Run one session from boot to shutdown.

    Args:
        options: What to do.
        progress: Told about each phase.

    Returns:
        The outcome; the trace at `options.output` holds both sides.

    Raises:
        AerostatError: Anything failed. No process is left; a trace that was begun stays on disk,
            marked as not complete.
    """
    check_scenario(options.scenario)
    _refuse_existing(options)
    vm = open_vm(options, progress)
    start_ns = time.monotonic_ns()
    with vm:
        boot_ns = time.monotonic_ns() - start_ns
        if options.record:
            scenario = record_scenario(vm, options, progress)
        else:
            scenario = run_scenario(options.scenario, vm, progress)
        return LabOutcome(
            trace=options.output if options.record else None,
            scenario=scenario,
            qemu_version=vm.qmp.version(),
            guest_release=vm.agent.release,
            accelerator=vm.options.accelerator,
            boot_ns=boot_ns,
        )


def open_vm(options: LabOptions, progress: Progress = silent) -> LabVm:
    """Return the VM a session wants, fetched and built but not booted; enter it to boot.

    Raises:
        AerostatError: The kernel, the emulator or the guest disk cannot be had.
    """
    if options.memory_bytes < SMALLEST_MEMORY_BYTES or options.memory_bytes % MIB:
        raise LabError(
            f"a lab VM cannot have {options.memory_bytes} bytes of memory",
            remedy="use a multiple of 1 MiB, 512 MiB or more",
        )
    qemu, kernel = _parts(options, progress)
    wanted = VmOptions(
        qemu=qemu,
        kernel=kernel,
        memory_bytes=options.memory_bytes,
        vcpus=options.vcpus,
        accelerator=options.accelerator or "tcg",
        # A starved kernel would kill the recorder and then panic; this gives it some back.
        deflate_on_oom=options.deflate_on_oom or options.scenario in DEFLATES_ON_OOM,
    )
    if options.accelerator is None:
        wanted = replace(wanted, accelerator=proven_accelerator(wanted, progress))
    return LabVm(wanted, progress)


def record_scenario(vm: LabVm, options: LabOptions, progress: Progress = silent) -> ScenarioOutcome:
    """Run a scenario on a booted VM with both sides recorded into `options.output`.

    The guest's recorder takes seconds to start, so the host's starts meanwhile.

    Raises:
        AerostatError: A recorder, the scenario or the merge failed.
    """
    _refuse_existing(options)
    output = options.output
    guest = GuestRecorder(vm)
    progress("attach probes")
    guest.start()
    capture = HostCapture(output, options.detail, options.force, options.scenario)
    with host_recorder(vm, capture, progress) as host:
        host.wait_ready()
        guest.wait_ready()
        outcome = run_scenario(options.scenario, vm, progress)
        progress("stop recorders")
        guest.stop()
        host.stop()
    with tempfile.TemporaryDirectory(prefix=".guest-", dir=output.parent) as work:
        progress("merge both sides")
        from tracer.account.merge import merge_sides

        bundle = Path(work) / "guest.balloon"
        guest.copy_out(bundle)
        merge_sides(output, bundle)
    return outcome


def _parts(options: LabOptions, progress: Progress) -> tuple[Qemu, Kernel]:
    if options.qemu is not None and options.kernel is not None:
        return Qemu(options.qemu), find_kernel(options.kernel)
    pair = ensure_pair(options.pair, progress)
    qemu = pair.qemu if options.qemu is None else Qemu(options.qemu)
    kernel = pair.kernel if options.kernel is None else find_kernel(options.kernel)
    return qemu, kernel


def _refuse_existing(options: LabOptions) -> None:
    if options.record and options.output.exists() and not options.force:
        raise LabError(f"{options.output} exists", remedy="name another output, or use --force")
