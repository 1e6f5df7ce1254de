"""Options of a replay that are refused before any work."""

from pathlib import Path

import pytest

from aerostat.cli import main
from replay.schedule import MAX_SEED, ReplayOptions, check_options
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


def test_too_few_runs_to_set_anything_against_a_strategy() -> None:
    with pytest.raises(AerostatError, match="against 'range' with 5 runs"):
        check_options(ReplayOptions(Path("x.balloon"), against="range", runs=5))
    check_options(ReplayOptions(Path("x.balloon"), against="range", runs=6))
