"""`aerostat show`: what a trace says."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aerostat.options import TRACE, json_option
from tracer.trace.errors import ExitCode

if TYPE_CHECKING:
    from tracer.account.ledger import Ledger
    from tracer.account.stages import StageTable
    from tracer.trace.reader import Trace


@click.command("show")
@click.argument("trace", type=TRACE)
@json_option
def command(trace: Path, as_json: bool) -> int:
    """Show where the time of TRACE went, beside the seed's own table, and whether it adds up.

    Works on a trace of one side. What was not observed is printed as `-`. Exit code 5 means the
    trace is not complete, has losses, ended as its disk was full, or does not balance.

    \b
    Examples:
      aerostat show host.balloon
      aerostat show --json host.balloon
    """
    from tracer.account.ledger import ledger
    from tracer.account.stages import stage_table
    from tracer.trace.missing import missing_events
    from tracer.trace.reader import open_trace

    opened = open_trace(trace)
    stages = stage_table(opened)
    account = ledger(opened)
    if as_json:
        from aerostat.output import emit_json

        emit_json(document(trace, opened, stages, account))
    else:
        draw(trace, opened, stages, account)
    whole = missing_events(opened) is None and account.balanced is not False
    return ExitCode.OK if whole else ExitCode.CAPTURE_INCOMPLETE


def draw(path: Path, trace: "Trace", stages: "StageTable", account: "Ledger") -> None:
    """Draw all tables of a trace."""
    from aerostat import capture_tables as tables
    from aerostat import recorder_tables, render, timeline_tables
    from aerostat.discards import discards
    from aerostat.events import events
    from aerostat.pressure import growths, levels
    from aerostat.shape import residency, run_lengths
    from replay.rejections import rejections_of

    tables.draw_head(str(path), trace)
    tables.draw_stages(stages, trace.manifest)
    tables.draw_discards(discards(trace), trace.manifest)
    tables.draw_runs(run_lengths(trace))
    tables.say_residency(residency(trace))
    rejected, why = rejections_of(trace)
    if rejected is None and trace.manifest.regions:
        render.say(f"Requests were not held against the guest's memory: {why}.")
    render.say_rejected(rejected or ())
    timeline_tables.draw_events(events(trace, stages.clock))
    timeline_tables.draw_samples(levels(trace), growths(trace))
    tables.draw_ledger(account)
    recorder_tables.draw_losses(trace.losses, trace.manifest, is_complete=trace.is_complete)
    recorder_tables.draw_findings(trace.findings)
    recorder_tables.draw_probes(trace.manifest)


def document(path: Path, trace: "Trace", stages: "StageTable", account: "Ledger") -> dict[str, Any]:
    """Make the JSON document that docs/cli.md describes."""
    from aerostat.discards import discards
    from aerostat.events import events
    from aerostat.output import plain
    from aerostat.pressure import growths, levels
    from aerostat.scope import scopes
    from aerostat.shape import residency, run_lengths
    from replay.rejections import rejections_of

    manifest = trace.manifest
    rejected, why = rejections_of(trace)
    directions = []
    for direction in stages.directions:
        entry = plain(direction)
        for stage, item in zip(direction.stages, entry["stages"], strict=True):
            item["ns_per_page"] = stage.ns_per_page
            item["corrected_ns_per_page"] = stage.corrected_ns_per_page
        directions.append(entry)
    kinds = [
        {
            **plain(item),
            "pages": item.pages,
            "ns_per_page": item.ns_per_page,
            "mean_run_pages": item.mean_run_pages,
        }
        for item in discards(trace)
    ]
    return {
        "trace": str(path),
        "format_version": manifest.format_version,
        "session_id": manifest.session_id,
        "delta_segments": trace.segments_of_form(delta=True),
        "complete": trace.is_complete,
        "end_reason": manifest.end_reason,
        "scenario": manifest.scenario,
        "vm": plain(manifest.vm),
        "sides": plain(manifest.sides),
        "scope": plain(scopes(manifest)),
        "losses": plain(trace.losses),
        "findings": plain(trace.findings),
        "stages": directions,
        "clock": plain(stages.clock),
        "discards": kinds,
        "events": plain(events(trace, stages.clock)),
        "sampled_memory": plain(levels(trace)),
        "sampled_counts": plain(growths(trace)),
        "ledger": plain(account),
        "runs": plain(run_lengths(trace)),
        "residency": plain(residency(trace)),
        "rejected": plain(rejected),
        "rejected_note": why,
    }
