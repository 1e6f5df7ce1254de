"""Each strategy on cases with a name, what docs/strategies.md draws, and how one is found."""

import re
import time
from pathlib import Path

import numpy as np
import pytest

from replay.check import PlanError, check_plan
from replay.plan import Advice, Context, Plan
from replay.requests import Requests, from_pfns
from replay.strategies import STRATEGIES, load_strategy
from replay.strategies.base import Operations, Strategy, pieces
from replay.strategies.qemu import Qemu
from replay.strategies.range import Range
from replay.whatif import mergeability, what_if
from tracer.trace.errors import AerostatError
from tracer.trace.manifest import Region
from tracer.trace.runs import encode_runs
from tracer.trace.schema import PAGE_BYTES, Queue

DOCUMENT = Path(__file__).parents[2] / "docs" / "strategies.md"
IN, OUT, REPORT = Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING
EXAMPLE = from_pfns([(IN, [9, 8, 3, 7]), (IN, [2, 4]), (REPORT, [12, 13, 14, 15]), (OUT, [4, 3])])


def context(
    *places: tuple[int, int], host_page_bytes: int = PAGE_BYTES, backing: str = "anon"
) -> Context:
    regions = tuple(
        Region("ram", pfn * PAGE_BYTES, None, pages * PAGE_BYTES, backing, PAGE_BYTES)
        for pfn, pages in places or ((0, 16),)
    )
    return Context(regions, host_page_bytes, backing)


def listed(plan: Plan) -> list[tuple[str, int, int, int]]:
    """Operations as (advice, page, pages, request)."""
    columns = (plan.offset_bytes // 4096, plan.length_bytes // 4096, plan.request)
    rows = zip(plan.advice.tolist(), *(column.tolist() for column in columns), strict=True)
    return [(Advice(advice).name, page, pages, request) for advice, page, pages, request in rows]


def planned(name: str, requests: Requests, where: Context | None = None) -> list:
    where = where or context()
    plan = STRATEGIES[name].plan(requests, where)
    check_plan(requests, plan, where)
    return listed(plan)


def drawn(plan: Plan) -> str:
    """A plan on 16 pages as docs/strategies.md draws it."""
    lines = ["request  advice    0123456789abcdef"]
    for advice, page, pages, request in listed(plan):
        row = "".join("#" if page <= i < page + pages else "." for i in range(16))
        lines.append(f"{request:<7}  {advice:<8}  {row}")
    return "\n".join([*lines, f"sent: {plan.wire_requests} requests, {plan.wire_bytes} bytes"])


def section(name: str) -> str:
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(), re.M | re.S)
    assert found, f"docs/strategies.md has no section {name}"
    return found[1]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_a_section_with_its_source_and_its_plan(name):
    assert "Source: " in section(name)
    assert f"```text\n{drawn(STRATEGIES[name].plan(EXAMPLE, context()))}\n```" in section(name)


def test_the_parameters_of_range_are_documented():
    for name, value in vars(Range()).items():
        assert f"| `{name}` | {value} |" in section("range")


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_says_what_it_is(name):
    strategy = STRATEGIES[name]
    assert strategy.name == name
    assert strategy.source
    assert strategy.protocol == ("range_words" if name == "range" else "pfns")
    assert strategy.causal == (name != "oracle")


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_empty_trace_makes_an_empty_plan(name):
    plan = STRATEGIES[name].plan(from_pfns([]), context())
    assert (len(plan), plan.wire_requests, plan.wire_bytes) == (0, 0, 0)


@pytest.mark.parametrize("name", STRATEGIES)
def test_reports_act_within_their_own_request(name):
    """The guest may use a block again once the request is acknowledged."""
    requests = from_pfns([(IN, [1]), (REPORT, [4, 5, 6]), (IN, [2]), (REPORT, [8]), (IN, [3])])
    acted = {by for _, page, _, by in planned(name, requests) if page in (4, 8)}
    assert acted == (set() if name == "nop" else {1, 3})


def test_qemu_discards_in_wire_order_and_keeps_repeats():
    requests = from_pfns([(IN, [5, 3, 5, 99]), (OUT, [3, 3])])
    assert planned("qemu", requests) == [
        ("DONTNEED", 5, 1, 0),
        ("DONTNEED", 3, 1, 0),
        ("DONTNEED", 5, 1, 0),
        ("WILLNEED", 3, 1, 1),
        ("WILLNEED", 3, 1, 1),
    ]


def test_qemu_issues_both_calls_on_each_page_of_a_file():
    assert planned("qemu", from_pfns([(IN, [5, 3])]), context(backing="memfd")) == [
        ("PUNCH_HOLE", 5, 1, 0),
        ("DONTNEED", 5, 1, 0),
        ("PUNCH_HOLE", 3, 1, 0),
        ("DONTNEED", 3, 1, 0),
    ]


def test_qemu_on_host_pages_of_16_kib():
    requests = from_pfns([(IN, [7, 6, 5, 4, 0, 1, 2]), (IN, [3]), (OUT, [5, 6])])
    assert planned("qemu", requests, context(host_page_bytes=16384)) == [
        ("DONTNEED", 4, 4, 0),
        ("WILLNEED", 4, 4, 2),
        ("WILLNEED", 4, 4, 2),
    ]


def test_qemu_can_never_free_a_huge_page_with_linux_requests():
    pages = list(range(1024))
    requests = from_pfns([(IN, pages[at : at + 256]) for at in range(0, 1024, 256)])
    where = context((0, 1024), host_page_bytes=2 << 20, backing="hugetlb")
    assert planned("qemu", requests, where) == []
    assert planned("range", requests, where) == [("PUNCH_HOLE", 0, 1024, 3)]


def test_adjacent_merges_up_down_and_at_both_ends():
    requests = from_pfns([(IN, [5, 6, 4, 7, 1, 9, 8]), (IN, [10])])
    assert planned("adjacent", requests) == [
        ("DONTNEED", 4, 4, 0),
        ("DONTNEED", 1, 1, 0),
        ("DONTNEED", 8, 2, 0),
        ("DONTNEED", 10, 1, 1),
    ]


@pytest.mark.parametrize(
    ("pfns", "ranges"),
    [([5, 6, 4, 5, 6], [(4, 3), (5, 2)]), ([6, 5, 7, 6, 5], [(5, 3), (5, 2)])],
)
def test_adjacent_begins_anew_where_a_run_turns_back(pfns, ranges):
    """The first page of the second run still touches the range; the next lies inside it."""
    found = planned("adjacent", from_pfns([(IN, pfns)]))
    assert [(page, pages) for _, page, pages, _ in found] == ranges


def test_request_never_merges_across_requests_or_regions():
    where = context((0, 8), (8, 8))
    requests = from_pfns([(IN, [9, 7, 8, 6, 7]), (IN, [5])])
    second = int(where.layout.base_page[1])
    assert planned("request", requests, where) == [
        ("DONTNEED", 6, 2, 0),
        ("DONTNEED", second, 2, 0),
        ("DONTNEED", 5, 1, 1),
    ]


def test_range_joins_an_episode_and_reports_do_not_end_it():
    requests = from_pfns([(IN, [5]), (REPORT, [12]), (IN, [4]), (Queue.STATS, []), (OUT, [4])])
    assert planned("range", requests) == [
        ("DONTNEED", 12, 1, 1),
        ("DONTNEED", 4, 2, 2),
        ("WILLNEED", 4, 1, 4),
    ]


@pytest.mark.parametrize(("gap_ns", "operations"), [(199_999_999, 1), (200_000_000, 2)])
def test_a_pause_of_200_ms_ends_an_episode(gap_ns, operations):
    requests = from_pfns([(IN, [5]), (IN, [4])], [0, gap_ns])
    assert len(planned("range", requests)) == operations


def test_range_moves_its_window_on():
    requests = from_pfns([(IN, [3, 4, 5, 6, 7, 8])])
    plan = Range(window_pages=4).plan(requests, context())
    assert listed(plan) == [("DONTNEED", 3, 4, 0), ("DONTNEED", 7, 2, 0)]
    assert plan.wire_bytes == 8 + 2 * 8


def test_range_sends_one_range_over_two_regions_and_advises_two():
    where = context((0, 8), (8, 8))
    plan = STRATEGIES["range"].plan(from_pfns([(IN, list(range(6, 10)))]), where)
    assert len(plan) == 2
    assert plan.sent_bytes.tolist() == [16]


def test_range_fills_its_buffer_before_it_sends():
    pages = list(range(0, 20, 2))
    plan = Range(words=5).plan(from_pfns([(IN, pages)]), context((0, 32)))
    assert plan.sent_bytes.tolist() == [40, 40, 24]
    assert plan.sent_request.tolist() == [0, 0, 0]


def test_the_oracle_gives_all_back_before_each_deflate():
    requests = from_pfns([(IN, [1, 3]), (IN, [2]), (OUT, [2]), (IN, [4]), (IN, [2]), (OUT, [1])])
    assert planned("oracle", requests) == [
        ("DONTNEED", 1, 3, 1),
        ("DONTNEED", 2, 1, 4),
        ("DONTNEED", 4, 1, 4),
    ]


def test_the_oracle_waits_through_pauses_and_reports_but_not_for_blocks():
    stream = [(IN, [5]), (REPORT, [range(8, 10), range(10, 12)]), (IN, [4])]
    assert planned("oracle", from_pfns(stream, [0, 10**9, 2 * 10**9])) == [
        ("DONTNEED", 8, 4, 1),
        ("DONTNEED", 4, 2, 2),
    ]


def test_only_some_strategies_join_blocks_that_touch():
    requests = from_pfns([(REPORT, [range(8, 10), range(10, 12)])])
    counts = {name: len(planned(name, requests)) for name in STRATEGIES}
    assert counts == {"nop": 0, "qemu": 2, "adjacent": 2, "request": 1, "range": 2, "oracle": 1}


def test_the_seeds_inflate_in_numbers():
    """7 GiB given downwards, 256 PFNs a request: 1,835,008 calls come down to one range."""
    pages = 7 << 18
    requests = linux_inflate(np.arange(pages)[::-1].copy())
    found = {s.name: s for s in what_if(requests, context((0, 8 << 18))).strategies}
    assert {name: found[name].operations for name in found} == {
        "nop": 0,
        "qemu": 1_835_008,
        "adjacent": 7168,
        "request": 7168,
        "range": 1,
        "oracle": 1,
    }
    assert (found["qemu"].wire_requests, found["qemu"].wire_bytes) == (7168, 7 << 20)
    assert (found["range"].wire_requests, found["range"].wire_bytes) == (1, 24)
    assert found["adjacent"].run_pages_histogram == {8: 7168}
    assert found["adjacent"].to_qemu == 1 / 256
    assert found["qemu"].to_oracle == pages
    assert found["range"].bytes == 7 << 30


def linux_inflate(pfns: np.ndarray) -> Requests:
    offsets = np.append(np.arange(0, len(pfns), 256), len(pfns))
    count = len(offsets) - 1
    run_offsets, pfn, pages = encode_runs(pfns, offsets)
    return Requests(
        np.zeros(count, np.uint8),
        np.zeros(count, np.int64),
        run_offsets,
        pfn.astype(np.uint64),
        pages.astype(np.int32),
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_two_million_shuffled_pages_are_planned_without_a_loop(name):
    """0.1 to 0.4 s of CPU each; a Python loop over the pages would take far longer."""
    requests = linux_inflate(np.random.default_rng(7).permutation(2_000_000))
    begin = time.process_time()
    STRATEGIES[name].plan(requests, context((0, 2_000_000)))
    assert time.process_time() - begin < 3


def test_mergeability_counts_steps_within_requests_only():
    requests = from_pfns([(IN, [5, 6, 7, 3]), (IN, [4]), (OUT, [9, 8]), (REPORT, [99])])
    found = mergeability(requests, context())
    assert (found.pages, found.outside_pages) == (7, 1)
    assert (found.rising_share, found.falling_share) == (2 / 4, 1 / 4)
    nothing = mergeability(from_pfns([(IN, [1])]), context())
    assert (nothing.rising_share, nothing.falling_share) == (None, None)


def test_what_if_of_a_trace_without_discards_has_no_ratios():
    (only,) = what_if(from_pfns([]), context(), [STRATEGIES["request"]]).strategies
    assert (only.operations, only.to_qemu, only.to_oracle) == (0, None, None)


def test_what_if_sets_discards_alone_beside_the_oracle():
    (qemu,) = what_if(EXAMPLE, context(), [STRATEGIES["qemu"]]).strategies
    assert (qemu.operations, qemu.discards, qemu.to_oracle) == (9, 7, 7 / 3)
    assert (qemu.pages, qemu.discard_bytes) == (12, 10 * PAGE_BYTES)


class Greedy(Qemu):
    """A user's mistake: it discards what the guest gets back."""

    name = "greedy"

    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        return [Operations((Advice.DONTNEED,), pieces(requests, context, OUT))]


def test_what_if_refuses_a_wrong_plan_of_a_users_strategy():
    with pytest.raises(PlanError, match="strategy 'greedy' must not run"):
        what_if(EXAMPLE, context(), [Greedy()])


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
        ("x = 1", "Mine", "is no"),
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
