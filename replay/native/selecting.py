"""The runs of recorded requests in C: checked, listed page by page, and laid on guest memory."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.native.ascending import cut
from replay.native.binding import array, load
from replay.native.types import Bytes, Times, Words

Int64s = Times


class RequestColumns(NamedTuple):
    """Columns of requests, as `replay.requests.Requests` has them."""

    queue: Bytes
    run_offsets: Int64s
    run_pfn: Words
    run_pages: npt.NDArray[np.int32]


class RegionColumns(NamedTuple):
    """Columns of a `replay.layout.Layout`."""

    start_pfn: Int64s
    end_pfn: Int64s
    base_page: Int64s


class Impossible(NamedTuple):
    """How many runs no request can hold, and why."""

    empty: int
    beyond: int
    below: int


def check_runs(run_pfn: Words, run_pages: npt.NDArray[np.int32]) -> Impossible:
    """Count runs of no pages, those beyond a 64-bit address, and those that fall below PFN 0."""
    ffi, lib = load()
    found = ffi.new("struct aero_impossible *")
    pfn = array(ffi, np.ascontiguousarray(run_pfn), np.uint64)
    pages = array(ffi, np.ascontiguousarray(run_pages), np.int32)
    lib.aero_check_runs(pfn, pages, min(len(run_pfn), len(run_pages)), found)
    return Impossible(found.empty, found.beyond, found.below)


def request_pages(requests: RequestColumns) -> Int64s:
    """Pages that each request names."""
    ffi, lib = load()
    pages = np.empty(len(requests.queue), np.int64)
    lib.aero_request_pages(_requests(ffi, requests)[0], array(ffi, pages, np.int64))
    return pages


def expand_runs(pfn: Int64s, pages: Int64s) -> Int64s:
    """List every PFN of runs, in their order; where pages are negative, PFNs fall."""
    ffi, lib = load()
    if len(pfn) != len(pages):
        raise ValueError("the columns of runs differ in length")
    given = [array(ffi, np.ascontiguousarray(column), np.int64) for column in (pfn, pages)]
    found = np.empty(lib.aero_expand(*given, len(pfn), ffi.NULL), np.int64)
    lib.aero_expand(*given, len(pfn), array(ffi, found, np.int64))
    return found


def select_runs(
    requests: RequestColumns, queues: Collection[int], regions: RegionColumns
) -> tuple[Int64s, Int64s, Int64s]:
    """Cut the runs of some queues to guest memory.

    Returns:
        First page in the replayed memory, pages and request of each piece, in arrival order; the
        pieces of one run ascend.
    """
    ffi, lib = load()
    room = len(requests.run_pfn)
    held, layout = _requests(ffi, requests), _regions(ffi, regions)
    while True:
        found = [np.empty(room, np.int64) for _ in range(3)]
        out = [array(ffi, column, np.int64) for column in found]
        count = lib.aero_select_runs(held[0], _bits(queues), layout[0], room, *out)
        if count <= room:
            page, pages, request = (cut(column, count) for column in found)
            return page, pages, request
        room = count


def select_pages(
    requests: RequestColumns, queues: Collection[int], regions: RegionColumns
) -> tuple[Int64s, Int64s]:
    """List every page of some queues in wire order, with its request.

    Returns:
        Page of the replayed memory and request; what is no guest memory is left out.
    """
    ffi, lib = load()
    room = int(request_pages(requests)[np.isin(requests.queue, [*queues])].sum())
    found = [np.empty(room, np.int64) for _ in range(2)]
    held, layout = _requests(ffi, requests), _regions(ffi, regions)
    out = [array(ffi, column, np.int64) for column in found]
    count = lib.aero_select_pages(held[0], _bits(queues), layout[0], *out)
    return cut(found[0], count), cut(found[1], count)


def _bits(queues: Collection[int]) -> int:
    return sum(1 << queue for queue in queues)


def _requests(ffi: Any, requests: RequestColumns) -> tuple[Any, list[Any]]:
    """The C view, and what must stay alive with it."""
    count, offsets = len(requests.queue), requests.run_offsets
    runs = min(len(requests.run_pfn), len(requests.run_pages))
    rises = len(offsets) == count + 1 and bool((offsets[1:] >= offsets[:-1]).all())
    if not rises or offsets[0] < 0 or offsets[-1] > runs:
        raise ValueError("run offsets must rise and stay within the runs")
    held = [
        array(ffi, np.ascontiguousarray(requests.queue), np.uint8),
        array(ffi, np.ascontiguousarray(offsets), np.int64),
        array(ffi, np.ascontiguousarray(requests.run_pfn), np.uint64),
        array(ffi, np.ascontiguousarray(requests.run_pages), np.int32),
    ]
    return ffi.new("struct aero_requests *", [*held, count]), held


def _regions(ffi: Any, regions: RegionColumns) -> tuple[Any, list[Any]]:
    held = [array(ffi, column, np.int64) for column in regions]
    return ffi.new("struct aero_layout *", [*held, len(regions.start_pfn)]), held
