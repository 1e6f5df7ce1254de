"""How benches judge their figures; that the list of them is whole."""

from pathlib import Path

import pytest

from tests.bench.__main__ import BENCHES
from tests.bench.measure import Report, Settings, at_least, at_most, interleaved

BENCH = Path(__file__).parents[1] / "bench"


@pytest.mark.parametrize(
    ("goal", "low", "high", "verdict"),
    [
        (at_most(1.05), 0.9, 1.05, "met"),
        (at_most(1.05), 1.0, 1.06, "not decidable"),
        (at_most(1.05), 1.06, 1.2, "not met"),
        (at_least(150), 150, 190, "met"),
        (at_least(150), 149, 190, "not decidable"),
        (at_least(150), 20, 40, "not met"),
    ],
)
def test_a_goal_is_met_when_the_worse_end_of_the_interval_meets_it(goal, low, high, verdict):
    assert goal.judge(low, high) == verdict


def test_rounds_are_whole_and_the_first_is_thrown_away():
    asked = []

    def side(name: str):
        asked.append(name)
        return float(len(asked))

    found = interleaved(
        {"a": lambda: side("a"), "b": lambda: side("b")}, Settings(pairs=20, seed=3)
    )
    rounds = [asked[i : i + 2] for i in range(0, len(asked), 2)]
    assert len(rounds) == 21
    assert all(sorted(order) == ["a", "b"] for order in rounds)
    assert ["a", "b"] in rounds
    assert ["b", "a"] in rounds
    assert len(found["a"]) == len(found["b"]) == 20
    assert min(*found["a"], *found["b"]) == 3.0


def test_a_ratio_is_of_pairs_and_an_addition_too():
    report = Report("test")
    base, more = [10.0, 20.0, 30.0, 40.0], [11.0, 22.0, 33.0, 44.0]
    report.ratio("ratio", (base, more), at_most(1.2))
    report.added("added", "ns", (base, more), at_most(0.5))
    ratio, added = report.rows
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((1.1, 1.1, 1.1))
    assert ratio.verdict == "met"
    assert (added.median, added.verdict) == (2.5, "not met")


def test_every_bench_is_in_the_list():
    files = {path.stem.removeprefix("bench_") for path in BENCH.glob("bench_*.py")}
    assert files == set(BENCHES)
