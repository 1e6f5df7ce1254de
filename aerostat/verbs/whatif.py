"""`aerostat whatif`: what other strategies would do with a trace, counted and not run."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from aerostat.options import TRACE, json_option
from aerostat.output import emit_json, plain

if TYPE_CHECKING:
    from replay.whatif import WhatIf


@click.command("whatif")
@click.argument("trace", type=TRACE)
@click.option(
    "-s", "--strategy", "strategies", multiple=True, help="A strategy to count; all when left out."
)
@json_option
def command(trace: Path, strategies: tuple[str, ...], as_json: bool) -> None:
    """Count the operations, bytes and requests that strategies would need for TRACE.

    Executes nothing, and measures no time. A strategy of your own is given as path.py:Name.

    \b
    Examples:
      aerostat whatif host.balloon
      aerostat whatif host.balloon -s range -s oracle --json
    """
    from replay.plan import Context
    from replay.requests import load_requests, memory_map
    from replay.strategies import load_strategy
    from replay.whatif import what_if
    from tracer.trace.reader import open_trace

    opened = open_trace(trace)
    chosen = [load_strategy(name) for name in strategies] or None
    found = what_if(load_requests(opened), Context(memory_map(opened)), chosen)
    if as_json:
        emit_json({"name": str(trace), **plain(found)})
    else:
        draw(found)


def draw(found: "WhatIf") -> None:
    """Draw one row per strategy, and how well the trace's pages could be merged."""
    from aerostat import render

    rows = [
        (
            summary.name,
            render.count(summary.operations),
            render.cell(summary.to_qemu, lambda share: f"{share:.4f}"),
            render.cell(summary.to_oracle, lambda ratio: f"{ratio:.1f}"),
            render.size(summary.discard_bytes),
            render.count(summary.wire_requests),
            render.size(summary.wire_bytes),
            " ".join(f"{name} {count:,}" for name, count in summary.operations_by_advice.items()),
        )
        for summary in found.strategies
    ]
    columns = ["<strategy", "operations", "x qemu", "discards x oracle", "discarded"]
    columns += ["requests", "on the wire", "<by advice"]
    render.draw("whatif: counted, not run", columns, rows)
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
    if trace.outside_pages:
        render.say(f"{trace.outside_pages:,} pages named are outside guest memory.")
