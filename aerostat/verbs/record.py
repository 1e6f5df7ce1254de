"""`aerostat record`: capture one side of a VM until told to stop.

Also runs inside an emulated guest, where every import costs seconds: keep them few and late.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from aerostat.judge import require_whole
from aerostat.options import PATH, duration, force_option, talk_options
from aerostat.output import refuse_existing
from aerostat.progress import progress_on_stderr
from aerostat.stop import stop_on_signal
from tracer.trace.progress import Progress

NS_PER_S = 1_000_000_000
DETAILS = ("requests", "discards", "calls")


@click.command("record")
@click.option("--pid", type=click.IntRange(min=1), help="Record the VMM with this process id.")
@click.option("--guest", is_flag=True, help="Record the driver of the guest this runs in.")
@click.option("-o", "--output", type=PATH, required=True, help="The trace to make, NAME.balloon.")
@click.option(
    "--detail",
    type=click.Choice(DETAILS),
    default="discards",
    show_default=True,
    help="How much of the host's discards to keep.",
)
@click.option(
    "--probes",
    type=click.Choice(("fentry", "kprobe")),
    help="Insist on one kind of guest probe; fentry is tried first otherwise.",
)
@click.option("--duration", type=duration, help="Stop after this long, such as 30s or 5m.")
@click.option("--ready-file", type=PATH, help="Make this file once every probe is attached.")
@force_option
@talk_options
def command(
    pid: int | None,
    guest: bool,
    output: Path,
    detail: str,
    probes: str | None,
    duration: int | None,
    ready_file: Path | None,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Record what the balloon of a running VM does, from the host or in the guest.

    Runs until Ctrl-C, until --duration has passed, or until the VM ends, and then closes the trace.
    Exit code 5 means that the trace is there but events are missing.

    \b
    Examples:
      aerostat record --pid 4242 -o host.balloon
      aerostat record --pid 4242 -o host.balloon --detail calls --duration 30s
      aerostat record --guest -o guest.balloon
    """
    if guest == (pid is not None):
        raise click.UsageError("give either --pid PID or --guest")
    if probes is not None and not guest:
        raise click.UsageError("--probes is for --guest; the host's probes have one kind each")
    refuse_existing(output, force=force)
    # Only what the recorder loads anyway: the reader would cost an emulated guest seconds.
    from tracer.trace.manifest import Manifest

    ready = _Ready(output, ready_file, quiet=quiet)
    duration_s = None if duration is None else duration / NS_PER_S
    common = {"output": output, "force": force, "duration_s": duration_s, "ready": ready}
    with stop_on_signal() as stop, progress_on_stderr(verbose=verbose, quiet=quiet) as progress:
        if pid is None:
            fentry = None if probes is None else probes == "fentry"
            trace = _record_guest(common, fentry, progress, stop)
        else:
            trace = _record_host({**common, "pid": pid, "detail": detail}, progress, stop)
    require_whole(trace, Manifest.from_json((trace / "manifest.json").read_bytes()))
    if not quiet:
        click.echo(f"aerostat: {trace} is complete; see: aerostat show {trace}", err=True)


def _record_guest(
    options: dict[str, Any], fentry: bool | None, progress: Progress, stop: threading.Event
) -> Path:
    """Attach the probes while the libraries that write the trace are still being loaded.

    Both take seconds in an emulated guest, and the compiler runs outside the interpreter's lock.
    """
    from tracer.guest_probes import attach_driver

    with ThreadPoolExecutor(1) as worker:
        attaching = worker.submit(attach_driver, fentry=fentry)
        from tracer.guest import GuestOptions, record_guest

        driver = attaching.result()
    return record_guest(GuestOptions(**options), progress, stop, driver)


def _record_host(options: dict[str, Any], progress: Progress, stop: threading.Event) -> Path:
    """Record, and close the ledger of the one side there is."""
    from tracer.host import HostOptions, record_host
    from tracer.merge import settle
    from tracer.privilege import require_root

    # Before the process is looked at: without root that fails for a lesser reason.
    require_root(f"process {options['pid']}")
    trace = record_host(HostOptions(**options), progress, stop)
    settle(trace)
    return trace


class _Ready:
    """Says that every probe is attached: to the user, and to a script by way of a file."""

    def __init__(self, output: Path, ready_file: Path | None, *, quiet: bool) -> None:
        self._output = output
        self._ready_file = ready_file
        self._quiet = quiet

    def __call__(self) -> None:
        if self._ready_file is not None:
            self._ready_file.touch()
        if not self._quiet:
            click.echo(f"aerostat: recording to {self._output}; Ctrl-C ends it", err=True)
