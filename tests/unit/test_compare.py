"""Comparisons of results: verdict per metric, overall verdict, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from aerostat.cli import main
from replay.compare import Comparison, Policy, UnlikeError, compare
from replay.results_file import save_results
from replay.stats import Gates, Verdict
from tracer.trace.errors import ExitCode

from .replay_results import make_results, make_strategy


def times(factor: float = 1.0, seed: int = 0, sigma: float = 0.005) -> list[int]:
    return (1e6 * factor * np.random.default_rng(seed).lognormal(0, sigma, 9)).astype(int).tolist()


def verdicts(comparison: Comparison) -> dict[tuple[str, str], Verdict]:
    return {(line.subject, line.metric): line.difference.verdict for line in comparison.lines}


def test_same_against_itself_is_the_same() -> None:
    results = make_results(make_strategy("nop", [3] * 9), make_strategy("qemu", times()))
    comparison = compare(results, results)
    assert comparison.verdict is Verdict.SAME
    assert comparison.exit_code is ExitCode.OK
    assert set(verdicts(comparison).values()) == {Verdict.SAME}


def test_slower_is_a_regression_and_names_the_metric() -> None:
    base = make_results(make_strategy("qemu", times()), make_strategy("range", times(seed=1)))
    slow = make_results(
        make_strategy("qemu", times(seed=2)), make_strategy("range", times(1.1, seed=3))
    )
    comparison = compare(base, slow)
    assert comparison.verdict is Verdict.WORSE
    assert comparison.exit_code is ExitCode.REGRESSION
    found = verdicts(comparison)
    assert found["range", "discard_ns"] is Verdict.WORSE
    assert found["qemu", "discard_ns"] is Verdict.SAME
    assert compare(slow, base).verdict is Verdict.BETTER


def test_noise_is_inconclusive() -> None:
    base = make_results(make_strategy("qemu", times(sigma=0.4)))
    other = make_results(make_strategy("qemu", times(1.1, seed=1, sigma=0.4)))
    comparison = compare(base, other)
    assert comparison.verdict is Verdict.INCONCLUSIVE
    assert comparison.exit_code is ExitCode.INCONCLUSIVE


def test_one_operation_more_is_worse() -> None:
    base = make_results(make_strategy("qemu", times(), operations=1000))
    more = make_results(make_strategy("qemu", times(), operations=1001))
    assert verdicts(compare(base, more))["qemu", "operations"] is Verdict.WORSE
    assert compare(base, more).verdict is Verdict.WORSE


def test_the_floor_decides_nothing() -> None:
    base = make_results(make_strategy("nop", [3] * 9), make_strategy("qemu", times()))
    other = make_results(make_strategy("nop", [900] * 9), make_strategy("qemu", times()))
    comparison = compare(base, other)
    assert verdicts(comparison)["nop", "discard_ns"] is Verdict.WORSE
    assert comparison.verdict is Verdict.SAME


def test_a_stage_d_of_no_operations_decides_nothing() -> None:
    """qemu on memory of 2 MiB pages never discards: its stage d is an empty loop."""
    base = make_results(make_strategy("qemu", [60] * 9, operations=0))
    other = make_results(make_strategy("qemu", [75] * 9, operations=0))
    line = next(x for x in compare(base, other).lines if x.metric == "discard_ns")
    assert (line.difference.verdict, line.decisive) == (Verdict.WORSE, False)


@pytest.mark.parametrize("left", [20, 15])
def test_quicker_because_less_is_freed_is_worse(left: int) -> None:
    """20 pages are resident before: the baseline leaves 10, the other 15, or all."""
    base = make_results(make_strategy("qemu", times()))
    lazy = make_strategy("qemu", times(0.5, seed=1))
    runs = tuple(dataclasses.replace(run, resident_after_pages=left) for run in lazy.runs)
    other = make_results(dataclasses.replace(lazy, runs=runs))
    found = verdicts(compare(base, other))
    assert found["qemu", "discard_ns"] is Verdict.BETTER
    assert found["qemu", "freed_pages"] is Verdict.WORSE
    assert compare(base, other).verdict is Verdict.WORSE
    assert verdicts(compare(other, base))["qemu", "freed_pages"] is Verdict.BETTER


def test_failures_and_other_versions_are_told() -> None:
    base = make_results(make_strategy("qemu", times()))
    assert compare(base, base).warnings == ()
    failed = dataclasses.replace(base.strategies[0].runs[3], failures=2)
    runs = (*base.strategies[0].runs[:3], failed, *base.strategies[0].runs[4:])
    other = dataclasses.replace(
        base,
        strategies=(dataclasses.replace(base.strategies[0], runs=runs),),
        aerostat_version="0.2.0",
    )
    failures, version = compare(base, other).warnings
    assert failures == "qemu: 2 of 10 operations failed in the candidate"
    assert "0.1.0 and 0.2.0" in version


def test_only_decisive_metrics_weigh() -> None:
    base = make_results(make_strategy("qemu", times()))
    slow = make_results(make_strategy("qemu", times(1.2)))
    assert compare(base, slow, Policy(decisive=("operations",))).verdict is Verdict.SAME
    assert compare(base, slow, Policy(gates=Gates(effect=0.5))).verdict is Verdict.SAME


def test_unlike_machines_are_refused_and_named() -> None:
    base = make_results(make_strategy("qemu", times()))
    other = make_results(make_strategy("qemu", times()), kernel="6.18.0", load_1min=3.0)
    with pytest.raises(UnlikeError, match=r"kernel is '6\.1\.0' .* '6\.18\.0'") as caught:
        compare(base, other)
    assert "load" not in str(caught.value)
    comparison = compare(base, other, Policy(unlike_environments=True))
    assert comparison.verdict is Verdict.SAME
    assert "6.18.0" in comparison.warnings[0]


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("trace", {"session_id": "another"}),
        ("settings", {"siblings": 1}),
        ("settings", {"resting_threads": 0}),
        ("settings", {"backing": "memfd"}),
        ("settings", {"requests_replayed": 0}),
    ],
)
def test_unlike_work_is_refused(part: str, change: dict[str, object]) -> None:
    base = make_results(make_strategy("qemu", times()))
    other = dataclasses.replace(base, **{part: dataclasses.replace(getattr(base, part), **change)})
    with pytest.raises(UnlikeError, match="not of the same work"):
        compare(base, other)
    assert compare(base, other, Policy(unlike_work=True)).warnings


def test_strategies_of_one_side_are_told() -> None:
    base = make_results(make_strategy("qemu", times()), make_strategy("range", times()))
    other = make_results(make_strategy("qemu", times()), make_strategy("request", times()))
    comparison = compare(base, other)
    assert comparison.warnings == ("only on one side, not compared: range, request",)
    assert {line.subject for line in comparison.lines} == {"qemu"}


def test_nothing_in_common() -> None:
    base = make_results(make_strategy("nop", [1]), make_strategy("qemu", times()))
    other = make_results(make_strategy("nop", [1]), make_strategy("range", times()))
    with pytest.raises(UnlikeError, match="no strategy in common"):
        compare(base, other)


def test_runs_may_be_missing() -> None:
    base = make_results(make_strategy("qemu", times()))
    empty = dataclasses.replace(base.strategies[0], runs=())
    comparison = compare(base, dataclasses.replace(base, strategies=(empty,)))
    assert comparison.verdict is Verdict.WORSE or comparison.verdict is Verdict.INCONCLUSIVE
    assert verdicts(comparison)["qemu", "discard_ns"] is Verdict.INCONCLUSIVE


def test_an_interval_without_an_upper_end_is_told_as_one(tmp_path, capsys) -> None:
    """Where enough of the baseline's samples are zero, so are medians of its resamples."""
    strategy = make_strategy("qemu", times())
    for name, faults in (("base.json", [0, 0, 0, 0, 5, 5, 5, 5, 5]), ("cand.json", range(3, 12))):
        counted = zip(strategy.runs, faults, strict=True)
        runs = tuple(dataclasses.replace(run, minor_faults=count) for run, count in counted)
        results = make_results(dataclasses.replace(strategy, runs=runs))
        save_results(results, tmp_path / name)
    paths = [str(tmp_path / name) for name in ("base.json", "cand.json")]
    main(["compare", *paths, "--json"])
    found = json.loads(capsys.readouterr().out)
    (line,) = [each for each in found["lines"] if each["metric"] == "minor_faults"]
    difference = line["difference"]
    assert 0 <= difference["low"] <= difference["ratio"]
    assert difference["high"] is None
    assert difference["verdict"] == "inconclusive"
    assert "without an upper end" in difference["reason"]
    for form in ((), ("--markdown",)):
        main(["compare", *paths, *form])
        assert f"{difference['low']:.3f} or more" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--effect", "--alpha"])
def test_a_gate_is_a_number(option: str, tmp_path, capsys) -> None:
    path = tmp_path / "r.json"
    save_results(make_results(make_strategy("qemu", times())), path)
    assert main(["compare", str(path), str(path), option, "nan"]) == ExitCode.USAGE
    assert "is not a number" in capsys.readouterr().err


def test_a_comparison_is_json() -> None:
    results = make_results(make_strategy("qemu", times()))
    assert json.loads(json.dumps(compare(results, results).to_json()))["verdict"] == "same"


@pytest.mark.parametrize(("backing", "is_unlike"), [("anon", True), ("memfd", False)])
def test_huge_pages_are_told_apart_on_memory_that_takes_them(backing: str, is_unlike: bool) -> None:
    base = make_results(make_strategy("qemu", [1000, 1010]))
    sides = [
        dataclasses.replace(
            base, settings=dataclasses.replace(base.settings, backing=backing, thp=thp)
        )
        for thp in ("madvise", "always")
    ]
    if is_unlike:
        with pytest.raises(UnlikeError, match="thp is 'madvise' and 'always'"):
            compare(*sides)
    else:
        assert compare(*sides).lines
