"""`aerostat top`: what the balloons of this host do now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aerostat.options import duration, json_option
from aerostat.record_options import DETAILS, NS_PER_S
from aerostat.stop import stop_on_signal
from tracer.trace.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.vms.discover import Changes

_SHORTEST_NS = 100_000_000


@click.command("top")
@click.option("--vm", "name", metavar="NAME", help="Watch the VM of this name.")
@click.option("--uuid", help="Watch the VM with this UUID.")
@click.option("--pid", type=click.IntRange(min=1), help="Watch the VMM with this process id.")
@click.option(
    "--all", "every", is_flag=True, help="Watch every VM, also those yet to start; the default."
)
@click.option(
    "--interval",
    type=duration,
    default="2s",
    show_default=True,
    help="Time between two updates, 100ms or more.",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N updates.")
@click.option(
    "--detail",
    type=click.Choice(DETAILS[:2]),
    default="discards",
    show_default=True,
    help="requests: probe no system call; discards are not seen then.",
)
@json_option
def command(**given: Any) -> ExitCode:
    """Watch what the balloons of running VMs do: sizes, pages a second, where the time goes.

    Records nothing. On a terminal q or Ctrl-C ends it. Elsewhere it writes a table for each
    interval, and with --json a line, which is one JSON document. Exit code 5: events were lost.

    \b
    Examples:
      aerostat top
      aerostat top --vm web-1 --interval 500ms
      aerostat top --pid 4242 --interval 10s --count 6 --json
    """
    is_one = any(given[key] is not None for key in ("name", "uuid", "pid"))
    if is_one and given["every"]:
        raise click.UsageError("give one of --vm, --uuid, --pid; or --all")
    if given["interval"] < _SHORTEST_NS:
        raise click.UsageError("--interval is at least 100ms")
    from aerostat.steady_memory import stay_small

    stay_small()  # before any of these imports numpy
    from aerostat.top_outputs import open_output
    from aerostat.watching import Watching
    from tracer.engine.privilege import LOAD, require

    # Before any process is looked at: without privilege that fails for a lesser reason.
    require("a VM", LOAD)
    changes = _one(given) if is_one else _every()
    detail, interval_ns = given["detail"], given["interval"]
    with (
        stop_on_signal() as (stop, _),
        open_output(
            as_json=given["as_json"], detail=detail, interval_ns=interval_ns, on_quit=stop.set
        ) as output,
    ):
        watching = Watching(output, stop, count=given["count"], is_one=is_one)
        watching.run(changes, detail=detail, interval_s=interval_ns / NS_PER_S)
    return watching.conclude()


def _one(given: dict[str, Any]) -> Callable[[], Changes]:
    """Give one VM, once."""
    from tracer.vms.discover import Changes, find_vm

    waiting = [find_vm(pid=given["pid"], name=given["name"], uuid=given["uuid"])]

    def changes() -> Changes:
        appeared, waiting[:] = tuple(waiting), []
        return Changes(appeared, ())

    return changes


def _every() -> Callable[[], Changes]:
    """Give each VM when it is first seen, and again when it is gone."""
    from tracer.vms.discover import Watch

    return Watch().poll
