"""`aerostat record`: capture one side of a VM until told to stop.

Also runs inside an emulated guest, where every import costs seconds: keep them few and late.
"""

from pathlib import Path

import click

from aerostat.options import PATH, duration, force_option, talk_options
from aerostat.output import refuse_existing

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
@click.option("--duration", type=duration, help="Stop after this long, such as 30s or 5m.")
@click.option("--ready-file", type=PATH, help="Make this file once every probe is attached.")
@force_option
@talk_options
def command(
    pid: int | None,
    guest: bool,
    output: Path,
    detail: str,
    duration: int | None,
    ready_file: Path | None,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    r"""Record what the balloon of a running VM does, from the host or in the guest.

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
    refuse_existing(output, force=force)
    raise NotImplementedError
