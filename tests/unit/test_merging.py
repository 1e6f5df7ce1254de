"""What is charged for merging: the groups of the plan, and nothing where nothing is merged."""

import numpy as np
import pytest

from replay.merging import Merging, merging
from replay.plan import Context
from replay.planning import StrategyError
from replay.prepare import plan_all
from replay.requests import Requests, from_pfns
from replay.sending import sending
from replay.strategies import load_strategy
from tracer.trace.manifest import Region
from tracer.trace.progress import silent
from tracer.trace.schema import Queue

FOR_EVER = "deferred:hold_bytes=none,hold_ns=none"
CONTEXT = Context((Region("ram", 0, None, 64 << 12, "anon", 4096),))
IN, OUT, REPORT = Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING
REQUESTS = from_pfns(
    [
        (IN, [9, 8, 3, 7]),
        (IN, [2, 4]),
        (REPORT, [range(12, 16), range(16, 20)]),
        (OUT, [4, 3]),
        (IN, [4]),
    ],
    [0, 10, 20, 30, 40],
)


def merged(name: str, requests: Requests = REQUESTS) -> Merging | None:
    recorded = sending(requests, load_strategy("nop").plan(requests, CONTEXT))
    return merging(load_strategy(name), requests, recorded, 64)


def runs(name: str, requests: Requests = REQUESTS) -> list[tuple[int, int, int]]:
    found = merged(name, requests)
    assert found is not None
    done = found.run([(0, 64 << 12, 0)])
    assert done.rejected == 0
    columns = (done.first_page, done.pages, done.group)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("name", ["nop", "qemu", "adjacent", "vectored", "punch"])
def test_nothing_is_charged_where_nothing_is_sorted(name: str) -> None:
    assert merged(name) is None


@pytest.mark.parametrize(("says", "charged"), [("merge = False", False), ("pass", True)])
def test_ones_own_says_whether_it_sorts(tmp_path, says: str, charged: bool) -> None:
    base = "from replay.strategies.request import Request\n"
    path = tmp_path / "mine.py"
    path.write_text(f'{base}class Mine(Request):\n    name = "mine"\n    {says}\n')
    assert (merged(f"{path}:Mine") is not None) is charged


def test_each_request_by_itself() -> None:
    assert runs("request") == [
        (3, 1, 0),
        (7, 3, 0),
        (2, 1, 1),
        (4, 1, 1),
        (4, 1, 4),
        (12, 8, 2),
    ]


def test_the_driver_merges_both_ways_and_no_reports() -> None:
    assert runs("range") == [(2, 3, 1), (7, 3, 1), (3, 2, 3), (4, 1, 4)]


def test_the_device_merges_what_it_holds_without_what_went_back() -> None:
    assert runs(FOR_EVER) == [(2, 1, 4), (4, 1, 4), (7, 3, 4), (12, 8, 2)]


def test_a_hold_may_end_with_a_report() -> None:
    requests = from_pfns(
        [(IN, [9, 8]), (IN, [3]), (OUT, [8]), (REPORT, [range(12, 16)])], [0, 10, 20, 30]
    )
    for name in ("deferred", "huge", "parallel"):
        found = runs(f"{name}:hold_bytes=none,hold_ns=none", requests)
        assert found == [(3, 1, 3), (9, 1, 3), (12, 4, 3)]


def test_what_goes_back_outside_of_a_hold_is_left() -> None:
    requests = from_pfns([(OUT, [5]), (IN, [9, 8]), (OUT, [8])], [0, 10, 20])
    assert runs("deferred:hold_bytes=8192", requests) == [(8, 2, 1)]


def test_a_request_that_names_nothing_is_merged_with_none() -> None:
    requests = from_pfns([(IN, [1 << 20]), (IN, [9, 8])], [0, 10])
    found = merged("request", requests)
    assert found is not None
    assert found.group.tolist() == [0, 1]


def test_populate_sorts_what_it_makes_ready() -> None:
    assert runs("populate") == [*runs("request")[:4], (3, 2, 3), *runs("request")[4:]]


@pytest.mark.parametrize("says", ["[0] * len(requests)", "np.zeros(1, np.int64)"])
def test_what_is_merged_is_one_number_for_each_request(tmp_path, says: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\nfrom replay.strategies.request import Request\n"
        f'class Mine(Request):\n    name = "mine"\n    def merged_with(self, requests):\n'
        f"        return {says}\n"
    )
    with pytest.raises(TypeError, match="must give one int64 for each request"):
        merged(f"{path}:Mine")
    with pytest.raises(StrategyError) as caught:
        plan_all((f"{path}:Mine",), REQUESTS, CONTEXT, silent)
    assert "must give one int64 for each request" in str(caught.value)


def test_the_driver_and_the_device_of_bulk() -> None:
    assert runs("bulk") == [*runs("range"), (12, 8, 2)]


def test_the_runs_are_those_of_the_plan_where_nothing_comes_back() -> None:
    requests = REQUESTS.before(2)
    strategy = load_strategy("range")
    plan = strategy.plan(requests, CONTEXT)
    recorded = sending(requests, load_strategy("nop").plan(requests, CONTEXT))
    found = merging(strategy, requests, recorded, 64)
    assert found is not None
    done = found.run([(0, 64 << 12, 0)])
    assert (done.first_page << np.uint64(12)).tolist() == plan.offset_bytes.tolist()
    assert (done.pages << np.uint64(12)).tolist() == plan.length_bytes.tolist()


def test_a_trace_without_requests_merges_nothing() -> None:
    requests = from_pfns([])
    strategy = load_strategy("range")
    plan = strategy.plan(requests, CONTEXT)
    assert merging(strategy, requests, sending(requests, plan), 64) is None
