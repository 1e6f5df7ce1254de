"""`aerostat doctor`: which probes work on this machine, what each costs, what mends the others."""

from typing import TYPE_CHECKING

import click

from aerostat.options import json_option, talk_options
from aerostat.output import emit_json, plain
from aerostat.progress import progress_on_stderr
from tracer.trace.errors import ExitCode

if TYPE_CHECKING:
    from tracer.doctor import Check


@click.command("doctor")
@click.option("--pid", type=click.IntRange(min=1), help="Also try the probes of this running QEMU.")
@json_option
@talk_options
def command(pid: int | None, as_json: bool, quiet: bool, verbose: bool) -> ExitCode:
    """Predict every probe from this machine's files, then prove it by attaching it.

    Whatever is attached is taken away again. Exit code 6 means that neither side of a VM can be
    recorded here.

    \b
    Examples:
      aerostat doctor
      aerostat doctor --pid 4242
      aerostat doctor --json
    """
    from tracer.doctor import can_record, diagnose

    with progress_on_stderr(verbose=verbose, quiet=quiet) as progress:
        checks = diagnose(pid, progress)
    able = can_record(checks)
    if as_json:
        emit_json({"can_record": able, "checks": plain(checks)})
    else:
        draw(checks, able=able)
    return ExitCode.OK if able else ExitCode.MISSING_PRIVILEGE


def draw(checks: "list[Check]", *, able: bool) -> None:
    """Draw one row per check, group by group."""
    from aerostat import render

    word = {True: "yes", False: "no", None: render.NOT_OBSERVED}
    columns = ("<check", "<way", "<predicted", "<proven", "cost of a hit", "<reason", "<try")
    for group in dict.fromkeys(check.group for check in checks):
        rows = [
            (
                check.name,
                check.way,
                word[check.predicted],
                word[check.proven],
                render.ns(check.cost_ns),
                check.reason,
                check.remedy,
            )
            for check in checks
            if check.group == group
        ]
        render.draw(group, columns, rows)
    render.say(
        "This machine can record."
        if able
        else "Neither side of a VM can be recorded here as it is."
    )
