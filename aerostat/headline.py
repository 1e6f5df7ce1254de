"""`aerostat replay --seed-headline`: the seed patch's experiment, and its figures beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from aerostat.options import refuse_others
from aerostat.output import emit_json, plain
from aerostat.progress import progress_on_stderr
from tracer.account.stages import SEED_NS, SEED_PAGES, SEED_TOTAL_NS
from tracer.trace.errors import AerostatError
from tracer.trace.schema import PAGE_BYTES

if TYPE_CHECKING:
    from replay.headline import Headline, HeadlineOptions

FORMAT = {"format": "aerostat-headline", "version": "1.1"}
SEED_RANGES_NS = 590_000_000
LATER_NS = 440_000_000
"""The best that a later version of the series published of the same experiment (Wei Wang's
VIRTIO_BALLOON_F_CHUNK_TRANSFER and F_SG patches, 2017)."""
SEED_FIGURES: dict[str, Any] = {
    "inflated_bytes": SEED_PAGES * PAGE_BYTES,
    "pfns_ns": SEED_TOTAL_NS,
    "pfns_stages_ns": SEED_NS,
    "ranges_ns": SEED_RANGES_NS,
    "ranges_stages_ns": {"a": None, "b": None, "c": None, "d": None},
    "ranges_times": SEED_TOTAL_NS / SEED_RANGES_NS,
    "later_ns": LATER_NS,
    "later_times": SEED_TOTAL_NS / LATER_NS,
}


def default_trace() -> Path:
    """The reference trace whose order is stretched where the user names none.

    Raises:
        AerostatError: This installation has no reference traces.
    """
    path = Path(__file__).parents[1] / "traces" / "plain.balloon"
    if not path.is_dir():
        raise AerostatError(
            "the seed's experiment needs a trace whose order it can stretch",
            reason="this installation holds no reference traces",
            remedy="name one: aerostat replay TRACE --seed-headline",
        )
    return path


def without_allocation(total_ns: int) -> int:
    """What a total of the series leaves for b, c and d if stage a stayed as it was."""
    return total_ns - SEED_NS["a"]


def document(found: Headline) -> dict[str, Any]:
    """One JSON document; stage a is null, since nothing allocates here."""
    return {**FORMAT, "published": SEED_FIGURES, "allocate_ns": None, **plain(found)}


TAKES = frozenset(
    {
        *(
            "traces",
            "seed_headline",
            "strategies",
            "runs",
            "warmup",
            "seed",
            "residency",
            "siblings",
        ),
        *("cpu", "memory_limit", "allow_loss", "as_json", "quiet", "verbose"),
    }
)
"""Parameters of `replay` that mean something here; any other is refused rather than ignored."""


def run(context: click.Context) -> None:
    """Carry out `replay --seed-headline` with the options that it was given.

    Args:
        context: Of the verb `replay`.

    Raises:
        click.UsageError: An option was given that does not go with it.
        AerostatError: The trace or the machine does not allow it.
    """
    refuse_others(context, TAKES, "--seed-headline")
    given = {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    if len(given.get("traces", ())) > 1:
        raise click.UsageError("--seed-headline takes the order of one trace")
    from replay.headline import measure_headline

    options = _options(given)
    talk = {name: context.params[name] for name in ("verbose", "quiet")}
    with progress_on_stderr(**talk) as progress:
        found = measure_headline(options, progress)
    if context.params["as_json"]:
        emit_json(document(found))
    else:
        from aerostat.headline_tables import draw_headline

        draw_headline(found)


def _options(given: dict[str, Any]) -> HeadlineOptions:
    from replay.headline import HeadlineOptions

    chosen = {
        name: given[name]
        for name in ("strategies", "runs", "warmup", "seed", "siblings", "cpu", "allow_loss")
        if given.get(name) is not None
    }
    if "residency" in given:
        if given["residency"] not in ("untouched", "touched"):
            raise click.UsageError("--residency is untouched or touched with --seed-headline")
        chosen["residency"] = (given["residency"],)
    return HeadlineOptions(
        trace=given["traces"][0] if given.get("traces") else default_trace(),
        memory_limit_bytes=given.get("memory_limit"),
        **chosen,
    )
