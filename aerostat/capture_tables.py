"""Draws what a capture says: stages, ledger, losses, probes, runs and residency."""

from aerostat import render
from tracer.ledger import Ledger
from tracer.stages import SEED_PERCENT, SEED_TOTAL_NS, Direction, StageTable

SEED_RANGES_NS = 590_000_000
"""The seed's own inflate with {pfn|length} ranges and bulk advice, 7 of 8 GiB."""


def draw_stages(table: StageTable) -> None:
    """Draw the stage table of every direction, the seed's beside the inflate."""
    if not table.directions:
        render.say("No requests: the balloon did not move while this was recorded.")
    for direction in table.directions:
        _draw_direction(direction)
    if table.clock is not None:
        bound = render.ns(table.clock.bound_ns)
        doubt = "" if table.clock.consistent else ", but not every pair fits one line"
        render.say(f"Clocks: the guest's fits the host's to within {bound}{doubt}.")


def _draw_direction(direction: Direction) -> None:
    seeded = any(stage.seed_ns is not None for stage in direction.stages)
    columns = ["<stage", "requests", "total", "per page", "share", "share without probes", "p99"]
    if seeded:
        columns += ["seed's share", "seed's time"]
    rows = []
    for stage in direction.stages:
        name = f"{stage.letter}  {stage.name}" if stage.letter else f"   {stage.name}"
        cells = [
            name,
            render.count(stage.requests if stage.total_ns is not None else None),
            render.ns(stage.total_ns),
            render.ns(stage.ns_per_page),
            render.percent(stage.percent),
            render.percent(stage.corrected_percent),
            render.ns(stage.p99_ns),
        ]
        if seeded:
            cells += [render.percent(stage.seed_percent), render.ns(stage.seed_ns)]
        rows.append(cells)
    render.draw(_title(direction), columns, rows)
    if seeded:
        _say_seed(direction)


def _title(direction: Direction) -> str:
    pages = f"{direction.pages:,} pages in {direction.requests:,} requests"
    wall = f", {render.ns(direction.wall_ns)} from first to last" if direction.wall_ns else ""
    return f"{direction.queue.name.lower()}: {pages}{wall}"


def _say_seed(direction: Direction) -> None:
    shares = " ".join(f"{letter} {share:g} %" for letter, share in SEED_PERCENT.items())
    here = render.ns(direction.seven_gib_ns)
    bare = render.ns(direction.corrected_seven_gib_ns)
    render.say(f"a+b+c+d of 7 GiB at this rate: {here}; without what the probes cost: {bare}.")
    render.say(
        f"The seed (2016): {SEED_TOTAL_NS // 10**6} ms: {shares};"
        f" with ranges and bulk advice {SEED_RANGES_NS // 10**6} ms."
    )
    render.say()


def draw_ledger(ledger: Ledger) -> None:
    """Draw every count of the same pages, and whether they agree."""
    verdict = {True: "balanced", False: "NOT BALANCED", None: "nothing to balance against"}
    rows = [
        (line.name, render.count(line.pages), line.status, line.source) for line in ledger.lines
    ]
    render.draw(
        f"ledger: {verdict[ledger.balanced]}",
        ("<count of", "pages", "<status", "<source"),
        rows,
    )
