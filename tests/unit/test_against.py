"""Strategies beside one of them: pairs of rounds, who beats it, and what the table says."""

from dataclasses import replace

import pytest

from aerostat.against_tables import draw_against, interval, times, verdict, why_not
from replay.against import against, is_deployable
from replay.results import StrategyResult
from tests.unit.replay_results import make_strategy
from tracer.trace.errors import AerostatError

BASE = [1000, 2000, 3000, 4000, 5000, 6000]


def make(name: str, factor: float, protocol: str = "pfns", freed: int = 10) -> StrategyResult:
    """Runs whose total is `factor` times that of the base's run of the same round."""
    made = make_strategy(name, BASE)
    runs = tuple(
        replace(
            run,
            send_ns=0,
            merge_ns=0,
            translate_ns=0,
            discard_ns=round(total * factor),
            resident_after_pages=run.resident_before_pages - freed,
        )
        for run, total in zip(made.runs, BASE, strict=True)
    )
    return replace(made, runs=runs, protocol=protocol)


def test_ratios_are_of_the_same_round() -> None:
    base, half, double = against([make("range", 1), make("request", 0.5), make("qemu", 2)], "range")
    assert (base.times, base.low, base.high, base.beats) == (1, 1, 1, False)
    assert (half.times, half.low, half.discard_times, half.beats) == (2, 2, 2, True)
    assert (double.times, double.high, double.beats) == (0.5, 0.5, False)


def test_a_bound_or_a_strategy_that_frees_less_beats_nothing() -> None:
    found = against(
        [make("range", 1), make("oracle", 0.1), make("free", 0.1, freed=0), make("nop", 0.1)],
        "range",
    )
    assert [each.beats for each in found] == [False] * 4
    assert [each.deployable for each in found] == [True, False, True, False]
    assert found[2].freed_share == 0


def test_too_few_pairs_say_nothing() -> None:
    few = [
        replace(make(name, factor), runs=make(name, factor).runs[:5])
        for name, factor in (("range", 1), ("request", 0.5))
    ]
    found = against(few, "range")[1]
    assert (found.times, found.low, found.beats) == (None, None, None)


def test_a_reference_that_was_not_replayed_is_an_error() -> None:
    with pytest.raises(AerostatError, match="nothing can be set against 'range'"):
        against([make("qemu", 1)], "range")


def test_a_users_own_that_looks_ahead_beats_nothing() -> None:
    mine = make("mine:x=3", 0.1)
    bound, own = (replace(mine, deployable=causal) for causal in (False, True))
    base, found, other = against([make("range", 1), bound, own], "range")
    assert (found.deployable, found.beats, found.times) == (False, False, 10)
    assert (other.deployable, other.beats) == (True, True)
    assert (base.deployable, base.beats) == (True, False)


def test_of_older_results_the_name_decides() -> None:
    assert is_deployable(make("mine:x=3", 1))
    assert is_deployable(make("deferred:hold_bytes=none", 1))
    assert not is_deployable(make("oracle", 1))


def test_the_table_names_winners_fastest_first(capsys) -> None:
    strategies = [
        make("qemu", 2),
        make("range", 1, "range_words"),
        make("request", 0.5),
        make("bulk", 0.25, "range_words"),
    ]
    draw_against(strategies, against(strategies, "range"), "range", "no sibling threads")
    out = capsys.readouterr().out
    assert out.index("bulk") < out.index("request") < out.index("qemu")
    assert "2 beat range, times as fast: bulk 4, request 2. The best is bulk." in out
    assert "slower" in out


def test_it_says_why_nobody_can() -> None:
    nop = make("nop", 5)
    strategies = [make("range", 1, "range_words"), make("qemu", 9), nop]
    found = against(strategies, "range")
    assert verdict(found, "range") == "No deployable strategy beats range here with certainty."
    assert "5 times all of range" in why_not(strategies, found, "range")
    assert why_not(strategies[:2], found[:2], "range") == ""
    cheap = [make("range", 1, "range_words"), make("nop", 0.5)]
    assert why_not(cheap, against(cheap, "range"), "range") == ""


def test_figures() -> None:
    assert (times(1.0049), times(30.04), times(12345.6)) == ("1", "30", "12,346")
    assert interval(None, 1) == "-"
    assert interval(1.5, 2.25) == "1.5 to 2.25"
