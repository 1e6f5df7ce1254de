"""`aerostat replay --fidelity`: the traced VMM's own strategy beside each trace, cause by cause."""

from __future__ import annotations

import click
from click.core import ParameterSource

from aerostat.output import emit_json
from aerostat.progress import progress_on_stderr

TAKES = frozenset({"traces", "fidelity", "runs", "seed", "as_json", "quiet", "verbose"})
"""Parameters of `replay` that mean something here; any other is refused rather than ignored."""
RUNS = 3


def run(context: click.Context) -> None:
    """Carry out `replay --fidelity` with the options that it was given.

    Args:
        context: Of the verb `replay`.

    Raises:
        click.UsageError: An option was given that does not go with it.
        AerostatError: A trace or the machine does not allow it.
    """
    given = {
        name
        for name in context.params
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    if other := sorted(given - TAKES):
        option = next(each for each in context.command.params if each.name == other[0])
        raise click.UsageError(f"{max(option.opts, key=len)} does not go with --fidelity")
    from replay.causes import to_json
    from replay.faithful import measure_fidelity

    params = context.params
    runs, seed = params["runs"] or RUNS, params["seed"]
    with progress_on_stderr(verbose=params["verbose"], quiet=params["quiet"]) as progress:
        found = [measure_fidelity(path, runs, seed, progress) for path in params["traces"]]
    if params["as_json"]:
        emit_json(to_json(found))
    else:
        from aerostat.fidelity_tables import draw_fidelity

        draw_fidelity(found)
