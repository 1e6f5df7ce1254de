"""Is one set of samples different from another? An effect, an interval and three gates.

A difference counts when all three gates are open: the samples are unlikely to come from one
distribution (Mann-Whitney), the ratio of medians is at least as large as the caller cares about,
and it is larger than the scatter within either set. Without a difference, "same" is claimed only
where the interval of the ratio lies wholly inside the indifferent band; everything else is
inconclusive. Reported effects are ratios with intervals, after Kalibera and Jones (ISMM 2013).
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from scipy import stats

Samples = npt.NDArray[np.float64]
RESAMPLES = 5000
MAX_RESAMPLED = 1 << 22
"""Values that the bootstrap may draw at a time: 32 MiB of them."""
_LEAST = 1e-100
"""A median below it is zero: a ratio to it may be beyond every number."""
MIN_SAMPLES = 4
"""With 3 a side even full separation has p = 0.1: 2 of 20 orders."""
MIN_PAIRS = 2
"""With one there is nothing to resample."""


class Verdict(StrEnum):
    """What is said of a candidate beside its baseline."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Gates:
    """How sure and how large a difference must be.

    Args:
        effect: Smallest ratio of medians, less 1, that matters: 0.03 is 3 %.
        alpha: Highest probability of a difference this large by chance.
        confidence: Of the interval.
    """

    effect: float = 0.03
    alpha: float = 0.05
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not (0 < self.effect < 1 and 0 < self.alpha < 1 and 0.5 <= self.confidence < 1):
            raise ValueError(f"gates out of range: {self}")


@dataclass(frozen=True)
class Difference:
    """A candidate beside its baseline; lower samples are better.

    Args:
        base: Median of the baseline; None without samples.
        candidate: Median of the candidate.
        ratio: Candidate's median over the baseline's; None where that is undefined.
        low: Lower end of the interval of `ratio`.
        high: Upper end; None beside a `low` where there is none, since medians of the baseline may
            be zero.
        p_value: Mann-Whitney, two-sided.
        noise: Larger robust coefficient of variation of the two sets.
        reason: Why the verdict is what it is, in words.
    """

    verdict: Verdict
    base: float | None
    candidate: float | None
    ratio: float | None
    low: float | None
    high: float | None
    p_value: float | None
    noise: float | None
    reason: str


def compare_samples(
    base: Sequence[float], candidate: Sequence[float], gates: Gates, seed: int = 0
) -> Difference:
    """Judge two sets of independent samples of a cost.

    Args:
        base: Samples of the baseline, none negative.
        candidate: Samples of the candidate.
        gates: What counts as a difference.
        seed: Of the bootstrap, so that the same files give the same verdict.
    """
    old, new = np.asarray(base, np.float64), np.asarray(candidate, np.float64)
    if not len(old) or not len(new):
        return _undecided(old, new, "one side has no samples")
    if min(np.median(old), np.median(new)) < _LEAST:
        if not old.any() and not new.any():
            return _exact(0.0, 0.0, "both are zero")
        return _undecided(old, new, "a median of zero has no ratio")
    if min(len(old), len(new)) < MIN_SAMPLES:
        few = min(len(old), len(new))
        return _undecided(old, new, f"{few} samples on a side decide nothing; {MIN_SAMPLES} may")
    low, high = ratio_interval(old, new, gates.confidence, seed)
    found = Difference(
        Verdict.INCONCLUSIVE,
        base=float(np.median(old)),
        candidate=float(np.median(new)),
        ratio=float(np.median(new) / np.median(old)),
        low=low,
        high=high,
        p_value=float(stats.mannwhitneyu(old, new, alternative="two-sided").pvalue),
        noise=max(scatter(old), scatter(new)),
        reason="",
    )
    verdict, reason = _judge(found, gates)
    return replace(found, verdict=verdict, reason=reason)


def compare_counts(base: int, candidate: int) -> Difference:
    """Judge two exact counts: any difference is real; fewer is better."""
    if base == candidate:
        return _exact(base, candidate, "the counts are equal")
    return _exact(base, candidate, "the counts are exact and differ")


def ratio_interval(
    base: Samples, candidate: Samples, confidence: float, seed: int
) -> tuple[float, float | None]:
    """Bootstrap interval of the ratio of medians; its upper end is None where it has none.

    BCa where it is defined, else percentile: with a handful of samples the acceleration of a median
    is often undefined. An interval always contains the observed ratio.
    """
    observed = float(np.median(candidate) / np.median(base))
    if np.ptp(base) == 0 and np.ptp(candidate) == 0:
        return observed, observed
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = stats.bootstrap(
                (candidate, base),
                _ratio_of_medians,
                n_resamples=RESAMPLES,
                batch=_batch(len(base) + len(candidate)),
                confidence_level=confidence,
                method=method,
                paired=False,
                vectorized=True,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite([found.low, found.high]).all():
            return min(float(found.low), observed), max(float(found.high), observed)
    return 0.0, None


def _batch(samples: int) -> int:
    """Resamples to hold at a time, so that many samples need no more memory than few."""
    return max(min(RESAMPLES, MAX_RESAMPLED // max(samples, 1)), 1)


def _ratio_of_medians(candidate: Samples, base: Samples, axis: int = -1) -> Samples:
    ratio: Samples = np.median(candidate, axis=axis) / np.median(base, axis=axis)
    return ratio


def scatter(samples: Samples) -> float:
    """Robust coefficient of variation: 1.4826 times the median absolute deviation, over the median.

    The factor makes it the standard deviation's estimate for normal samples.
    """
    middle = np.median(samples)
    return float(1.4826 * np.median(np.abs(samples - middle)) / middle)


def _judge(found: Difference, gates: Gates) -> tuple[Verdict, str]:
    ratio, low = found.ratio or 1.0, found.low or 0.0
    high = math.inf if found.high is None else found.high
    p_value, noise = found.p_value or 0.0, found.noise or 0.0
    size = max(ratio, 1 / ratio) - 1
    significant = p_value < gates.alpha and not low <= 1 <= high
    reach = "without an upper end" if found.high is None else f"to {high - 1:+.1%}"
    span = f"interval {low - 1:+.1%} {reach}"
    if significant and size >= gates.effect and size > noise:
        verdict = Verdict.WORSE if ratio > 1 else Verdict.BETTER
        return verdict, f"{ratio - 1:+.1%}, {span}"
    if low >= 1 / (1 + gates.effect) and high <= 1 + gates.effect:
        return Verdict.SAME, f"the interval lies within {gates.effect:.1%} of equality"
    if size < gates.effect:
        reason = f"the interval reaches beyond {gates.effect:.1%}, the median not: use more runs"
    elif not significant:
        reason = f"{ratio - 1:+.1%} may be chance (p = {p_value:.2g}, {span}): use more runs"
    else:
        reason = f"{ratio - 1:+.1%} is within the scatter of {noise:.1%}: quieten the machine"
    return Verdict.INCONCLUSIVE, reason


def _exact(base: float, candidate: float, reason: str) -> Difference:
    verdict = Verdict.SAME
    if base != candidate:
        verdict = Verdict.WORSE if candidate > base else Verdict.BETTER
    ratio = candidate / base if base else None
    return Difference(verdict, base, candidate, ratio, ratio, ratio, None, None, reason)


def _undecided(old: Samples, new: Samples, reason: str) -> Difference:
    base = float(np.median(old)) if len(old) else None
    candidate = float(np.median(new)) if len(new) else None
    return Difference(Verdict.INCONCLUSIVE, base, candidate, None, None, None, None, None, reason)


@dataclass(frozen=True)
class PairedRatio:
    """Traced over untraced, or any candidate over its baseline, measured side by side.

    Attributes:
        ratio: Median of the pairs' ratios.
        low: Lower end of its interval.
        high: Upper end.
    """

    ratio: float
    low: float
    high: float


def paired_ratio(
    base: Sequence[float], candidate: Sequence[float], confidence: float = 0.95
) -> PairedRatio:
    """Ratio of samples that were taken in pairs: what drifts over minutes falls on both of a pair.

    Args:
        base: One sample per pair.
        candidate: Its partners, in the same order.
        confidence: Of the interval, as for `median_interval`.

    Raises:
        ValueError: The lengths differ, or there are fewer than two pairs.
    """
    if len(base) != len(candidate) or len(base) < MIN_PAIRS:
        raise ValueError("paired samples come in two or more pairs")
    ratios = np.asarray(candidate, np.float64) / np.asarray(base, np.float64)
    low, high = median_interval(ratios, confidence)
    return PairedRatio(float(np.median(ratios)), low, high)


def median_interval(
    samples: Sequence[float] | Samples, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of a median between order statistics, whatever the samples' distribution.

    Between neighbouring order statistics it is interpolated (Hettmansperger and Sheather 1986). A
    percentile bootstrap would leave out the ends of a few samples: of 7 it covers 88 %, not 95 %.

    Args:
        samples: Two or more.
        confidence: Of the interval. Too few samples have none so sure: then the interval is from
            their least to their greatest, and covers `widest_coverage`.
    """
    ordered = np.sort(np.asarray(samples, np.float64))
    count = len(ordered)
    depth = np.arange(1, (count + 1) // 2 + 1)
    # Chance that the median lies between the sample of each depth from below and from above.
    covers = 1 - 2 * stats.binom.cdf(depth - 1, count, 0.5)
    inner = int(np.searchsorted(-covers, -confidence, side="right"))
    if inner == 0 or inner == len(depth):
        at = max(inner - 1, 0)
        return float(ordered[at]), float(ordered[count - 1 - at])
    part = (covers[inner - 1] - confidence) / (covers[inner - 1] - covers[inner])
    weight = (count - inner) * part / (inner + (count - 2 * inner) * part)
    low = _between(ordered[inner - 1], ordered[inner], weight)
    high = _between(ordered[count - inner], ordered[count - 1 - inner], weight)
    return low, high


def _between(outer: float, nearer: float, weight: float) -> float:
    """Interpolated, and kept from being rounded past what it lies between."""
    ends = sorted((float(outer), float(nearer)))
    return min(max((1 - weight) * outer + weight * nearer, ends[0]), ends[1])


def widest_coverage(samples: int) -> float:
    """Chance that a median lies between the least and the greatest of so many samples."""
    return float(1 - 0.5 ** (samples - 1)) if samples else 0.0
