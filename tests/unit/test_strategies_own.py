"""A strategy of one's own: found by path or entry point, with parameters, or refused and why."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from replay.check import check_plan
from replay.strategies import STRATEGIES, load_strategies, load_strategy
from replay.strategies.base import Strategy
from replay.strategies.range import Range
from tests.unit.command import run
from tests.unit.planned import EXAMPLE, context, listed, planned
from tests.unit.test_strategies_documented import section
from tracer.trace.errors import AerostatError


def example_file(path: Path) -> Path:
    code = section("Your own").split("```python\n")[1].split("```")[0]
    path.write_text(code)
    return path


def test_the_documented_example_loads_by_path_and_plans(tmp_path):
    mine = load_strategy(f"{example_file(tmp_path / 'mine.py')}:Mine")
    assert isinstance(mine, Strategy)
    plan = mine.plan(EXAMPLE, context())
    check_plan(EXAMPLE, plan, context())
    assert listed(plan) == planned("request", EXAMPLE)


def test_the_documented_example_has_ten_lines_and_runs_from_the_command_line(tmp_path):
    path = example_file(tmp_path / "mine.py")
    assert len([line for line in path.read_text().splitlines() if line]) == 10
    trace = Path(__file__).parents[2] / "traces" / "fragmented.balloon"
    done = run(["whatif", trace, "-s", f"{path}:Mine", "-s", "batch:pfns=1", "--json"])
    assert done.returncode == 0, done.stderr
    mine, single = json.loads(done.stdout)["strategies"]
    assert (mine.pop("name"), single.pop("name")) == ("mine", "batch:pfns=1")
    assert mine == single
    assert mine["operations"] > 10_000


COUNTING = """
from dataclasses import dataclass
from replay.strategies.request import Request

@dataclass(frozen=True)
class Mine(Request):
    every: int = 2
    label_only: str | None = None
    name = "mine"
"""


def test_a_users_strategy_has_parameters_too(tmp_path):
    (tmp_path / "mine.py").write_text(COUNTING)
    found = load_strategy(f"{tmp_path / 'mine.py'}:Mine:every=3,label_only=x")
    assert (found.every, found.label_only, found.label) == (3, "x", "mine:every=3,label_only=x")
    with pytest.raises(AerostatError) as caught:
        load_strategy(f"{tmp_path / 'mine.py'}:Mine:every=x")
    assert "every is 'x'; it must be int" in caught.value.reason


@pytest.mark.parametrize("name", ["range:window_pages", "deferred:hold_ns", "bulk:call_bytes"])
@pytest.mark.parametrize("number", ["99999999999999999999", str(1 << 63)])
def test_a_number_that_no_plan_can_hold_is_the_users_mistake(name, number):
    with pytest.raises(AerostatError) as caught:
        load_strategy(f"{name}={number}")
    assert f"is {number}; it must be below 2**63" in caught.value.reason
    assert load_strategy(f"{name}={(1 << 63) - 1}").label


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_label_leads_back_to_the_same_strategy(name):
    strategy = STRATEGIES[name]
    assert load_strategy(strategy.label) is strategy
    fields = {"hold_bytes": None, "merge": True, "threads": 7, "pfns": 5, "words": 9}
    other = {key: value for key, value in fields.items() if hasattr(strategy, key)}
    if other:
        changed = replace(strategy, **other)
        assert load_strategy(changed.label) == changed


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("source = 'x'", "Mine has no text as its 'name'"),
        ("name = 'mine'", "Mine has no text as its 'source'"),
        ("name, source = 'qemu', 'x'", "is that of a strategy that ships"),
        ("name, source = 'a:b', 'x'", "is not letters, digits"),
        ("name, source = 'm', 'x'\n    def __init__(self): 1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_strategy_has_a_name_of_its_own_and_a_source(tmp_path, body, reason):
    path = tmp_path / "mine.py"
    path.write_text(
        "from replay.strategies.base import Strategy\nclass Mine(Strategy):\n"
        f"    {body}\n    def operations(self, requests, context): return []\n"
    )
    with pytest.raises(AerostatError, match="cannot load the strategy") as caught:
        load_strategy(f"{path}:Mine")
    assert reason in caught.value.reason


def test_an_instance_with_parameters_loads_by_path(tmp_path):
    path = tmp_path / "small.py"
    path.write_text("from replay.strategies.range import Range\nsmall = Range(words=8)\n")
    assert load_strategy(f"{path}:small") == Range(words=8)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_that_ship_load_by_name(name):
    assert load_strategy(name) is STRATEGIES[name]


@pytest.mark.parametrize(
    ("code", "name", "reason"),
    [
        ("x = 1", "Mine", "bad.py defines no Mine"),
        ("Mine = 3", "Mine", "3 is no"),
        ("1 / 0", "Mine", "ZeroDivisionError"),
        ("def", "Mine", "SyntaxError"),
        ("from replay.strategies.base import Strategy as Mine", "Mine", "abstract"),
    ],
)
def test_a_file_that_holds_no_strategy_says_why(tmp_path, code, name, reason):
    path = tmp_path / "bad.py"
    path.write_text(code)
    with pytest.raises(AerostatError, match="cannot load the strategy") as caught:
        load_strategy(f"{path}:{name}")
    assert reason in caught.value.reason


def test_unknown_names_and_missing_files_are_told_apart(tmp_path):
    with pytest.raises(AerostatError, match="there is no strategy 'best'") as caught:
        load_strategy("best")
    assert "oracle" in caught.value.reason
    with pytest.raises(AerostatError, match="cannot load") as caught:
        load_strategy(f"{tmp_path / 'none.py'}:Mine")
    assert "is no file" in caught.value.reason


def test_an_installed_package_offers_a_strategy(tmp_path, monkeypatch):
    (tmp_path / "offered_strategy.py").write_text(example_file(tmp_path / "x.py").read_text())
    info = tmp_path / "offered-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[aerostat.strategies]\noffered = offered_strategy:Mine\nbroken = offered_strategy:No\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_strategy("offered").source == "docs/strategies.md"
    with pytest.raises(AerostatError, match="cannot load the strategy 'broken'"):
        load_strategy("broken")


def test_two_strategies_of_one_name_are_refused_and_one_named_twice_comes_once(tmp_path):
    """Results go by name: the runs of one would stand for both."""
    paths = [f"{example_file(tmp_path / name)}:Mine" for name in ("old.py", "new.py")]
    with pytest.raises(AerostatError, match="two strategies are called 'mine'") as caught:
        load_strategies(["qemu", *paths])
    assert "old.py:Mine and " in caught.value.reason
    again = load_strategies([paths[0], "deferred", paths[0], "deferred:hold_bytes=67108864"])
    assert [each.label for each in again] == ["mine", "deferred"]
