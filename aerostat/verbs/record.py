"""`aerostat record`: capture one side of a VM, or every VM of a host, until told to stop.

Also runs inside an emulated guest, where every import costs seconds: keep them few and late.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aerostat.judge import require_whole
from aerostat.options import PATH, force_option, refuse_others, talk_options
from aerostat.output import refuse_existing
from aerostat.progress import progress_on_stderr
from aerostat.record_options import (
    HOST_ONLY,
    capture_options,
    detail_options,
    flight_options,
    guest_options,
    host_options,
    prove_options,
    service_options,
    storage_options,
    what_options,
)
from aerostat.recording import Ended, Listeners, listeners
from aerostat.steady_memory import stay_small
from aerostat.stop import stop_on_signal
from aerostat.unprivileged import recorder_needs, then_drop
from tracer.trace.errors import ExitCode
from tracer.trace.progress import Progress

if TYPE_CHECKING:
    from tracer.vms.discover import Changes

_PROVE_TAKES = frozenset({"prove", "output", "pid", "duration", "as_json", "quiet", "verbose"})
"""Parameters that mean something beside --prove; any other is refused rather than ignored."""


@click.command("record")
@what_options
@click.option("-o", "--output", type=PATH, help="The trace to make; a directory with --all.")
@detail_options
@storage_options
@flight_options
@service_options
@prove_options
@force_option
@talk_options
def command(**given: Any) -> ExitCode:
    """Record what the balloon of a running VM does, from the host or in the guest.

    Runs until Ctrl-C, until --duration has passed, or until the VM ends, and then closes the trace.
    Exit code 5 means that the trace is there but events are missing. `aerostat vms` lists the VMs.

    \b
    Examples:
      aerostat record --vm web-1 -o web-1.balloon
      aerostat record --pid 4242 -o host.balloon --detail calls --duration 30s
      aerostat record --vm web-1 -o web-1.balloon --flight 60s --stuck 10s
      aerostat record --all -o traces.d --budget 1G --metrics-listen :9105
      aerostat record --guest -o guest.balloon
      aerostat record --prove
    """
    if given["prove"]:
        return _prove(given)
    _check(given)
    stay_small()
    output: Path = given["output"]
    common = capture_options(given)
    with (
        stop_on_signal(keep=given["flight"] is not None) as (stop, keep),
        progress_on_stderr(verbose=given["verbose"], quiet=given["quiet"]) as progress,
        listeners(given) as told,
    ):
        common |= {**told.hooks(), "keep": keep}
        common["ready"] = then_drop(common["ready"], lambda: recorder_needs(given), told.insist)
        if given["guest"]:
            _record_guest({**common, **guest_options(given)}, progress, stop)
        elif given["every"]:
            _record_all({**common, **host_options(given)}, told, progress, stop)
            return ExitCode.OK
        else:
            _record_host(given, {**common, **host_options(given)}, told, progress, stop)
        for trace in told.kept if given["flight"] is not None else [output]:
            _judge(trace, told)
    return ExitCode.OK


def _prove(given: dict[str, Any]) -> ExitCode:
    """Kill recorders instead of recording."""
    refuse_others(click.get_current_context(), _PROVE_TAKES, "--prove")
    if given["duration"] is not None and given["pid"] is None:
        raise click.UsageError("--duration goes with --prove where --pid names a VM to record")
    from aerostat.prove import prove_record

    with progress_on_stderr(verbose=given["verbose"], quiet=given["quiet"]) as progress:
        return prove_record(
            given["output"], given["pid"], given["duration"], progress, given["as_json"]
        )


def _check(given: dict[str, Any]) -> None:
    """Refuse options that do not go together, and an output that is there."""
    if given["as_json"]:
        raise click.UsageError("--json goes with --prove: a capture's result is its trace")
    if given["output"] is None:
        raise click.UsageError("say where to: -o NAME.balloon, or a directory with --all")
    by_name = given["name"] is not None or given["uuid"] is not None or given["pid"] is not None
    if [by_name, given["every"], given["guest"]].count(True) != 1:
        raise click.UsageError("give one of --vm, --uuid, --pid; or --all; or --guest")
    if given["probes"] is not None and not given["guest"]:
        raise click.UsageError("--probes is for --guest; the host's probes are chosen by cost")
    for name, why in HOST_ONLY.items():
        if given["guest"] and given[name] is not None:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} does not go with --guest: {why}; leave it out")
    if not given["every"]:
        refuse_existing(given["output"], force=given["force"])
    elif given["force"]:
        raise click.UsageError("--all replaces nothing: each trace gets a name of its own")


def _judge(trace: Path, told: Listeners) -> None:
    """Raise where a trace is not whole."""
    # Only what the recorder loads anyway: the reader would cost an emulated guest seconds.
    from tracer.trace.manifest import Manifest

    require_whole(trace, Manifest.from_json((trace / "manifest.json").read_bytes()))
    told.say(f"{trace} is complete; see: aerostat show {trace}")


def _record_guest(options: dict[str, Any], progress: Progress, stop: threading.Event) -> None:
    """Attach the probes while the libraries that write the trace are still being loaded.

    Both take seconds in an emulated guest, and the compiler runs outside the interpreter's lock.
    """
    from tracer.sites.guest_probes import attach_driver

    with ThreadPoolExecutor(1) as worker:
        given = {name: options[name] for name in ("fentry", "ring_bytes")}
        attaching = worker.submit(attach_driver, **given)
        from tracer.guest_side.guest import GuestOptions, record_guest

        driver = attaching.result()
    record_guest(GuestOptions(**options), progress, stop, driver)


def _record_host(
    given: dict[str, Any],
    options: dict[str, Any],
    told: Listeners,
    progress: Progress,
    stop: threading.Event,
) -> None:
    """Record one VM, and close the ledger of the one side there is, of each bundle."""
    from tracer.account.merge import settle
    from tracer.engine.privilege import LOAD, require
    from tracer.host_side.host import VmOptions, record_host
    from tracer.host_side.host_session import REPLACED
    from tracer.vms.discover import find_vm

    # Before the process is looked at: without privilege that fails for a lesser reason.
    require("a VM", LOAD)
    vmm = find_vm(pid=given["pid"], name=given["name"], uuid=given["uuid"])
    end = record_host(VmOptions(**options, vmm=vmm), progress, stop)
    if end.reason == REPLACED:
        told.replaced(vmm)
    for bundle in told.kept if end.trace is None else [end.trace]:
        settle(bundle)


def _record_all(
    options: dict[str, Any], told: Listeners, progress: Progress, stop: threading.Event
) -> None:
    """Record every VM of the host; say of each what became of it.

    Raises:
        CaptureIncompleteError: A VM could not be recorded, or its trace is not whole.
    """
    from tracer.host_side.host import HostOptions, record_all
    from tracer.vms.discover import Watch

    options["output"].mkdir(parents=True, exist_ok=True)
    ended = Ended(told)
    watch = Watch()

    def changes() -> "Changes":
        found = watch.poll()
        for vmm in found.doubted:
            told.doubt(vmm)
        return found

    record_all(HostOptions(**options), changes, ended.take, progress, stop)
    ended.judge(told.kept)
