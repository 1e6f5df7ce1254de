"""`aerostat lab`: boot a VM made for tracing, and record a scenario from both sides."""

from pathlib import Path

import click

from aerostat.options import PATH, force_option, size, talk_options
from aerostat.output import refuse_existing

SCENARIOS = ("inflate-deflate", "stepwise", "reporting", "fragmented", "out-of-puff")
PAIRS = ("7.2", "10.0")


@click.command("lab")
@click.option(
    "--scenario",
    type=click.Choice(SCENARIOS),
    default="inflate-deflate",
    show_default=True,
    help="What happens to the guest's memory.",
)
@click.option("--memory", type=size, default="2G", show_default=True, help="The guest's memory.")
@click.option(
    "--pair",
    type=click.Choice(PAIRS),
    default=PAIRS[0],
    show_default=True,
    help="QEMU's version, with the guest kernel that goes with it.",
)
@click.option(
    "-o", "--output", type=PATH, default="lab.balloon", show_default=True, help="The trace to make."
)
@click.option(
    "--no-record", is_flag=True, help="Run the scenario without a probe, to see what probes cost."
)
@click.option(
    "--demo", is_flag=True, help="Afterwards show the trace, replay it and compare strategies."
)
@force_option
@talk_options
def command(
    scenario: str,
    memory: int,
    pair: str,
    output: Path,
    no_record: bool,
    demo: bool,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    r"""Boot a guest, record both sides of a scenario, join them and close the ledger.

    Needs root, BCC and QEMU, but no KVM: without it the guest is emulated. Its disk is built
    once, and kept in the cache directory.

    \b
    Examples:
      aerostat lab
      aerostat lab --scenario reporting --memory 1G -o reporting.balloon
      aerostat lab --demo --force -o demo.balloon
    """
    if demo and no_record:
        raise click.UsageError("--demo needs a recording; leave out --no-record")
    if not no_record:
        refuse_existing(output, force=force)
