"""Options of a replay that are refused before any work."""

from pathlib import Path

import pytest

from replay.schedule import MAX_SEED, ReplayOptions, check_options
from tracer.trace.errors import AerostatError


@pytest.mark.parametrize("seed", [-1, MAX_SEED])
def test_a_seed_that_no_results_file_could_hold(seed: int) -> None:
    with pytest.raises(AerostatError, match=f"the seed {seed}"):
        check_options(ReplayOptions(Path("x.balloon"), seed=seed))
    check_options(ReplayOptions(Path("x.balloon"), seed=MAX_SEED - 1))
