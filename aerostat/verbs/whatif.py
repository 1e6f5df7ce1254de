"""`aerostat whatif`: what other strategies would do with a trace, counted and not run."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from aerostat.options import BACKINGS, TRACE, json_option, strategy, window
from aerostat.output import emit_json, plain, warn
from tracer.trace.errors import ExitCode

if TYPE_CHECKING:
    from replay.whatif import Summary, WhatIf


@click.command("whatif")
@click.argument("trace", type=TRACE)
@click.option(
    "-s",
    "--strategy",
    "strategies",
    multiple=True,
    type=strategy,
    help="A strategy to count, NAME or NAME:parameter=value, or `all`; all when left out.",
)
@click.option(
    "-w",
    "--window",
    "windows",
    multiple=True,
    type=window,
    default=("1M", "16M", "256M"),
    show_default=True,
    help="How much (16M) or how long (100ms) strategies that wait may hold memory back;"
    " again for more.",
)
@click.option(
    "--backing",
    type=click.Choice(BACKINGS),
    help="What guest memory is mapped from; as in the trace when left out.",
)
@click.option("--allow-loss", is_flag=True, help="End with 0 though the trace misses events.")
@json_option
@click.pass_context
def command(
    context: click.Context,
    trace: Path,
    strategies: tuple[str, ...],
    windows: tuple[tuple[int | None, int | None], ...],
    backing: str | None,
    allow_loss: bool,
    as_json: bool,
) -> ExitCode:
    """Count the operations, bytes and requests that strategies would need for TRACE.

    Executes nothing, and measures no time. A strategy that waits is counted with its own window and
    with each that is named. A strategy of your own is given as path.py:Name. Exit code 5: the
    trace is known to miss events, so the counts are not of all that happened.

    \b
    Examples:
      aerostat whatif host.balloon
      aerostat whatif host.balloon -s range -s oracle --json
      aerostat whatif host.balloon -s deferred -w 4M -w 64M -w 1s --backing memfd
    """
    from replay.plan import context_of
    from replay.requests import load_requests, memory_map
    from replay.strategies import ALL, load_strategies, spelled_out
    from replay.strategies.deferred import Holding
    from replay.whatif import Window, what_if
    from tracer.trace.missing import missing_events, require_seen_requests
    from tracer.trace.reader import open_trace

    opened = open_trace(trace)
    require_seen_requests(opened)
    chosen = None if {*strategies} <= {ALL} else load_strategies(spelled_out(strategies))
    given = context.get_parameter_source("windows") is not ParameterSource.DEFAULT
    if given and chosen and not any(isinstance(each, Holding) for each in chosen):
        names = ", ".join(each.label for each in chosen)
        warn(f"--window has no effect: {names} hold nothing back")
    memory = context_of(memory_map(opened), backing)
    found = what_if(load_requests(opened), memory, chosen, [Window(*each) for each in windows])
    if (missing := missing_events(opened)) is not None:
        warn(f"{trace} {missing}; what is counted is not all that happened")
    if as_json:
        lost = sum(loss.count for loss in opened.losses)
        document = {"name": str(trace), **plain(found)}
        document["trace"] |= {"complete": opened.is_complete, "lost_events": lost}
        emit_json(document)
    else:
        draw(found)
    return ExitCode.OK if missing is None or allow_loss else ExitCode.CAPTURE_INCOMPLETE


def draw(found: "WhatIf") -> None:
    """Draw one row per strategy and window, and how well the trace's pages could be merged."""
    from aerostat import render

    rows: list[tuple[str, ...]] = [
        (
            summary.name.partition(":")[0],
            _window(summary),
            render.count(summary.operations),
            render.count(summary.calls),
            render.cell(summary.to_qemu, lambda share: f"{share:.4f}"),
            render.cell(summary.to_oracle, lambda ratio: f"{ratio:.1f}"),
            render.size(summary.discard_bytes),
            render.count(summary.wire_requests),
            render.size(summary.wire_bytes),
            " ".join(f"{name} {count:,}" for name, count in summary.operations_by_advice.items()),
        )
        for summary in found.strategies
    ]
    rows += [(each.name, "", "refused", *[render.NOT_OBSERVED] * 6, "") for each in found.refused]
    columns = ["<strategy", "<window", "operations", "calls", "calls x qemu", "discards x oracle"]
    columns += ["discarded"]
    columns += ["requests", "on the wire", "<by advice"]
    spare = ("on the wire", "by advice")
    title = f"whatif: counted on {found.backing} memory, not run"
    render.draw(title, columns, rows, spare=spare)
    for each in found.refused:
        render.say(f"Refused: {each.name}: {each.reason}.")
    trace = found.trace
    if not trace.pages:
        render.say("No page was inflated or deflated.")
    elif trace.rising_share is not None and trace.falling_share is not None:
        rising, falling = (
            render.percent(100 * share) for share in (trace.rising_share, trace.falling_share)
        )
        render.say(
            f"Of {trace.pages:,} balloon pages {rising} are one above the page before,"
            f" {falling} one below."
        )
        if trace.huge_share is not None:
            share = render.percent(100 * trace.huge_share)
            render.say(f"Of the inflated pages {share} are in 2 MiB that one phase gives whole.")
    render.say_rejected(trace.rejected)


def _window(summary: "Summary") -> str:
    """What a strategy may hold back, and what else is not as by default."""
    from aerostat import render

    limits = []
    if summary.hold_bytes is not None:
        limits.append(render.size(summary.hold_bytes))
    if summary.hold_ns is not None:
        limits.append(render.ns(summary.hold_ns))
    parameters = summary.name.partition(":")[2].split(",")
    others = [each for each in parameters if each and not each.startswith("hold_")]
    return " ".join([", ".join(limits), *others]).strip()
