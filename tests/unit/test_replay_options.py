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


@pytest.mark.parametrize(("option", "text"), [("--memory-limit", "0"), ("--memory-limit", "0G")])
def test_an_option_that_would_leave_nothing_is_wrong_usage(option: str, text: str, capsys) -> None:
    assert main(["replay", "x.balloon", option, text]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert "is nothing" in err
