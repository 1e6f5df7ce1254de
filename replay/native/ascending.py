"""Ascending lists in C: runs sorted and merged group by group; two lists walked side by side."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from replay.native.binding import array, load
from replay.native.types import NativeError, Times

Int64s = Times


def merge_runs(
    start: Int64s, pages: Int64s | None = None, group: Int64s | None = None
) -> tuple[Int64s, Int64s, Int64s]:
    """Unite the runs of each group that overlap or touch; those of no pages are dropped.

    A page takes a few nanoseconds in any order, unless it lies far from all others.

    Args:
        start: First page of each run; `start + pages` must fit int64.
        pages: Pages of each run; one each where left out.
        group: Group of each run. Those of one group must lie next to each other; where left out,
            all runs are group 0.

    Returns:
        First page, pages and group of each run: groups in their order, runs ascending in each.

    Raises:
        NativeError: The extension is not built, or there is no memory.
    """
    count = len(start)
    if any(column is not None and len(column) != count for column in (pages, group)):
        raise ValueError("the columns of runs differ in length")
    ffi, lib = load()
    given = [
        ffi.NULL if column is None else array(ffi, np.ascontiguousarray(column), np.int64)
        for column in (start, pages, group)
    ]
    found = [np.empty(count, np.int64) for _ in range(2 if group is None else 3)]
    out = [array(ffi, column, np.int64) for column in found]
    merged = lib.aero_merge(*given, count, *out, *([ffi.NULL] if group is None else []))
    if merged < 0:
        raise NativeError(f"cannot merge {count} runs of pages", reason="there is no memory")
    kept = [cut(column, merged) for column in found]
    if group is None:
        kept.append(np.zeros(merged, np.int64))
    return kept[0], kept[1], kept[2]


def sweep(
    first: tuple[Int64s, Int64s], second: tuple[Int64s, Int64s], *, keep: Collection[int]
) -> tuple[Int64s, Int64s]:
    """Walk two canonical lists of runs side by side.

    Args:
        first: First pages and pages of the runs: ascending, disjoint, not touching.
        second: The same of the other list.
        keep: Which stretches are kept: 1, in the first list alone; 2, in the second alone; 3, in
            both.

    Returns:
        First pages and pages of the stretches, canonical again.

    Raises:
        NativeError: The extension is not built.
    """
    ffi, lib = load()
    arguments: list[Any] = []
    for start, pages in (first, second):
        if len(start) != len(pages):
            raise ValueError("the columns of runs differ in length")
        arguments += [
            array(ffi, np.ascontiguousarray(column), np.int64) for column in (start, pages)
        ]
        arguments.append(len(start))
    found = [np.empty(len(first[0]) + len(second[0]), np.int64) for _ in range(2)]
    wanted = sum(1 << state for state in keep)
    kept = lib.aero_sweep(*arguments, wanted, *(array(ffi, each, np.int64) for each in found))
    return cut(found[0], kept), cut(found[1], kept)


def weave(first: Int64s, second: Int64s) -> Int64s:
    """Find the order that sorts two ascending lists, laid end to end; the first's equals first.

    Raises:
        NativeError: The extension is not built.
    """
    ffi, lib = load()
    order = np.empty(len(first) + len(second), np.int64)
    first, second = np.ascontiguousarray(first), np.ascontiguousarray(second)
    lib.aero_weave(
        array(ffi, first, np.int64),
        len(first),
        array(ffi, second, np.int64),
        len(second),
        array(ffi, order, np.int64),
    )
    return order


def cut(column: Int64s, length: int) -> Int64s:
    """Leave room that was not needed; it was never touched, but is not given back otherwise."""
    return column[:length] if length > len(column) // 2 else column[:length].copy()
