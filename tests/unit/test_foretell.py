"""A plan's time from a table: what each call finds, and what lies between two measured lengths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.backings import Advice
from replay.cells import SHARES, Cell, Conditions, Kind, State, area_pages, cells_of, memory_pages
from replay.free_list import step
from replay.native import pacing
from replay.native.types import NativeError, Operations
from replay.plan import Context, Plan
from replay.predict import Table, foresee, predict_ns
from replay.ranges import Runs, empty
from replay.residency import Residency
from replay.results import FreeList
from tracer.trace.manifest import Region

DONTNEED, WILLNEED, POPULATE = Advice.DONTNEED, Advice.WILLNEED, Advice.POPULATE_WRITE
FREE = Advice.FREE
CONTEXT = Context((Region("ram", 0, 0, 8 << 20, "anon", 4096),))
CALL = Kind(int(DONTNEED))


def runs(*pairs: tuple[int, int]) -> Runs:
    columns = np.array(pairs, np.int64).reshape(-1, 2)
    return Runs(columns[:, 0].copy(), columns[:, 1].copy())


def plan(*operations: tuple[Advice, int, int], joined: list[int] | None = None) -> Plan:
    """Operations as (advice, first page, pages)."""
    return Plan(
        "test",
        "pfns",
        np.array([each[0] for each in operations], np.uint8),
        np.array([each[1] << 12 for each in operations], np.uint64),
        np.array([each[2] << 12 for each in operations], np.uint64),
        np.zeros(len(operations), np.int64),
        joined=None if joined is None else np.array(joined, bool),
    )


def found(made: Plan, residency: Residency) -> list[tuple[int, ...]]:
    """Small, split and huge pages that each operation finds, and huge pages that it splits."""
    return [tuple(row)[:4] for row in foresee(made, CONTEXT, residency).found.tolist()]


def test_what_goes_is_not_found_again() -> None:
    made = plan((DONTNEED, 0, 4), (DONTNEED, 2, 4), (WILLNEED, 4, 4), (DONTNEED, 6, 2))
    resident = Residency(runs((0, 3), (7, 1)), empty(), "")
    assert found(made, resident) == [(3, 0, 0, 0), (0, 0, 0, 0), (1, 0, 0, 0), (1, 0, 0, 0)]


def test_filled_pages_are_found() -> None:
    made = plan((POPULATE, 0, 8), (DONTNEED, 4, 8))
    assert found(made, Residency(empty(), empty(), "")) == [(0, 0, 0, 0), (4, 0, 0, 0)]


def emptied(made: Plan, residency: Residency) -> list[int]:
    """Pages that each operation walks a page table for, and does not find."""
    return foresee(made, CONTEXT, residency).found["emptied_pages"].tolist()


def test_pages_that_went_leave_their_page_table() -> None:
    made = plan((DONTNEED, 1, 3), (WILLNEED, 0, 8), (DONTNEED, 2, 1), (WILLNEED, 510, 4))
    assert emptied(made, Residency(runs((0, 4)), empty(), "")) == [0, 7, 1, 2]


def test_a_page_table_goes_with_all_of_its_pages_at_once() -> None:
    made = plan((DONTNEED, 0, 511), (WILLNEED, 0, 512), (DONTNEED, 0, 512), (WILLNEED, 0, 512))
    assert emptied(made, Residency(runs((0, 512)), empty(), "")) == [0, 511, 511, 0]


def test_a_huge_page_has_a_page_table_once_it_is_split() -> None:
    made = plan((DONTNEED, 0, 512), (WILLNEED, 0, 1), (DONTNEED, 512, 1), (WILLNEED, 512, 2))
    assert emptied(made, Residency(empty(), runs((0, 1024)), "")) == [0, 0, 0, 1]


def test_the_first_page_that_is_filled_makes_a_page_table() -> None:
    made = plan((WILLNEED, 600, 1), (POPULATE, 600, 1), (WILLNEED, 600, 3), (POPULATE, 700, 2))
    assert emptied(made, Residency(empty(), empty(), "")) == [0, 0, 2, 2]


def test_a_huge_page_goes_whole_or_is_split_once() -> None:
    made = plan(
        (DONTNEED, 512, 512),
        (DONTNEED, 1023, 2),
        (DONTNEED, 1100, 4),
        (WILLNEED, 1536, 1),
        (DONTNEED, 1400, 648),
    )
    resident = Residency(empty(), runs((512, 1536)), "")
    assert found(made, resident) == [
        (0, 0, 512, 0),
        (0, 1, 0, 1),
        (0, 4, 0, 0),
        (0, 0, 1, 0),
        (0, 136, 512, 0),
    ]


def test_a_plan_beyond_memory_is_refused() -> None:
    operations = Operations(
        np.array([DONTNEED], np.uint8),
        np.array([4096], np.uint64),
        np.array([8192], np.uint64),
        np.zeros(1, np.int64),
    )
    with pytest.raises(NativeError, match="operation 0 of 1 was refused"):
        pacing.foresee(8192, operations, {}, np.zeros(2, np.uint8))


HUGETLB = Context((Region("ram", 0, 0, 8 << 20, "hugetlb", 2 << 20),), 2 << 20, "hugetlb")
PUNCH = Advice.PUNCH_HOLE


def test_larger_host_pages_go_and_come_whole() -> None:
    made = plan(
        (PUNCH, 0, 1024),
        (PUNCH, 512, 512),
        (POPULATE, 700, 1),
        (WILLNEED, 512, 512),
        (PUNCH, 0, 2048),
    )
    seen = foresee(made, HUGETLB, Residency(runs((3, 1)), runs((1024, 512)), ""))
    # One page stands for its host page; a fill of one page fills a host page.
    assert seen.found["huge_pages"].tolist() == [512, 0, 0, 512, 1024]
    assert not any(
        seen.found[name].any() for name in seen.found.dtype.names if name != "huge_pages"
    )
    assert seen.freed_pages == 0


def test_larger_host_pages_are_measured_whole() -> None:
    conditions = Conditions("hugetlb", "madvise", None, (), ("untouched", "huge"), 512)
    cells = cells_of(Kind(int(PUNCH)), conditions)
    assert {(cell.state, cell.pages) for cell in cells} == {
        (state, pages) for state in ("untouched", "huge") for pages in (512, 1024)
    }
    assert not any(cell.far for cell in cells)
    # What calls fill takes memory as well as what they find.
    assert memory_pages(cells, filled=True) == 2 * memory_pages(cells)


def test_memory_of_larger_host_pages_is_whole() -> None:
    nothing = Operations(
        *(np.zeros(0, kind) for kind in (np.uint8, np.uint64, np.uint64, np.int64))
    )
    with pytest.raises(ValueError, match="no whole huge pages"):
        pacing.foresee(4096, nothing, {}, np.zeros(1, np.uint8), huge_only=True)


def table(
    costs: dict[tuple[str, bool], dict[int, float]],
    kind: Kind = CALL,
    free_list: FreeList | None = None,
) -> Table:
    return Table(
        {
            Cell(kind, state, far, pages): [ns]  # type: ignore[arg-type]
            for (state, far), at in costs.items()
            for pages, ns in at.items()
        },
        free_list,
    )


def test_a_call_costs_by_length_and_share_of_pages_found() -> None:
    known = table({("untouched", False): {1: 100, 4: 400}, ("small", False): {1: 1000, 4: 2800}})
    resident = Residency(runs((0, 2), (8, 4), (20, 8)), empty(), "")
    seen = foresee(plan((DONTNEED, 0, 2), (DONTNEED, 8, 8), (DONTNEED, 20, 8)), CONTEXT, resident)
    # On the line between 1 and 4 pages; half of what 8 pages would take; and beyond the table.
    expected = (1000 + 600) + (800 + (5200 - 800) / 2) + 5200
    assert predict_ns(seen, known) == pytest.approx(expected)


def test_a_jump_costs_more_only_as_far_as_it_was_measured() -> None:
    known = table({("untouched", False): {1: 100, 64: 163}, ("untouched", True): {1: 150, 32: 190}})
    nothing = Residency(empty(), empty(), "")
    seen = foresee(plan((DONTNEED, 64, 1), (DONTNEED, 63, 1), (DONTNEED, 0, 1)), CONTEXT, nothing)
    assert seen.far.tolist() == [True, False, True]
    assert predict_ns(seen, known) == pytest.approx(150 + 100 + 150)
    long = foresee(plan((DONTNEED, 64, 64)), CONTEXT, nothing)
    assert predict_ns(long, known) == pytest.approx(163 + 190 - 131)


def test_a_page_table_is_walked_in_vain_at_its_price() -> None:
    made = plan((WILLNEED, 0, 8), (WILLNEED, 512, 8))
    seen = foresee(made, CONTEXT, Residency(runs((4, 4)), empty(), ""))
    known = table(
        {("untouched", False): {1: 300, 8: 300}, ("emptied", False): {1: 380, 8: 400}},
        Kind(int(WILLNEED)),
    )
    assert predict_ns(seen, known) == pytest.approx((300 + 100 / 2) + 300)


def test_splitting_a_huge_page_is_paid_once() -> None:
    known = table(
        {
            ("untouched", False): {1: 100, 512: 200},
            ("split", False): {0: 5000, 1: 700},
            ("huge", False): {512: 9000},
        }
    )
    seen = foresee(
        plan((DONTNEED, 0, 512), (DONTNEED, 512, 1), (DONTNEED, 513, 1)),
        CONTEXT,
        Residency(empty(), runs((0, 1024)), ""),
    )
    assert predict_ns(seen, known) == pytest.approx(9000 + (700 + 5000) + 700)


def test_ranges_share_what_a_call_costs() -> None:
    few, many = SHARES
    call_ns, range_ns = 800.0, 100.0
    known = Table(
        {
            Cell(Kind(int(DONTNEED), n), "untouched", False, 1): [range_ns + call_ns / n]
            for n in (few, many)
        }
        | {Cell(CALL, "untouched", False, 1): [300.0]}
    )
    made = plan(*[(DONTNEED, page, 1) for page in range(5)], joined=[0, 1, 1, 1, 0])
    seen = foresee(made, CONTEXT, Residency(empty(), empty(), ""))
    assert predict_ns(seen, known) == pytest.approx(4 * range_ns + call_ns + 300)
    assert seen.kinds == [CALL, Kind(int(DONTNEED), few), Kind(int(DONTNEED), many)]


def test_what_was_not_measured_is_not_foretold() -> None:
    known = table({("untouched", False): {1: 100}})
    seen = foresee(plan((WILLNEED, 0, 1)), CONTEXT, Residency(empty(), empty(), ""))
    assert predict_ns(seen, known) is None


def test_the_table_asks_for_what_plans_need_and_no_more() -> None:
    conditions = Conditions("anon", "madvise", None, (), ("untouched", "small"), 4)
    cells = cells_of(CALL, conditions)
    assert {cell.pages for cell in cells} == {1, 2, 4, 8}
    assert {cell.state for cell in cells} == {"untouched", "small"}
    assert memory_pages(cells) == sum(area_pages(c) for c in cells if c.state == "small")


def test_what_is_to_be_freed_later_already_is_told_apart() -> None:
    """MADV_FREE on it does next to nothing; for any other call it is there as before."""
    made = plan((FREE, 0, 4), (FREE, 2, 4), (WILLNEED, 0, 1), (POPULATE, 0, 2), (FREE, 0, 3))
    seen = foresee(made, CONTEXT, Residency(runs((0, 8)), empty(), "")).found
    assert seen["lazy_pages"].tolist() == [0, 2, 0, 0, 1]
    assert seen["small_pages"].tolist() == [4, 2, 1, 2, 2]
    gone = foresee(
        plan((FREE, 0, 4), (DONTNEED, 0, 8)), CONTEXT, Residency(runs((0, 6)), empty(), "")
    )
    assert gone.found["small_pages"].tolist() == [4, 6]
    assert gone.found["freed_pages"].tolist() == [0, 6]


def test_the_list_of_free_pages_has_room_for_some() -> None:
    """Huge pages that go whole are no pages of that list."""
    made = plan(
        (DONTNEED, 0, 4), (POPULATE, 0, 2), (DONTNEED, 8, 4), (DONTNEED, 0, 2), (DONTNEED, 512, 512)
    )
    resident = Residency(runs((0, 12)), runs((512, 512)), "")
    seen = foresee(made, CONTEXT, resident)
    assert seen.freed_pages == 4 + 4 + 2
    assert seen.beyond(5).tolist() == [0, 0, 1, 2, 0]
    assert seen.beyond(0).tolist() == [4, 0, 4, 2, 0]
    assert seen.beyond(8).tolist() == [0] * 5


def test_pages_that_the_list_has_no_room_for_cost_more() -> None:
    costs = {
        ("untouched", False): {4: 400.0},
        ("small", False): {4: 1000.0},
        ("full", False): {4: 1400.0},
    }
    made = plan((DONTNEED, 8, 4), (DONTNEED, 4, 4), (DONTNEED, 0, 4))
    seen = foresee(made, CONTEXT, Residency(runs((0, 12)), empty(), ""))

    def told_ns(pages: int) -> float | None:
        return predict_ns(
            seen, table(costs, free_list=FreeList(int(DONTNEED), pages, 200.0, 300.0))
        )

    assert told_ns(12) == pytest.approx(3 * 1000)
    assert told_ns(6) == pytest.approx(1000 + (1000 + 200) + 1400)
    assert told_ns(0) == pytest.approx(3 * 1400)


LONG_CALLS = {64: 16_000.0, 512: 104_000.0, 1024: 209_000.0, 2048: 400_000.0}
"""Some 2 us a call and 200 ns a page, 204 and 196 of them by chance."""


def test_much_memory_costs_by_the_page_what_the_sweep_found() -> None:
    costs = {
        ("untouched", False): {1: 400.0},
        ("small", False): {1: 1500.0, 32: 10_000.0, **LONG_CALLS},
        ("small", True): {1: 1700.0, 32: 10_400.0},
        ("full", False): {1: 1600.0, **LONG_CALLS},
    }
    swept = table(costs, free_list=FreeList(int(DONTNEED), 1 << 20, 244.0, 304.0))
    bare = table(costs)

    def of(state: State, pages: int, *, far: bool = False) -> tuple[float, float]:
        asked = CALL, state, np.array([far]), np.array([float(pages)])
        return float(bare.call_ns(*asked)[0]), float(swept.call_ns(*asked)[0])

    levels: tuple[tuple[State, int], ...] = (("small", 244), ("full", 304))
    for state, page_ns in levels:
        for pages in (512, 1024, 2048, 8192):
            # A call of 2 MiB and one of 32 MiB differ by the call alone.
            assert 0 <= page_ns - of(state, pages)[1] / pages < 10
        assert of(state, 512)[1] == pytest.approx(512 * page_ns)
    for pages in (1, 32):
        cell, leveled = of("small", pages)
        far_cell, far_leveled = of("small", pages, far=True)
        assert leveled - cell == pytest.approx(40 * pages, rel=0.15)
        assert far_leveled - leveled == pytest.approx(far_cell - cell)
    assert of("untouched", 1)[0] == of("untouched", 1)[1] == 400


def test_a_page_costs_the_same_in_a_shared_call_of_which_a_part_goes_with_the_range() -> None:
    """The sweep's own calls were single ones: their part of 2 us is taken off once, for both."""
    shared = Kind(int(DONTNEED), 8)
    samples = {
        Cell(kind, "small", False, pages): [call_ns + 200.0 * pages]
        for kind, call_ns in ((CALL, 2048.0), (shared, 512.0))
        for pages in (64, 512, 1024)
    }
    known = Table(samples, FreeList(int(DONTNEED), 1 << 20, 254.0, 254.0))

    def told_ns(kind: Kind, pages: int) -> float:
        return float(known.call_ns(kind, "small", np.array([False]), np.array([float(pages)]))[0])

    for pages in (64, 512, 1024):
        assert told_ns(CALL, pages) == pytest.approx(2048 + 250 * pages)
        assert told_ns(shared, pages) == pytest.approx(512 + 250 * pages)


@pytest.mark.parametrize(
    ("advice", "lengths"), [(FREE, LONG_CALLS), (DONTNEED, {1: 1500.0, 64: 1.0, 512: 9.0})]
)
def test_a_sweep_says_nothing_of_other_calls_nor_of_short_ones_alone(advice, lengths) -> None:
    costs = {("untouched", False): {1: 400.0}, ("small", False): lengths}
    swept = table(costs, free_list=FreeList(int(advice), 1 << 20, 900.0, 900.0))
    for pages, ns in lengths.items():
        asked = CALL, "small", np.array([False]), np.array([float(pages)])
        assert swept.call_ns(*asked) == pytest.approx(ns)


def test_only_calls_that_free_are_measured_on_a_full_list() -> None:
    conditions = Conditions("anon", "madvise", None, (), ("untouched", "small", "lazy", "full"), 1)
    asked = {
        advice: {cell.state for cell in cells_of(Kind(int(advice)), conditions)}
        for advice in (DONTNEED, FREE, WILLNEED)
    }
    assert asked[DONTNEED] == {"untouched", "small", "full"}
    assert asked[FREE] == {"untouched", "small", "lazy"}
    assert asked[WILLNEED] == {"untouched", "small"}


@pytest.mark.parametrize(
    ("samples", "at"),
    [
        ([235] * 17 + [290] * 31, 17),
        ([250, 236, 231, 244] * 4 + [287, 290, 306, 285] * 8 + [386, 417], 16),
        ([290] * 3 + [235] * 40, 0),
        ([240, 241, 239, 246, 238, 240, 243, 239], 0),
        ([240, 241, 239, 246, 238, 240, 243, 400], 7),
        ([100, 200], 1),
        ([100], 0),
        ([], 0),
    ],
)
def test_where_pages_begin_to_cost_more(samples: list[float], at: int) -> None:
    assert step(samples) == at


@given(st.integers(0, 1000), st.floats(0.01, 0.1))
def test_noise_is_no_step(seed: int, spread: float) -> None:
    noise = np.random.default_rng(seed).lognormal(5, spread, 96)
    assert step(noise.tolist()) == 0
