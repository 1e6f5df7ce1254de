"""`aerostat replay`: carry out a trace's work under several strategies, and measure each."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from aerostat.options import (
    BACKINGS,
    PATH,
    TRACE,
    cpu,
    force_option,
    json_option,
    residency_choice,
    some_size,
    strategy,
    talk_options,
)
from aerostat.output import emit_json, refuse_existing, warn
from aerostat.progress import progress_on_stderr
from aerostat.stop import ends_on_sigterm
from tracer.trace.errors import AerostatError

if TYPE_CHECKING:
    from replay.results import Results


@click.command("replay")
@click.argument("traces", metavar="[TRACE]...", type=TRACE, nargs=-1)
@click.option(
    "--fidelity",
    is_flag=True,
    help="Instead, set the traced VMM's own strategy beside each TRACE, cause by cause.",
)
@click.option(
    "--probed",
    is_flag=True,
    help="With --fidelity: also record the replay, as the trace was. Needs root and BCC.",
)
@click.option(
    "--seed-headline",
    is_flag=True,
    help="Instead, the seed patch's experiment: 7 GiB of 8 GiB inflated in the order of TRACE"
    " (left out: of a reference trace), as PFNs and as ranges.",
)
@click.option(
    "-s",
    "--strategy",
    "strategies",
    multiple=True,
    type=strategy,
    help="A strategy to replay, NAME or NAME:parameter=value; give it again for more, or `all`."
    " nop, the harness alone, is always added.",
)
@click.option(
    "--against",
    type=strategy,
    help="Also set every strategy beside this one; wants --runs 6 or more.",
)
@click.option(
    "--runs",
    type=click.IntRange(1, 10_000),
    help="Runs of each; left out: 6, 7 with --seed-headline, 3 with --fidelity.",
)
@click.option(
    "--warmup",
    type=click.IntRange(0, 10_000),
    default=1,
    show_default=True,
    help="Runs of each before those, kept but not counted.",
)
@click.option(
    "--watched-runs",
    type=click.IntRange(0, 10_000),
    default=1,
    show_default=True,
    help="Runs of each after those, with each call timed, for the worst pause; not counted.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, (1 << 63) - 1),
    default=1,
    show_default=True,
    help="Of the order of runs.",
)
@click.option(
    "--backing",
    type=click.Choice(BACKINGS),
    help="What guest memory is mapped from; as in the trace when left out.",
)
@click.option(
    "--thp",
    type=click.Choice(("never", "madvise", "always")),
    help="Transparent huge pages of anonymous memory: none, where the trace saw them (madvise, when"
    " left out), or wherever they fit.",
)
@click.option(
    "--residency",
    type=residency_choice,
    metavar="RESIDENCY",
    default="trace",
    show_default=True,
    help="Which pages have memory at first: as in the `trace`, or chosen: all `touched`, all"
    " `untouched`, one page in N (`1/N`), or all in `huge` pages.",
)
@click.option(
    "--siblings",
    type=click.IntRange(0, 1024),
    default=0,
    show_default=True,
    help="Threads that read the memory meanwhile, as a live VM's vCPUs do.",
)
@click.option(
    "--cpu",
    type=cpu,
    default="auto",
    show_default=True,
    help="CPU to execute on: a number, `auto` for the last allowed one, `none` for any.",
)
@click.option(
    "--predict/--no-predict",
    default=True,
    show_default=True,
    help="Calibrate first, and set what that predicts for stage d beside what is measured.",
)
@click.option(
    "--memory-limit",
    type=some_size,
    metavar="SIZE",
    help="Most memory a run may take, such as 4G.",
)
@click.option("--allow-loss", is_flag=True, help="Replay a trace that is known to miss events.")
@click.option("-o", "--output", type=PATH, help="Also write the results to this JSON file.")
@json_option
@force_option
@talk_options
@click.pass_context
def command(
    context: click.Context,
    traces: tuple[Path, ...],
    fidelity: bool,
    probed: bool,
    seed_headline: bool,
    strategies: tuple[str, ...],
    against: str | None,
    runs: int | None,
    warmup: int,
    watched_runs: int,
    seed: int,
    backing: str | None,
    thp: str | None,
    residency: str,
    siblings: int,
    cpu: int | Literal["auto"] | None,
    predict: bool,
    memory_limit: int | None,
    allow_loss: bool,
    output: Path | None,
    as_json: bool,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Carry out the work of TRACE on mapped memory under several strategies, side by side.

    Each run is a fresh process on one CPU; runs are interleaved in seeded random order; every page
    is checked afterwards. Runs in which each call is timed come last and apart: they show the worst
    pause. A strategy that cannot work on the memory or this kernel is named with the reason,
    not timed. Needs no root and no VM; --probed alone needs root.

    \b
    Examples:
      aerostat replay host.balloon
      aerostat replay host.balloon -s qemu -s range --runs 15 --siblings 1 -o results.json
      aerostat replay host.balloon -s all --backing memfd
      aerostat replay host.balloon -s request -s deferred:hold_bytes=16M,hold_ns=50ms
      aerostat replay host.balloon --residency 1/8 --siblings 1
      aerostat replay host.balloon --memory-limit 4G --json
      aerostat replay host.balloon -s all --against range --runs 7
      aerostat replay --seed-headline
      aerostat replay --fidelity plain.balloon fragmented.balloon --runs 5
      sudo aerostat replay --fidelity --probed mine.balloon
    """
    context.with_resource(ends_on_sigterm())
    if seed_headline:
        from aerostat import headline

        headline.run(context)
        return
    if not traces:
        raise click.MissingParameter(ctx=context, param=context.command.params[0])
    if fidelity:
        from aerostat import fidelity as with_traces

        with_traces.run(context)
        return
    if probed:
        raise click.UsageError("--probed goes with --fidelity alone")
    if len(traces) > 1:
        raise click.UsageError("several traces go with --fidelity alone; replay one at a time")
    trace = traces[0]
    if output is not None:
        refuse_existing(output, force=force)
    from replay.against import MIN_PAIRS
    from replay.results_file import UnsavedError
    from replay.schedule import DEFAULT_RUNS, DEFAULT_STRATEGIES, ReplayOptions, replay_trace

    if against is not None and (runs or DEFAULT_RUNS) < MIN_PAIRS:
        raise click.UsageError(f"--against wants --runs {MIN_PAIRS} or more: fewer decide nothing")
    options = ReplayOptions(
        trace=trace,
        strategies=strategies or DEFAULT_STRATEGIES,
        against=against,
        runs=runs or DEFAULT_RUNS,
        warmup=warmup,
        watched_runs=watched_runs,
        seed=seed,
        backing=backing,
        thp=thp,  # type: ignore[arg-type]  # click.Choice has checked it
        siblings=siblings,
        cpu=cpu,
        residency=residency,
        predict=predict,
        memory_limit_bytes=memory_limit,
        allow_loss=allow_loss,
        output=output,
        force=force,
    )
    with progress_on_stderr(verbose=verbose, quiet=quiet) as progress:
        unsaved = None
        try:
            results = replay_trace(options, progress)
        except UnsavedError as error:  # an hour's work, perhaps: it is shown all the same
            results, unsaved = error.results, error
    if results.trace.missing is not None:
        warn(f"{trace} {results.trace.missing}; what was replayed is not all that happened")
    show(results, as_json=as_json)
    if unsaved is not None:
        raise unsaved


def show(results: "Results", *, as_json: bool) -> None:
    """Write results to stdout, and every strategy beside one of them where that is asked for.

    Raises:
        AerostatError: That one was refused; what was measured is written before.
    """
    if as_json:
        emit_json(results.to_json())
    else:
        _draw(results)
    reference = results.settings.against
    refused = next((each for each in results.refused if each.name == reference), None)
    if refused is not None:
        raise AerostatError(
            f"nothing can be set against {reference!r}",
            reason=refused.reason,
            remedy="choose another strategy for --against, or another --backing",
        )


def _draw(results: "Results") -> None:
    from aerostat.replay_tables import draw_results

    draw_results(results)
    reference = results.settings.against
    if results.against is not None and reference is not None:
        from aerostat.against_tables import draw_against
        from aerostat.send_tables import siblings_in_words

        ran = siblings_in_words(results.settings.siblings, results.settings.resting_threads)
        draw_against(results.strategies, results.against, reference, ran)
