"""The order of runs: interleaved, random, and the same for the same seed."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from replay.rounds import run_order


@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 1 << 32))
def test_each_round_holds_every_strategy_once(strategies: int, rounds: int, seed: int) -> None:
    order = run_order(strategies, rounds, seed)
    assert [turn for turn, _ in order] == [
        turn for turn in range(rounds) for _ in range(strategies)
    ]
    assert set(Counter(order).values()) == {1}
    assert {index for _, index in order} == set(range(strategies))
    assert order == run_order(strategies, rounds, seed)


def test_rounds_are_shuffled_apart() -> None:
    order = run_order(6, 20, seed=1)
    rounds = {tuple(index for turn, index in order if turn == wanted) for wanted in range(20)}
    assert len(rounds) > 15
    assert order != run_order(6, 20, seed=2)


def test_no_strategy_keeps_to_one_place() -> None:
    order = run_order(4, 400, seed=3)
    first = Counter(order[at][1] for at in range(0, len(order), 4))
    assert all(60 <= first[index] <= 140 for index in range(4)), "100 each, five deviations"
