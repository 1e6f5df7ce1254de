"""`aerostat import`: put a guest's recording beside the host's, salvage a torn one, or copy one."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from aerostat.judge import require_whole
from aerostat.options import PATH, TRACE, force_option
from aerostat.output import printable, warn
from tracer.trace.errors import ExitCode

if TYPE_CHECKING:
    from tracer.trace.reader import Trace
    from tracer.trace.salvage import SalvageReport

_EITHER = "give either --into HOST or -o WHOLE"


@click.command("import")
@click.argument("source", metavar="TRACE", type=TRACE)
@click.option("--into", metavar="HOST", type=TRACE, help="The host's trace, which is added to.")
@click.option("-o", "--output", metavar="WHOLE", type=PATH, help="The trace to make.")
@click.option(
    "--absolute/--delta",
    "form",
    default=None,
    help="With -o: copy a trace with addresses and times as absolute numbers, which every "
    "tool reads, or as differences, which take less space.",
)
@force_option
def command(
    source: Path, into: Path | None, output: Path | None, form: bool | None, force: bool
) -> ExitCode:
    """Copy TRACE, which is only read, into another trace.

    With --into, TRACE was recorded in a guest, and HOST on its host at the same time. HOST then
    holds both sides, and `aerostat show` can split the time of a request into stages. Exit code 5
    means that it is known to miss events, or that its ledger does not balance.

    With -o, TRACE is torn: its recorder was killed, or a segment is damaged. All that is whole goes
    to WHOLE, which other tools can open, in the form that it had, but which stays marked as
    incomplete. Exit code 5 means that something could not be kept, or was lost before.

    With -o and --absolute or --delta, TRACE is whole, or was made so. WHOLE is the same trace in
    the form that `record` stores without or with --delta. Exit code 5 means that it is known to
    miss events.

    \b
    Examples:
      aerostat import guest.balloon --into host.balloon
      aerostat import torn.balloon -o whole.balloon
      aerostat import --absolute small.balloon -o for-pandas.balloon
    """
    if into is not None and output is not None:
        raise click.UsageError(_EITHER)
    if into is not None:
        if force:
            raise click.UsageError("--force goes with -o; a side is never replaced")
        if form is not None:
            raise click.UsageError("--absolute and --delta go with -o")
        from tracer.account.merge import merge_sides
        from tracer.trace.reader import open_trace

        merged = merge_sides(into, source)
        _warn_of_missing(open_trace(into))
        click.echo(f"{into} now holds both sides; see: aerostat show {into}", err=True)
        require_whole(into, merged)
        return ExitCode.OK
    if output is None:
        raise click.UsageError(_EITHER)
    if form is not None:
        return _restate(source, output, absolute=form, force=force)
    from tracer.trace.salvage import salvage

    report = salvage(source, output, force=force)
    return _tell(report)


def _restate(source: Path, output: Path, *, absolute: bool, force: bool) -> ExitCode:
    """Copy a trace in one form, and say how many segments had the other."""
    from tracer.trace.missing import missing_events
    from tracer.trace.reader import open_trace
    from tracer.trace.restate import restate

    made = restate(source, output, delta=not absolute, force=force)
    words = "absolute numbers" if absolute else "differences"
    click.echo(
        f"{output} stores {words}: {made.written_anew} of {made.segments} segments written anew, "
        f"{made.before_bytes:,} bytes before, {made.after_bytes:,} now",
        err=True,
    )
    copy = open_trace(output)
    _warn_of_missing(copy)
    return ExitCode.OK if missing_events(copy) is None else ExitCode.CAPTURE_INCOMPLETE


def _tell(report: "SalvageReport") -> ExitCode:
    """Say what was kept and what was lost."""
    from tracer.trace.findings import Severity
    from tracer.trace.reader import open_trace

    for finding in report.findings:
        click.echo(f"{finding.severity}: {printable(finding.text)}", err=True)
    trace = open_trace(report.path)
    _warn_of_missing(trace)
    rows = ", ".join(f"{count:,} {table}" for table, count in report.rows.items())
    lost = f"{report.dropped_bytes:,} bytes dropped"
    click.echo(f"{report.path} keeps {rows}; {lost}; see: aerostat show {report.path}", err=True)
    has_error = any(finding.severity is Severity.ERROR for finding in report.findings)
    is_lossy = bool(trace.losses) or trace.manifest.is_cut_short
    whole = not report.dropped_bytes and not has_error and not is_lossy
    return ExitCode.OK if whole else ExitCode.CAPTURE_INCOMPLETE


def _warn_of_missing(trace: "Trace") -> None:
    """Say what the trace that was made is known to lack."""
    from tracer.trace.missing import missing_events

    missing = missing_events(trace)
    if missing is not None:
        warn(f"{trace.path} {missing}")
