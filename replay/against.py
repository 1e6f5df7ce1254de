"""Every strategy of a replay beside one of them, pair by pair: which is faster, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from replay.stats import paired_ratio
from replay.strategies import STRATEGIES
from tracer.trace.errors import AerostatError

if TYPE_CHECKING:
    from replay.results import Run, StrategyResult

MIN_PAIRS = 6
"""Fewer have no interval of 95 %: of five pairs all lie on one side by chance once in 16."""
FREES_AS_MUCH = 0.999
"""Share of the reference's freed pages: pages of the harness's own may lie in the memory's last
page tables."""


@dataclass(frozen=True)
class Against:
    """A strategy beside the reference of the same rounds; a round runs each of them once.

    Args:
        name: The strategy.
        deployable: A device can do it: it looks at nothing that is still to come, and discards.
        times: Reference over strategy in stages b, c and d and in merging, the median of the pairs:
            above 1 the strategy is faster. None where there are fewer than 6 pairs.
        low: Lower end of its interval of 95 %.
        high: Upper end.
        discard_times: The same of stage d alone.
        discard_low: Of it.
        discard_high: Of it.
        freed_share: Freed pages over the reference's; None where that freed none.
        beats: It is deployable, frees as much, and the whole interval lies above 1; None where
            there are too few pairs.
    """

    name: str
    deployable: bool
    times: float | None
    low: float | None
    high: float | None
    discard_times: float | None
    discard_low: float | None
    discard_high: float | None
    freed_share: float | None
    beats: bool | None


def against(strategies: Sequence[StrategyResult], reference: str) -> tuple[Against, ...]:
    """Set every strategy beside the reference.

    Args:
        strategies: Results of one replay: the runs of one place in their lists are of one round.
        reference: The name of one of them.

    Raises:
        AerostatError: It was not replayed.
    """
    names = [strategy.name for strategy in strategies]
    if reference not in names:
        raise AerostatError(
            f"nothing can be set against {reference!r}",
            reason=f"replayed were {', '.join(names)}",
            remedy=f"name it with --strategy {reference} too",
        )
    base = strategies[names.index(reference)]
    return tuple(_against(base, each) for each in strategies)


def _against(base: StrategyResult, strategy: StrategyResult) -> Against:
    total = _ratio([run.total_ns for run in strategy.runs], [run.total_ns for run in base.runs])
    discard = _ratio(
        [run.discard_ns for run in strategy.runs], [run.discard_ns for run in base.runs]
    )
    freed = _freed_share(base.runs, strategy.runs)
    deployable = is_deployable(strategy)
    beats = None
    if total[1] is not None:
        beats = bool(deployable and (freed is None or freed >= FREES_AS_MUCH) and total[1] > 1)
    return Against(strategy.name, deployable, *total, *discard, freed, beats)


def is_deployable(strategy: StrategyResult) -> bool:
    """Whether a device could do what a strategy does: it never looks ahead, and it discards.

    Of results of format 5.0, which do not say, the name decides; a user's own is believed to.
    """
    if strategy.deployable is not None:
        return strategy.deployable
    found = STRATEGIES.get(strategy.name.partition(":")[0])
    return found is None or (found.causal and found.discards)


def _ratio(
    own: Sequence[int], base: Sequence[int]
) -> tuple[float | None, float | None, float | None]:
    if len(own) != len(base) or len(own) < MIN_PAIRS or not all(own):
        return None, None, None
    found = paired_ratio(own, base)
    return found.ratio, found.low, found.high


def _freed_share(base: Sequence[Run], own: Sequence[Run]) -> float | None:
    if not base or not own:
        return None
    freed = median(run.freed_pages for run in base)
    return median(run.freed_pages for run in own) / freed if freed else None
