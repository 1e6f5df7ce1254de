"""`aerostat lab`: boot a VM made for tracing, and record a scenario from both sides."""

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import click

from aerostat.options import PATH, force_option, json_option, size, talk_options
from aerostat.output import emit_json, plain, refuse_existing
from aerostat.progress import progress_on_stderr
from tracer.engine.privilege import LOAD, require

if TYPE_CHECKING:
    from lab.session import LabOutcome

SCENARIOS = (
    "inflate-deflate",
    "stepwise",
    "reporting",
    "fragmented",
    "out-of-puff",
    "hinting",
    "stats",
    "oom",
    "migration",
    "flood",
)
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
@click.option(
    "--overhead",
    type=click.IntRange(min=2),
    metavar="PAIRS",
    help="Instead, time so many pairs of untraced and traced moves, interleaved.",
)
@json_option
@force_option
@talk_options
def command(
    scenario: str,
    memory: int,
    pair: str,
    output: Path,
    no_record: bool,
    demo: bool,
    overhead: int | None,
    as_json: bool,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Boot a guest, record both sides of a scenario, join them and close the ledger.

    Needs root, BCC and QEMU, but no KVM: without it the guest is emulated. Its disk is built
    once, and kept in the cache directory.

    \b
    Examples:
      aerostat lab
      aerostat lab --scenario reporting --memory 1G -o reporting.balloon
      aerostat lab --demo --force -o demo.balloon
      aerostat lab --overhead 7
    """
    if overhead is not None:
        _measure_overhead(memory, pair, overhead, as_json, Talk(quiet=quiet, verbose=verbose))
        return
    if demo and (no_record or as_json):
        raise click.UsageError("--demo goes with neither --no-record nor --json")
    if not no_record:
        refuse_existing(output, force=force)
        require("a lab session", LOAD)
        output.parent.mkdir(parents=True, exist_ok=True)
    from lab.session import LabOptions, run_lab

    options = LabOptions(
        output=output,
        scenario=scenario,
        memory_bytes=memory,
        pair=pair,
        force=force,
        record=not no_record,
    )
    with progress_on_stderr(verbose=verbose, quiet=quiet) as progress:
        outcome = run_lab(options, progress)
        if as_json:
            emit_json(plain(outcome))
        else:
            draw_session(outcome)
        if outcome.trace is None:
            return
        if demo:
            from aerostat.demo import run_demo

            run_demo(outcome.trace, progress)
        judge(outcome.trace)


class Talk(NamedTuple):
    """How much is said on stderr."""

    quiet: bool
    verbose: bool


def _measure_overhead(memory: int, pair: str, pairs: int, as_json: bool, talk: Talk) -> None:
    """Time the same moves with and without probes, and say what recording costs."""
    from lab.overhead import UNTRACED, Traced, measure_overhead
    from lab.session import LabOptions
    from replay.stats import paired_ratio

    options = LabOptions(output=Path("unused.balloon"), memory_bytes=memory, pair=pair)
    traced = Traced("traced", options.detail, guest=True)
    with progress_on_stderr(verbose=talk.verbose, quiet=talk.quiet) as progress:
        found = measure_overhead(options, (UNTRACED, traced), pairs, progress=progress)
    samples = {
        figure: [
            [getattr(moves, figure) for moves in found[side.name]] for side in (UNTRACED, traced)
        ]
        for figure in ("inflate_ns", "deflate_ns", "inflate_cpu_ns")
    }
    ratios = {figure: paired_ratio(bare, probed) for figure, (bare, probed) in samples.items()}
    if as_json:
        emit_json({"detail": options.detail, "samples": plain(found), "ratios": plain(ratios)})
        return
    from aerostat import render

    names = ("inflate", "deflate", "CPU of QEMU's main thread, inflate")
    rows = [
        (
            name,
            render.ns(median(samples[figure][0])),
            render.ns(median(samples[figure][1])),
            f"{ratio.ratio:.3f}",
            f"{ratio.low:.3f} to {ratio.high:.3f}",
        )
        for name, (figure, ratio) in zip(names, ratios.items(), strict=True)
    ]
    columns = ("<move", "untraced", "traced", "ratio", "95 % interval")
    render.draw(f"cost of recording both sides, {pairs} interleaved pairs, medians", columns, rows)


def draw_session(outcome: "LabOutcome") -> None:
    """Draw what was done to the VM and how long the balloon took."""
    from aerostat import render

    rows = [
        (
            "inflate" if move.is_inflate else "deflate",
            render.size(move.target_bytes),
            render.size(move.start_bytes),
            render.size(move.end_bytes),
            "yes" if move.is_reached else "no",
            render.ns(move.wall_ns),
        )
        for move in outcome.scenario.moves
    ]
    render.say(
        f"QEMU {outcome.qemu_version} ({outcome.accelerator}), guest kernel"
        f" {outcome.guest_release}, booted in {render.ns(outcome.boot_ns)}"
    )
    columns = ("<move", "target", "memory before", "memory after", "reached", "took")
    render.draw(f"lab: {outcome.scenario.name}", columns, rows)


def judge(path: Path) -> None:
    """Raise where the merged trace is not whole or its ledger does not balance."""
    from aerostat.judge import require_whole
    from tracer.trace.layout import read_manifest

    require_whole(path, read_manifest(path))
