"""Verdicts on samples of known distributions."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from replay.stats import (
    Gates,
    Verdict,
    compare_counts,
    compare_samples,
    median_interval,
    paired_ratio,
    ratio_interval,
    scatter,
    widest_coverage,
)

GATES = Gates()


def samples(count: int, seed: int, factor: float = 1.0, sigma: float = 0.01) -> list[float]:
    """Log-normal, as times are: a floor with a tail above it."""
    generator = np.random.default_rng(seed)
    return (1e6 * factor * generator.lognormal(0, sigma, count)).tolist()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [5, 9, 30])
def test_ten_percent_more_is_worse_and_less_is_better(count: int, seed: int) -> None:
    base, slow = samples(count, seed), samples(count, seed + 100, 1.10)
    worse = compare_samples(base, slow, GATES)
    assert worse.verdict is Verdict.WORSE
    assert worse.low > 1.03
    assert compare_samples(slow, base, GATES).verdict is Verdict.BETTER


def test_the_same_is_never_called_different_more_than_chance_allows() -> None:
    verdicts = [
        compare_samples(samples(7, seed), samples(7, seed + 1000), GATES).verdict
        for seed in range(100)
    ]
    assert set(verdicts) <= {Verdict.SAME, Verdict.INCONCLUSIVE}
    assert verdicts.count(Verdict.SAME) > 60


def test_noise_alone_is_never_a_verdict() -> None:
    verdicts = [
        compare_samples(samples(6, seed, sigma=0.3), samples(6, seed + 1000, sigma=0.3), GATES)
        for seed in range(60)
    ]
    wrong = [found for found in verdicts if found.verdict in {Verdict.WORSE, Verdict.BETTER}]
    assert len(wrong) <= 3, "5 % of 60"


def test_the_effect_gate_keeps_small_but_certain_differences_back() -> None:
    base, slow = samples(200, 1, sigma=0.002), samples(200, 2, 1.01, sigma=0.002)
    found = compare_samples(base, slow, GATES)
    assert found.p_value < 1e-6
    assert found.verdict is Verdict.SAME
    assert compare_samples(base, slow, Gates(effect=0.005)).verdict is Verdict.WORSE


def test_the_noise_gate_keeps_back_what_scatter_could_be() -> None:
    base, slow = samples(60, 1, sigma=0.3), samples(60, 2, 1.2, sigma=0.3)
    found = compare_samples(base, slow, GATES)
    assert found.p_value < 0.05
    assert found.noise > 0.2
    assert found.verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(("old", "new"), [(1, 1), (3, 3), (3, 100), (0, 5)])
def test_too_few_samples_decide_nothing(old: int, new: int) -> None:
    found = compare_samples(samples(old, 1), samples(new, 2, 5.0), GATES)
    assert found.verdict is Verdict.INCONCLUSIVE


def test_zero_has_no_ratio() -> None:
    assert compare_samples([0.0] * 5, [0.0] * 5, GATES).verdict is Verdict.SAME
    assert compare_samples([0.0] * 5, [1.0] * 5, GATES).verdict is Verdict.INCONCLUSIVE


def test_constant_samples() -> None:
    assert compare_samples([5.0] * 5, [5.0] * 5, GATES).verdict is Verdict.SAME
    assert compare_samples([5.0] * 5, [6.0] * 5, GATES).verdict is Verdict.WORSE


def test_the_interval_covers_the_true_ratio() -> None:
    covered = 0
    for seed in range(80):
        base = np.array(samples(20, seed, sigma=0.05))
        candidate = np.array(samples(20, seed + 500, 1.2, sigma=0.05))
        low, high = ratio_interval(base, candidate, 0.95, 0)
        covered += low <= 1.2 <= high
    assert covered >= 70


def test_the_same_files_give_the_same_verdict() -> None:
    base, other = samples(5, 1, sigma=0.1), samples(5, 2, sigma=0.1)
    assert compare_samples(base, other, GATES, 7) == compare_samples(base, other, GATES, 7)


def test_scatter_estimates_the_standard_deviation() -> None:
    normal = np.random.default_rng(3).normal(100, 5, 100_000)
    assert scatter(normal) == pytest.approx(0.05, rel=0.02)


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_counts_are_exact(base: int, candidate: int) -> None:
    verdict = compare_counts(base, candidate).verdict
    expected = (candidate > base) - (candidate < base)
    assert verdict == [Verdict.SAME, Verdict.WORSE, Verdict.BETTER][expected]


@given(
    st.lists(st.floats(0, 1e15), max_size=12),
    st.lists(st.floats(0, 1e15), max_size=12),
)
def test_any_samples_get_a_verdict(base: list[float], candidate: list[float]) -> None:
    found = compare_samples(base, candidate, GATES)
    if found.low is not None:
        assert found.low <= found.ratio
        assert found.high is None or found.ratio <= found.high


@pytest.mark.parametrize("bad", [{"effect": 0}, {"alpha": 1}, {"confidence": 0.2}])
def test_impossible_gates(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        Gates(**bad)


def test_paired_ratio_is_the_median_of_the_pairs_ratios():
    base = [100.0, 200.0, 400.0, 800.0, 1600.0]
    found = paired_ratio(base, [1.1 * value for value in base])
    assert found.ratio == pytest.approx(1.1)
    # The pairs drift by a factor of 16, their ratio not at all.
    assert (found.low, found.high) == (pytest.approx(1.1), pytest.approx(1.1))


def test_the_interval_of_a_median_covers_it_as_often_as_it_says() -> None:
    """The seed's headline makes 7 runs: a percentile bootstrap covers 88 % there."""
    draws = np.random.default_rng(5).lognormal(0, 0.5, (2000, 7))
    ends = [median_interval(draw) for draw in draws]
    covered = np.mean([low <= 1 <= high for low, high in ends])
    assert 0.93 <= covered <= 0.975


@pytest.mark.parametrize(("count", "percent"), [(2, 50), (3, 75), (4, 87.5), (5, 93.75)])
def test_few_samples_have_the_interval_that_they_have(count: int, percent: float) -> None:
    found = [5.0, 1.0, 4.0, 2.0, 3.0][:count]
    assert median_interval(found) == (min(found), max(found))
    assert widest_coverage(count) == percent / 100


@given(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=80))
@example([5.6211760755062245e-275] * 7)
def test_an_interval_of_a_median_holds_the_median(values: list[float]) -> None:
    low, high = median_interval(values)
    assert min(values) <= low <= np.median(values) <= high <= max(values)


def test_paired_ratio_refuses_samples_that_are_no_pairs():
    with pytest.raises(ValueError, match="pairs"):
        paired_ratio([1.0], [1.0])
