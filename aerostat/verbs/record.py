"""`aerostat record`: capture one side of a VM, or every VM of a host, until told to stop.

Also runs inside an emulated guest, where every import costs seconds: keep them few and late.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from aerostat.judge import require_whole
from aerostat.options import PATH, force_option, talk_options
from aerostat.output import refuse_existing
from aerostat.progress import progress_on_stderr
from aerostat.record_options import (
    capture_options,
    detail_options,
    flight_options,
    host_options,
    prove_options,
    service_options,
    storage_options,
    what_options,
)
from aerostat.recording import Listeners, listeners
from aerostat.stop import stop_on_signal
from tracer.trace.errors import ExitCode
from tracer.trace.progress import Progress


@click.command("record")
@what_options
@click.option("-o", "--output", type=PATH, help="The trace to make, NAME.balloon.")
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
    Exit code 5 means that the trace is there but events are missing.

    \b
    Examples:
      aerostat record --pid 4242 -o host.balloon
      aerostat record --pid 4242 -o host.balloon --detail calls --duration 30s
      aerostat record --pid 4242 -o host.balloon --flight 60s --stuck 10s
      aerostat record --guest -o guest.balloon
      aerostat record --prove
    """
    if given["prove"]:
        return _prove(given)
    if given["as_json"]:
        raise click.UsageError("--json goes with --prove: a capture's result is its trace")
    if given["output"] is None:
        raise click.UsageError("give the trace to make: -o NAME.balloon")
    if given["guest"] == (given["pid"] is not None):
        raise click.UsageError("give either --pid PID or --guest")
    if given["probes"] is not None and not given["guest"]:
        raise click.UsageError("--probes is for --guest; the host's probes are chosen by cost")
    output: Path = given["output"]
    refuse_existing(output, force=given["force"])
    common = capture_options(given)
    with (
        stop_on_signal(keep=given["flight"] is not None) as (stop, keep),
        progress_on_stderr(verbose=given["verbose"], quiet=given["quiet"]) as progress,
        listeners(given) as told,
    ):
        common |= {**told.hooks(), "keep": keep}
        if given["guest"]:
            fentry = None if given["probes"] is None else given["probes"] == "fentry"
            _record_guest(common, fentry, progress, stop)
        else:
            _record_host({**common, **host_options(given), "pid": given["pid"]}, progress, stop)
        for trace in told.kept if given["flight"] is not None else [output]:
            _judge(trace, told)
    return ExitCode.OK


def _prove(given: dict[str, Any]) -> ExitCode:
    """Kill recorders instead of recording."""
    if given["guest"]:
        raise click.UsageError("--prove goes without --guest")
    from aerostat.prove import prove_record

    with progress_on_stderr(verbose=given["verbose"], quiet=given["quiet"]) as progress:
        return prove_record(
            given["output"], given["pid"], given["duration"], progress, given["as_json"]
        )


def _judge(trace: Path, told: Listeners) -> None:
    """Raise where a trace is not whole."""
    # Only what the recorder loads anyway: the reader would cost an emulated guest seconds.
    from tracer.trace.manifest import Manifest

    require_whole(trace, Manifest.from_json((trace / "manifest.json").read_bytes()))
    told.say(f"{trace} is complete; see: aerostat show {trace}")


def _record_guest(
    options: dict[str, Any], fentry: bool | None, progress: Progress, stop: threading.Event
) -> None:
    """Attach the probes while the libraries that write the trace are still being loaded.

    Both take seconds in an emulated guest, and the compiler runs outside the interpreter's lock.
    """
    from tracer.guest_probes import attach_driver

    with ThreadPoolExecutor(1) as worker:
        attaching = worker.submit(attach_driver, fentry=fentry)
        from tracer.guest import GuestOptions, record_guest

        driver = attaching.result()
    record_guest(GuestOptions(**options), progress, stop, driver)


def _record_host(options: dict[str, Any], progress: Progress, stop: threading.Event) -> None:
    """Record, and close the ledger of the one side there is."""
    from tracer.host import VmOptions, record_host
    from tracer.merge import settle
    from tracer.privilege import require_root

    # Before the process is looked at: without root that fails for a lesser reason.
    require_root(f"process {options['pid']}")
    trace = record_host(VmOptions(**options), progress, stop)
    if options["flight"] is None:
        settle(trace)
