"""`aerostat replay --fidelity`: the traced VMM's own strategy beside each trace, cause by cause."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aerostat.options import refuse_others
from aerostat.output import emit_json, warn
from aerostat.progress import progress_on_stderr

if TYPE_CHECKING:
    from replay.probed import Attach

TAKES = frozenset(
    {"traces", "fidelity", "probed", "runs", "seed", "allow_loss", "as_json", "quiet", "verbose"}
)
"""Parameters of `replay` that mean something here; any other is refused rather than ignored."""
RUNS = 3


def run(context: click.Context) -> None:
    """Carry out `replay --fidelity` with the options that it was given.

    Args:
        context: Of the verb `replay`.

    Raises:
        click.UsageError: An option was given that does not go with it.
        CaptureIncompleteError: A trace misses events, and --allow-loss was not given.
        MissingPrivilegeError: --probed was given, and this process or machine lacks what it takes.
        AerostatError: A trace or the machine does not allow it.
    """
    refuse_others(context, TAKES, "--fidelity")
    from replay.causes import to_json
    from replay.faithful import measure_fidelity
    from replay.schedule import refuse_loss
    from tracer.trace.reader import open_trace

    params = context.params
    runs, seed, allow_loss = params["runs"] or RUNS, params["seed"], params["allow_loss"]
    attach = _attach() if params["probed"] else None
    for path in params["traces"]:  # all of them before the first is run, which takes long
        refuse_loss(open_trace(path), allow_loss=allow_loss)
    with progress_on_stderr(verbose=params["verbose"], quiet=params["quiet"]) as progress:
        found = [
            measure_fidelity(path, runs, seed, progress, allow_loss=allow_loss, attach=attach)
            for path in params["traces"]
        ]
    for path, each in zip(params["traces"], found, strict=True):
        if each.missing is not None:
            warn(f"{path} {each.missing}; what was replayed is not all that happened")
    if params["as_json"]:
        emit_json(to_json(found))
    else:
        from aerostat.fidelity_tables import draw_fidelity

        draw_fidelity(found)


def _attach() -> Attach:
    """What `--probed` needs, which is imported for it alone."""
    from aerostat.probed import attached, require_probes

    require_probes()
    return attached
