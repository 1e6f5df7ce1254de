"""What `make demo` prints: the trace, what other strategies would do, and what they cost."""

from pathlib import Path

from aerostat import render
from aerostat.replay_tables import draw_results
from aerostat.verbs import show, whatif
from replay.plan import context_of
from replay.requests import load_requests, memory_map
from replay.schedule import ReplayOptions, replay_trace
from replay.whatif import what_if
from tracer.account.ledger import ledger
from tracer.account.stages import stage_table
from tracer.trace.progress import Progress
from tracer.trace.reader import open_trace

STRATEGIES = ("qemu", "adjacent", "request", "range", "oracle")
RUNS = 3
"""Enough to see factors; a verdict on a few percent needs more, and a machine at rest."""


def run_demo(path: Path, progress: Progress) -> None:
    """Show a trace, count every strategy on it, and replay six of them.

    Args:
        path: A trace of both sides, just recorded.
        progress: Told of the replay's phases.

    Raises:
        AerostatError: The trace cannot be read or replayed.
    """
    trace = open_trace(path)
    show.draw(path, trace, stage_table(trace), ledger(trace))
    render.say()
    whatif.draw(what_if(load_requests(trace), context_of(memory_map(trace))))
    render.say()
    options = ReplayOptions(trace=path, strategies=STRATEGIES, runs=RUNS, warmup=0)
    draw_results(replay_trace(options, progress))
