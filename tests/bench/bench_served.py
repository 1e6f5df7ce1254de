"""The seed's experiment in one piece: each request is carried out before the driver hears of it.

A driver's thread and a device's exchange every request of the order that was stretched to 7 GiB,
and the device translates and discards before it answers, as QEMU does. The wall time is b, c and d
with all that lies between; `make bench BENCH=goals` has their sum, each executed by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from aerostat.headline import default_trace
from replay.budget import available_bytes
from replay.headline import MEMORY_PAGES, PAGES, context_of_pages
from replay.memory import GuestMemory, operations_of
from replay.native.types import Operations, Times
from replay.plan import Context, context_of
from replay.ranges import empty
from replay.requests import Requests, load_requests, memory_map
from replay.residency import Residency
from replay.sending import Sending, operation_ends, sending
from replay.serving import serve
from replay.strategies import load_strategy
from replay.stretch import recorded_order, stretch
from tests.bench.measure import Report, Settings, at_least, interleaved, run
from tracer.trace.reader import open_trace
from tracer.trace.schema import PFN_SHIFT

NEEDED_BYTES = 3 << 30
"""Plans of one operation a page; the memory itself stays untouched."""
PROTOCOLS = {"PFNs": "qemu", "ranges": "range"}


@dataclass(frozen=True, eq=False)
class Side:
    """What one protocol sends, and what the device does with it."""

    sent: Sending
    operations: Operations
    op_end: Times


def measure(settings: Settings, report: Report) -> None:
    """Both protocols, in turns, on memory that nobody touched."""
    if available_bytes() < NEEDED_BYTES:
        report.notes.append(f"not measured: {NEEDED_BYTES >> 20} MiB must be free")
        return
    pages = settings.pages
    memory_pages = pages * MEMORY_PAGES // PAGES
    trace = open_trace(default_trace())
    order = recorded_order(load_requests(trace), context_of(memory_map(trace), "anon"))
    requests = stretch(order, pages, memory_pages).requests
    context = context_of_pages(memory_pages)
    parts: dict[str, list[tuple[str, float]]] = {name: [] for name in PROTOCOLS}
    sides = {
        name: partial(sample, prepare(strategy, requests, context), context, parts[name])
        for name, strategy in PROTOCOLS.items()
    }
    wall = interleaved(sides, settings)
    for name, values in wall.items():
        report.figure(f"b, c and d in one piece: {name}", "ms", values)
        for stage in ("b", "c", "d"):
            times = [value for part, value in parts[name] if part == stage][1:]
            report.figure(f"of it {stage}: {name}", "ms", times)
            report.keep({f"{name}, {stage}, ms": times})
    report.keep({f"{name}, wall, ms": values for name, values in wall.items()})
    for goal in (7.0, 9.4):
        pair = (wall["ranges"], wall["PFNs"])
        report.ratio(f"PFNs over ranges, in one piece, untouched, {goal}", pair, at_least(goal))


def prepare(strategy: str, requests: Requests, context: Context) -> Side:
    """Plan, and build what is sent."""
    plan = load_strategy(strategy).plan(requests, context)
    sent = sending(requests, plan)
    return Side(sent, operations_of(plan), operation_ends(plan, sent, context))


def sample(side: Side, context: Context, parts: list[tuple[str, float]]) -> float:
    """Wall time in ms of one exchange on fresh memory, which is checked afterwards."""
    size_bytes = context.layout.memory_bytes
    with GuestMemory(size_bytes, "anon", seed=1, thp="never") as memory:
        memory.restore(Residency(empty(), empty(), "untouched"))
        found = serve(memory, side.sent, side.operations, side.op_end, [(0, size_bytes, 0)])
        assert found.served is not None and not found.served.outcome.failures
        discarded_bytes = int(side.operations.length_bytes.sum())
        assert found.served.translation.pages == discarded_bytes >> PFN_SHIFT
        assert not memory.verify().findings.wrong
    times_ns = {"b": found.send_ns, "c": found.served.translate_ns, "d": found.served.discard_ns}
    parts += [(stage, time_ns / 1e6) for stage, time_ns in times_ns.items()]
    return found.wall_ns / 1e6


if __name__ == "__main__":
    run("served", measure)
