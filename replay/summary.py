"""What the runs of a strategy come to: medians with intervals, and how far from its neighbours.

Nothing here is a measurement: all of it follows from the raw samples, which stay in the results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from replay.stats import MIN_PAIRS, median_interval, paired_ratio

if TYPE_CHECKING:
    from replay.results import Run

REFERENCES = ("nop", "qemu", "oracle")
"""Strategies that the others are set beside where they were replayed: what the harness takes, what
most VMMs do, and the bound that no deployable strategy reaches."""


@dataclass(frozen=True)
class Spread:
    """A median and its interval of 95 %; the ends are null with one sample.

    Fewer than 6 samples have no interval so sure: theirs is from the least to the greatest
    (`replay.stats.median_interval`).
    """

    median: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Beside:
    """Stages b, c and d of a strategy beside another's, round by round.

    Args:
        reference: The other strategy.
        ratio: Median of the rounds' ratios; null where the other took no time.
        low: Lower end of its interval, as of a `Spread`; null with fewer than two rounds.
        high: Upper end.
        excess_ns: The strategy's time less the other's.
    """

    reference: str
    ratio: float | None
    low: float | None
    high: float | None
    excess_ns: Spread


@dataclass(frozen=True)
class Summary:
    """Stages and merging apart, then together; `touch_ns` is null where nothing was touched."""

    send_ns: Spread
    merge_ns: Spread
    translate_ns: Spread
    discard_ns: Spread
    total_ns: Spread
    touch_ns: Spread | None
    beside: tuple[Beside, ...]


def summarise(runs: Mapping[str, Sequence[Run]], name: str) -> Summary | None:
    """Sum up the runs of a strategy.

    Args:
        runs: Measured runs of every strategy, by name, in order of the rounds.
        name: The strategy.
    """
    own = runs[name]
    if not own:
        return None
    touches = [run.touch_ns for run in own if run.touch_ns is not None]
    return Summary(
        send_ns=_spread(own, lambda run: run.send_ns),
        merge_ns=_spread(own, lambda run: run.merge_ns),
        translate_ns=_spread(own, lambda run: run.translate_ns),
        discard_ns=_spread(own, lambda run: run.discard_ns),
        total_ns=_spread(own, lambda run: run.total_ns),
        touch_ns=spread_of(touches) if touches else None,
        beside=tuple(
            _beside(reference, runs[reference], own)
            for reference in REFERENCES
            if reference != name and runs.get(reference)
        ),
    )


def spread_of(samples: Sequence[float]) -> Spread:
    """Median and interval of one or more samples."""
    middle = float(np.median(samples))
    if len(samples) < MIN_PAIRS:
        return Spread(middle, None, None)
    return Spread(middle, *median_interval(samples))


def _spread(runs: Sequence[Run], time_ns: Callable[[Run], int]) -> Spread:
    return spread_of([time_ns(run) for run in runs])


def _beside(reference: str, base: Sequence[Run], own: Sequence[Run]) -> Beside:
    old = [float(run.total_ns) for run in base]
    new = [float(run.total_ns) for run in own]
    excess = spread_of([mine - other for other, mine in zip(old, new, strict=True)])
    if min(old) <= 0:
        return Beside(reference, None, None, None, excess)
    if len(old) < MIN_PAIRS:
        return Beside(reference, new[0] / old[0], None, None, excess)
    found = paired_ratio(old, new)
    return Beside(reference, found.ratio, found.low, found.high, excess)
