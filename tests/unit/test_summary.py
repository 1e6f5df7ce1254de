"""Medians, intervals and distances of a strategy's runs, and how tables show them."""

import dataclasses

import pytest

from aerostat.effect_tables import curve
from aerostat.replay_tables import draw_results, spread
from replay.summary import Spread, summarise

from .replay_results import make_results, make_run, make_strategy

REST_NS = make_run(0).total_ns
"""What stands beside stage d in the total of every run that is made here."""


def runs(*discard_ns: int):
    return tuple(make_run(time, order) for order, time in enumerate(discard_ns))


def test_stages_are_summed_up_apart_and_together() -> None:
    found = summarise({"qemu": runs(1000, 3000, 2000)}, "qemu")
    assert found.discard_ns == Spread(2000.0, 1000.0, 3000.0)
    assert found.total_ns.median == 2000 + REST_NS
    stages = (found.send_ns, found.merge_ns, found.translate_ns)
    assert sum(stage.median for stage in stages) == REST_NS
    assert found.touch_ns.median == 2000.0
    assert found.beside == ()


def test_one_run_has_no_interval() -> None:
    found = summarise({"qemu": runs(1150 - REST_NS), "nop": runs(1000 - REST_NS)}, "qemu")
    assert found.total_ns == Spread(1150.0, None, None)
    (nop,) = found.beside
    assert (nop.ratio, nop.low, nop.high) == (1.15, None, None)
    assert nop.excess_ns == Spread(150.0, None, None)


def test_no_run_has_no_summary() -> None:
    assert summarise({"qemu": ()}, "qemu") is None


def test_distances_are_taken_round_by_round() -> None:
    """The machine drifts by a factor of four over the rounds; the ratio does not."""
    drift = (1000, 2000, 4000)
    both = {
        "nop": runs(0, 0, 0),
        "oracle": runs(*(1 * each - REST_NS for each in drift)),
        "qemu": runs(*(3 * each - REST_NS for each in drift)),
    }
    found = {each.reference: each for each in summarise(both, "qemu").beside}
    assert list(found) == ["nop", "oracle"]
    assert (found["oracle"].ratio, found["oracle"].low, found["oracle"].high) == (3.0, 3.0, 3.0)
    assert found["oracle"].excess_ns.median == 4000.0
    assert found["nop"].excess_ns.median == 6000 - REST_NS
    own = {each.reference for each in summarise(both, "oracle").beside}
    assert own == {"nop", "qemu"}


def test_a_reference_that_took_no_time_has_no_ratio() -> None:
    nothing = tuple(
        dataclasses.replace(run, send_ns=0, merge_ns=0, translate_ns=0) for run in runs(0, 0)
    )
    (nop,) = summarise({"nop": nothing, "qemu": runs(10, 20)}, "qemu").beside
    assert nop.ratio is None
    assert nop.excess_ns.median == 15 + REST_NS


@pytest.mark.parametrize(
    ("found", "cell"),
    [
        (Spread(305e6, 290e6, 331e6), "305 ms -5 +9 %"),
        (Spread(305e6, None, None), "305 ms"),
        (Spread(0.0, 0.0, 0.0), "0 ns"),
    ],
)
def test_an_interval_stands_beside_its_median(found: Spread, cell: str) -> None:
    assert spread(found) == cell


def test_the_curve_falls_as_memory_goes() -> None:
    strategy = make_strategy("qemu", [1000])
    drawn = curve(strategy)
    assert len(drawn) == 10
    assert list(drawn) == sorted(drawn, reverse=True)
    assert (drawn[0], drawn[-1]) == ("█", "▅")
    assert curve(dataclasses.replace(strategy, watched=())) == "-"


def test_tables_show_every_effect_and_what_is_not_observed(capsys) -> None:
    strategies = (make_strategy("nop", [0, 0], operations=0), make_strategy("qemu", [1000, 1100]))
    draw_results(make_results(*strategies))
    out = capsys.readouterr().out
    for text in ("worst", "400 ns", "touch", "memory", "huge", "split", "x oracle", "over nop"):
        assert text in out, text
    assert "2 MiB" in out
    assert "on CPU 3" in out
    assert "not observed; replay the oracle as well" in out
    assert "Fidelity of qemu: the same operations" in out
    assert "Fidelity: not observed" not in out


def test_every_replay_says_of_its_fidelity_or_how_to_get_it(capsys) -> None:
    results = make_results(make_strategy("request", [1000, 1100]))
    draw_results(dataclasses.replace(results, fidelity=None))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "idelity" in line]
    assert line == (
        "Fidelity: not observed; what the traced VMM did is qemu: replay it as well (-s qemu)."
    )


def test_without_watched_runs_the_table_says_how_to_get_pauses(capsys) -> None:
    results = make_results(dataclasses.replace(make_strategy("qemu", [1000]), watched=()))
    changed = dataclasses.replace(results.settings, watched_runs=0)
    draw_results(dataclasses.replace(results, settings=changed))
    assert "--watched-runs 1" in capsys.readouterr().out
