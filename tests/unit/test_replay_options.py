"""Options of a replay that are refused before any work."""

from pathlib import Path

import pytest

from aerostat.cli import main
from replay.schedule import MAX_SEED, ReplayOptions, check_options
from tests.unit.command import ROOT
from tracer.trace.errors import AerostatError, ExitCode


@pytest.mark.parametrize("seed", [-1, MAX_SEED])
def test_a_seed_that_no_results_file_could_hold(seed: int) -> None:
    with pytest.raises(AerostatError, match=f"the seed {seed}"):
        check_options(ReplayOptions(Path("x.balloon"), seed=seed))
    check_options(ReplayOptions(Path("x.balloon"), seed=MAX_SEED - 1))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("replay", "--memory-limit", "0"), "is nothing"),
        (("replay", "--against", "range", "--runs", "5"), "--against wants --runs 6 or more"),
        (("replay", "--memory-limit", "0G"), "is nothing"),
        (("whatif", "-w", "0"), "holds nothing back"),
        (("whatif", "-w", "0ms"), "holds nothing back"),
        (("whatif", "-w", "99999999999999h"), "is too much"),
        (("whatif", "-w", "16x"), "is not a size"),
    ],
)
def test_what_leaves_nothing_or_is_too_much_is_wrong_usage(
    arguments: tuple[str, ...], told: str, capsys
) -> None:
    assert main([*arguments, "x.balloon"]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err


def test_whatif_takes_all_and_tells_of_a_window_without_effect(capsys) -> None:
    trace = str(ROOT / "traces/fragmented.balloon")
    assert main(["whatif", trace, "--json"]) == 0
    every = capsys.readouterr().out
    assert main(["whatif", trace, "-s", "all", "--json"]) == 0
    assert capsys.readouterr().out == every
    for names, told in ((("qemu",), True), (("qemu", "deferred"), False)):
        chosen = [part for name in names for part in ("-s", name)]
        assert main(["whatif", trace, "-w", "16M", *chosen]) == 0
        assert ("--window has no effect: qemu hold" in capsys.readouterr().err) == told
    assert main(["whatif", trace, "-s", "qemu"]) == 0
    assert capsys.readouterr().err == ""


def test_too_few_runs_to_set_anything_against_a_strategy() -> None:
    with pytest.raises(AerostatError, match="against 'range' with 5 runs"):
        check_options(ReplayOptions(Path("x.balloon"), against="range", runs=5))
    check_options(ReplayOptions(Path("x.balloon"), against="range", runs=6))
