"""`aerostat import`: put a guest's recording beside the host's, in one bundle."""

from pathlib import Path

import click

from aerostat.options import TRACE


@click.command("import")
@click.argument("guest", metavar="GUEST", type=TRACE)
@click.option(
    "--into", metavar="HOST", type=TRACE, required=True, help="The host's trace, which is added to."
)
def command(guest: Path, into: Path) -> None:
    """Copy the guest's trace GUEST into the host's trace of the same session.

    GUEST is only read. The host's trace then holds both sides, and `aerostat show` can split the
    time of a request into stages.

    \b
    Examples:
      aerostat import guest.balloon --into host.balloon
    """
    from tracer.merge import merge_sides

    merge_sides(into, guest)
    click.echo(f"{into} now holds both sides; see: aerostat show {into}", err=True)
