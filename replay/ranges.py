"""Runs of pages as numpy columns: sort, merge and cut millions of pages without a Python loop.

A PFN and a page count are int64 here: a PFN is below 2**52, so neither sums nor differences wrap,
and mixing signed with unsigned would turn them into floats.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from replay.native.ascending import merge_runs, sweep
from replay.native.selecting import expand_runs
from tracer.trace.runs import encode_runs

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Runs(NamedTuple):
    """Half-open runs of pages: `[start[i], start[i] + pages[i])`.

    The functions below return them canonical: ascending, disjoint, never touching.
    """

    start: Int64s
    pages: Int64s

    @property
    def end(self) -> Int64s:
        """The page after the last of each run."""
        return self.start + self.pages

    @property
    def total_pages(self) -> int:
        """Pages in all runs together."""
        return int(self.pages.sum())


def empty() -> Runs:
    """No run at all."""
    return Runs(np.zeros(0, np.int64), np.zeros(0, np.int64))


def compact(pfns: npt.ArrayLike) -> Runs:
    """Sort PFNs, drop repeats and merge neighbours.

    Args:
        pfns: Any integers in [0, 2**63), in any order.

    Returns:
        The canonical runs that hold exactly these PFNs.
    """
    return Runs(*merge_runs(np.asarray(pfns).astype(np.int64, copy=False))[:2])


def expand(runs: Runs) -> Int64s:
    """List every page of the runs, in the order of the runs.

    Returns:
        int64[sum of pages].
    """
    return expand_runs(runs.start, runs.pages)


def runs_from_wire(pfns: npt.ArrayLike) -> tuple[Int64s, Int64s]:
    """Find the runs of one request's PFNs in wire order, as a trace stores them.

    Args:
        pfns: PFNs as they were sent.

    Returns:
        First PFN of each run, and its pages: negative where the PFNs fall by one.
    """
    flat = np.asarray(pfns).astype(np.int64, copy=False)
    _, run_pfn, run_pages = encode_runs(flat, np.array([0, len(flat)], np.int64))
    return run_pfn, run_pages


def pfns_from_runs(run_pfn: npt.ArrayLike, run_pages: npt.ArrayLike) -> Int64s:
    """Rebuild the PFNs in wire order: the inverse of `runs_from_wire`."""
    first = np.asarray(run_pfn).astype(np.int64, copy=False)
    return expand_runs(first, np.asarray(run_pages).astype(np.int64, copy=False))


def rising(pfn: Int64s, pages: Int64s) -> tuple[Int64s, Int64s]:
    """Turn signed runs into lowest PFN and positive pages, in the same order."""
    return pfn + np.minimum(pages + 1, 0), np.abs(pages)


def merge(start: Int64s, pages: Int64s) -> Runs:
    """Unite runs that may overlap, touch and come in any order.

    Returns:
        Canonical runs that hold the same pages; runs of no pages are dropped.
    """
    return Runs(*merge_runs(start, pages)[:2])


def merge_sorted(first: Runs, second: Runs) -> Runs:
    """Unite the pages of two canonical lists of runs."""
    return Runs(*sweep(first, second, keep=(1, 2, 3)))


def subtract(first: Runs, second: Runs) -> Runs:
    """Keep the pages of the first canonical runs that the second do not hold."""
    return Runs(*sweep(first, second, keep=(1,)))


def intersect(first: Runs, second: Runs) -> Runs:
    """Keep the pages that both canonical runs hold."""
    return Runs(*sweep(first, second, keep=(3,)))


def places_in(start: Int64s, pages: Int64s, within: Runs) -> tuple[Int64s, Int64s, Int64s]:
    """Cut runs to the pages that others hold, and say where they lie among those.

    Args:
        start: First page of each run, in any order; runs may overlap.
        pages: Pages of each run.
        within: Canonical runs, thought of as laid end to end.

    Returns:
        Of each piece, in the order of the runs: its place among the pages of `within`, its pages,
        and the index of its run.
    """
    end = start + pages
    first = np.searchsorted(within.end, start, side="right")
    count = np.maximum(np.searchsorted(within.start, end, side="left") - first, 0)
    source = np.repeat(np.arange(len(start)), count)
    run = np.arange(len(source)) - np.repeat(np.cumsum(count) - count - first, count)
    low = np.maximum(start[source], within.start[run])
    high = np.minimum(end[source], within.end[run])
    before = np.cumsum(within.pages) - within.pages
    return low - within.start[run] + before[run], high - low, source


def align_in(runs: Runs, unit_pages: int) -> Runs:
    """Shrink each run to the whole units it holds; runs that hold none vanish.

    Args:
        runs: Canonical runs.
        unit_pages: Pages in a unit, for example 512 for 2 MiB.
    """
    start = -(-runs.start // unit_pages) * unit_pages
    pages = runs.end // unit_pages * unit_pages - start
    kept = pages > 0
    return Runs(start[kept], pages[kept])


def align_out(runs: Runs, unit_pages: int) -> Runs:
    """Widen each run to the whole units that it touches.

    Args:
        runs: Runs.
        unit_pages: Pages in a unit.
    """
    if unit_pages == 1:
        return runs
    start = runs.start // unit_pages * unit_pages
    return merge(start, -(-runs.end // unit_pages) * unit_pages - start)
