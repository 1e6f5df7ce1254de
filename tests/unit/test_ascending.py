"""Runs merged in C: every way that the code may take, by what makes it take that way."""

import numpy as np
import pytest

from replay.native.ascending import merge_runs, sweep
from replay.ranges import compact, expand

PAGES = 1 << 16


@pytest.mark.parametrize(
    "spread",
    [1, 3, 64, 4096, 1 << 18, 1 << 34],
    ids=["next", "near", "word", "level", "top", "sorted"],
)
def test_any_distance_between_pages_gives_the_same_as_a_sort(spread: int) -> None:
    random = np.random.default_rng(spread)
    pfns = np.repeat(random.permutation(PAGES // 8), 2) * spread + random.integers(0, 2, PAGES // 4)
    found = compact(pfns)
    assert expand(found).tolist() == sorted(set(pfns.tolist()))
    assert (found.start[1:] > found.end[:-1]).all()


@pytest.mark.parametrize("pages", [1, 63, 64, 65, 500, 5000, 1 << 40])
def test_long_runs_need_no_room_of_their_own(pages: int) -> None:
    order = np.random.default_rng(2).permutation(1000)
    start, length, _ = merge_runs(order * pages * 2, np.full(1000, pages))
    assert start.tolist() == (np.arange(1000) * pages * 2).tolist()
    assert (length == pages).all()
    start, length, _ = merge_runs(order * pages, np.full(1000, pages))
    assert (start.tolist(), length.tolist()) == ([0], [1000 * pages])


FEWEST = np.arange(1000, 1040) * 2
"""So many that they are marked in a bitmap; what comes then lies where a block of them would."""


@pytest.mark.parametrize(
    "block",
    [
        [60, 61, 62, 63, 64, 65, 66, 67],
        [67, 66, 65, 64, 63, 62, 61, 60],
        [7, 6, 5, 4, 3, 2, 1, 0],
        [10, 11, 12, 12, 14, 15, 16, 17],
        [10, 11, 13, 12, 14, 15, 16, 17],
        [10, 50, 12, 13, 14, 15, 16, 17],
        [10, 11, 12, 13, 14, 15, 99, 17],
        [17, 16, 15, 14, 13, 12, 99, 10],
        [5, 5, 5, 5, 5, 5, 5, 5],
        [(1 << 29) - 8 + i for i in range(8)],
        [(1 << 29) - 1 - i for i in range(8)],
        [(1 << 29) - 7 + i for i in range(8)],
        [(1 << 29) - i for i in range(8)],
    ],
    ids=[
        *("over a word's end", "falling over it", "falling to 0", "one twice", "two swapped"),
        *("far second", "far seventh", "far seventh, falling", "one page", "up to the last"),
        *("down from the last", "beyond the last", "from beyond it"),
    ],
)
def test_eight_pages_that_come_together_count_as_they_are(block: list[int]) -> None:
    found = compact(np.concatenate((FEWEST, block)))
    assert expand(found).tolist() == sorted({*FEWEST.tolist(), *block})
    assert (found.start[1:] > found.end[:-1]).all()


def test_pages_below_0_are_merged_by_a_sort() -> None:
    found = merge_runs(np.concatenate((FEWEST, np.arange(4, -4, -1))))
    assert (found[0][0], found[1][0]) == (-3, 8)


def test_a_later_group_does_not_see_the_marks_of_an_earlier_one() -> None:
    start = np.array([9, 5, 7, 8, 4, 6], np.int64)
    group = np.array([0, 0, 0, 1, 1, 1], np.int64)
    merged = merge_runs(start, None, group)
    assert np.transpose(merged).tolist() == [
        [5, 1, 0],
        [7, 1, 0],
        [9, 1, 0],
        [4, 1, 1],
        [6, 1, 1],
        [8, 1, 1],
    ]


def test_columns_that_do_not_belong_together_are_refused() -> None:
    one, two = np.zeros(1, np.int64), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="differ in length"):
        merge_runs(one, two)
    with pytest.raises(ValueError, match="differ in length"):
        merge_runs(one, None, two)
    with pytest.raises(ValueError, match="differ in length"):
        sweep((one, two), (one, one), keep=(1,))
    with pytest.raises(ValueError, match="contiguous"):
        merge_runs(np.zeros(1, np.int32))
