"""Warnings about a replay: which memory the discards met, and what the table cannot tell apart."""

import errno
from dataclasses import replace

import numpy as np
import pytest

from aerostat.replay_tables import draw_results, overlapping
from replay.caveats import discarded_pages, failure_warnings, floor_warnings, run_warnings
from replay.plan import Plan
from replay.ranges import Runs, empty
from replay.requests import Requests, from_pfns
from replay.residency import Residency
from replay.strategies import STRATEGIES
from tests.unit.planned import context
from tests.unit.replay_results import make_results, make_strategy
from tracer.trace.schema import Queue

REPORTS = from_pfns([(Queue.REPORTING, [range(4, 8), range(8, 12)])])
BALLOON = from_pfns([(Queue.INFLATE, [4, 5, 6, 4]), (Queue.DEFLATE, [12])])


def planned(name: str, requests: Requests) -> Plan:
    return STRATEGIES[name].plan(requests, context())


def resident(*runs: tuple[int, int]) -> Residency:
    start, pages = (np.array(column, np.int64) for column in zip(*runs, strict=True))
    return Residency(Runs(start, pages), empty(), "as recorded in the trace")


def test_pages_count_once_and_those_that_were_resident_apart():
    plan = planned("qemu", BALLOON)
    assert discarded_pages(plan, resident((0, 5), (12, 2))) == (1, 3)
    huge = replace(resident((0, 1)), huge=Runs(np.array([5]), np.array([9])))
    assert discarded_pages(plan, huge) == (2, 3)


def test_blocks_that_were_never_resident_are_told_once_for_all_strategies():
    names = ("nop", "qemu", "request")
    results = [make_strategy(name, [1000]) for name in names]
    plans = [planned(name, REPORTS) for name in names]
    (warning,) = run_warnings(plans, results, resident((0, 4)))
    assert warning.startswith("qemu, request: of 8 pages to discard 0 had memory behind them")
    assert run_warnings(plans, results, resident((4, 4))) == ()


def test_resident_memory_that_stays_is_the_strategys_own_doing():
    kept = make_strategy("qemu", [1000])
    kept = replace(kept, runs=tuple(replace(run, gone_pages=0) for run in kept.runs))
    found = run_warnings([planned("qemu", REPORTS)], [kept], resident((0, 16)))
    assert [text.split(",")[0] for text in found] == ["qemu: its discards gave no memory back"]
    assert "use a strategy that works on this backing" in found[0]


@pytest.mark.parametrize(
    ("times", "blurred"),
    [([900, 950], []), ([900, 1000], ["request"]), ([900, 2000], ["request"]), ([1200, 1300], [])],
)
def test_a_ratio_between_runs_that_overlap_is_not_read_as_a_difference(times, blurred, capsys):
    results = make_results(make_strategy("qemu", [1000, 1100]), make_strategy("request", times))
    assert overlapping(results) == blurred
    draw_results(results)
    assert ("Not told apart from qemu" in capsys.readouterr().out) == bool(blurred)


def test_without_the_reference_nothing_is_set_beside_it():
    assert overlapping(make_results(make_strategy("request", [1000]))) == []


def test_a_failure_of_a_later_run_is_told_with_its_errno() -> None:
    strategy = make_strategy("qemu", [100, 100, 100])
    failed = replace(strategy.runs[2], failures=3, first_errno=errno.EPERM)
    (warning,) = failure_warnings([replace(strategy, runs=(*strategy.runs[:2], failed))])
    assert "3 of 10 operations failed, the first with EPERM" in warning
    assert failure_warnings([strategy]) == ()


def test_a_harness_that_is_a_part_of_stage_d_is_told() -> None:
    strategy = make_strategy("qemu", [100, 100, 100])
    slow = tuple(replace(run, floor_ns=6) for run in strategy.runs)
    assert "over 5 %" in floor_warnings([replace(strategy, runs=slow)])[0]
    none = tuple(replace(run, floor_ns=0) for run in strategy.runs)
    assert floor_warnings([replace(strategy, runs=none)]) == ()
