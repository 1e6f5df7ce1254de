"""`aerostat compare`: is the candidate better, worse, the same, or not decidable?"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from aerostat.options import TRACE, FiniteRange, json_option
from aerostat.output import emit_json, emit_text, plain, warn
from tracer.trace.errors import ExitCode

if TYPE_CHECKING:
    from replay.compare import Comparison, Line, Policy


FORMAT = {"format": "aerostat-comparison", "version": "1.1"}
_SPARE = ("candidate", "baseline", "decisive", "interval", "p")
"""What a narrow terminal goes without; the last one goes first."""


@click.command("compare")
@click.argument("baseline", type=TRACE)
@click.argument("candidate", type=TRACE)
@click.option(
    "--effect",
    type=FiniteRange(0, 100, min_open=True, max_open=True),
    default=3.0,
    show_default=True,
    help="Smallest difference that matters, in percent.",
)
@click.option(
    "--alpha",
    type=FiniteRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Highest probability that a difference is chance.",
)
@click.option(
    "--unlike-environments", is_flag=True, help="Compare what machines made that are not alike."
)
@click.option(
    "--unlike-work",
    is_flag=True,
    help="Compare results of unlike traces or settings, and traces of unlike detail.",
)
@click.option(
    "--markdown",
    "as_markdown",
    is_flag=True,
    help="Write Markdown for a pull request to stdout: the verdict first, long tables folded.",
)
@json_option
def command(
    baseline: Path,
    candidate: Path,
    effect: float,
    alpha: float,
    unlike_environments: bool,
    unlike_work: bool,
    as_markdown: bool,
    as_json: bool,
) -> ExitCode:
    """Judge CANDIDATE against BASELINE: two files of replay results, or two traces.

    Exit code 0: better or the same. 3: worse. 4: inconclusive, more runs are needed. Any other code
    means that nothing was compared.

    \b
    Examples:
      aerostat compare before.json after.json
      aerostat compare before.json after.json --effect 5 --json
      aerostat compare old-kernel.balloon new-kernel.balloon
      aerostat compare before.json after.json --markdown
    """
    from replay.compare import Policy
    from replay.stats import Gates

    if baseline.is_dir() != candidate.is_dir():
        raise click.UsageError("give two results files or two traces, not one of each")
    if as_json and as_markdown:
        raise click.UsageError("choose one of --json and --markdown: stdout holds one document")
    policy = Policy(
        gates=Gates(effect=effect / 100, alpha=alpha),
        unlike_environments=unlike_environments,
        unlike_work=unlike_work,
    )
    comparison = _compare(baseline, candidate, policy)
    if as_json:
        emit_json(FORMAT | plain(comparison))
    elif as_markdown:
        from aerostat.markdown import of_comparison

        emit_text(of_comparison(comparison, baseline.name, candidate.name))
    else:
        draw(comparison)
    return comparison.exit_code


def _compare(baseline: Path, candidate: Path, policy: "Policy") -> "Comparison":
    """Compare two bundles, which are directories, or two results files."""
    if baseline.is_dir():
        from replay.compare_traces import compare_traces
        from tracer.trace.missing import missing_events
        from tracer.trace.reader import open_trace

        traces = open_trace(baseline), open_trace(candidate)
        comparison = compare_traces(*traces, policy)
        lacking = [missing_events(trace) for trace in traces]
    else:
        from replay.compare import compare
        from replay.results_file import load_results

        results = load_results(baseline), load_results(candidate)
        comparison = compare(*results, policy)
        lacking = [result.trace.missing for result in results]
    for path, missing in zip((baseline, candidate), lacking, strict=True):
        if missing is not None:
            warn(f"{path}: its trace {missing}; what is compared is not all that happened")
    return comparison


def draw(comparison: "Comparison") -> None:
    """Draw one row per metric, and the verdict that the decisive ones make."""
    from aerostat import render

    rows = [_row(line) for line in comparison.lines]
    columns = ("<subject", "<metric", "baseline", "candidate", "ratio", "interval", "p")
    render.draw("compare", (*columns, "<verdict", "<decisive", "<why"), rows, spare=_SPARE)
    for warning in comparison.warnings:
        render.say(f"Warning: {warning}")
    render.say(f"Verdict: {comparison.verdict}")


def _row(line: "Line") -> tuple[str, ...]:
    from aerostat import render

    difference = line.difference
    return (
        line.subject,
        line.metric,
        render.figure(line.metric, difference.base),
        render.figure(line.metric, difference.candidate),
        render.cell(difference.ratio, lambda ratio: f"{ratio:.3f}"),
        render.ratio_interval(difference.low, difference.high),
        render.cell(difference.p_value, lambda p: f"{p:.3g}"),
        difference.verdict,
        "yes" if line.decisive else "",
        difference.reason,
    )
