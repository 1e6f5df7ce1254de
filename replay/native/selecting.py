"""The runs of recorded requests in C: checked, listed page by page, and laid on guest memory."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.native.ascending import cut
from replay.native.binding import array, load
from replay.native.types import Bytes, NativeError, Times, Words

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
    lib.aero_request_pages(requests_struct(ffi, requests)[0], array(ffi, pages, np.int64))
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
    held, layout = requests_struct(ffi, requests), layout_struct(ffi, regions)
    while True:
        found = [np.empty(room, np.int64) for _ in range(3)]
        out = [array(ffi, column, np.int64) for column in found]
        count = lib.aero_select_runs(held[0], queue_bits(queues), layout[0], room, *out)
        if count <= room:
            page, pages, request = (cut(column, count) for column in found)
            return page, pages, request
        room = count


def merge_requests(
    requests: RequestColumns, queues: Collection[int], regions: RegionColumns, group: Int64s
) -> tuple[Int64s, Int64s, Int64s]:
    """Cut the runs of some queues to guest memory, and unite those of each group.

    It gives what `merge_runs` gives of `select_runs`, without the columns in between.

    Args:
        requests: The requests.
        queues: The queues.
        regions: Guest memory.
        group: Group of each request. Equal ones must lie next to each other, among requests of
            these queues that name something.

    Returns:
        First page, pages and group of each run: groups in their order, runs ascending in each.

    Raises:
        NativeError: The extension is not built, or there is no memory.
    """
    ffi, lib = load()
    if len(group) != len(requests.queue):
        raise ValueError("there must be a group for each request")
    room = len(requests.run_pfn)
    held, layout = requests_struct(ffi, requests), layout_struct(ffi, regions)
    of = array(ffi, np.ascontiguousarray(group), np.int64)
    while True:
        found = [np.empty(room, np.int64) for _ in range(3)]
        out = [array(ffi, column, np.int64) for column in found]
        count = lib.aero_merge_requests(held[0], queue_bits(queues), layout[0], of, room, *out)
        if count < 0:
            raise NativeError("cannot merge the pages of requests", reason="there is no memory")
        if count <= room:
            page, pages, by = (cut(column, count) for column in found)
            return page, pages, by
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
    held, layout = requests_struct(ffi, requests), layout_struct(ffi, regions)
    out = [array(ffi, column, np.int64) for column in found]
    count = lib.aero_select_pages(held[0], queue_bits(queues), layout[0], *out)
    return cut(found[0], count), cut(found[1], count)


def outside_pages(requests: RequestColumns, queues: Collection[int], regions: RegionColumns) -> int:
    """Count the pages that some queues name and that are no guest memory, repeats as well."""
    ffi, lib = load()
    held, layout = requests_struct(ffi, requests), layout_struct(ffi, regions)
    return int(lib.aero_outside(held[0], queue_bits(queues), layout[0]))


def give_back() -> None:
    """Return memory that was freed to the system; the allocator would keep it for this process."""
    load()[1].aero_give_back()


def wire_pfns(requests: RequestColumns, queues: Collection[int]) -> npt.NDArray[np.uint32]:
    """List every PFN of some queues as a driver writes it: le32, in wire order.

    One that 32 bits cannot hold becomes the highest of them: no guest's memory, as is what it
    stands for. A cast would send a page of low memory.
    """
    ffi, lib = load()
    room = int(request_pages(requests)[np.isin(requests.queue, [*queues])].sum())
    found = np.empty(room, np.uint32)
    held = requests_struct(ffi, requests)
    lib.aero_wire_pfns(held[0], queue_bits(queues), array(ffi, found, np.uint32))
    return found


def queue_bits(queues: Collection[int]) -> int:
    """Describe some queues as C takes them."""
    return sum(1 << queue for queue in queues)


def requests_struct(ffi: Any, requests: RequestColumns) -> tuple[Any, list[Any]]:
    """Describe requests as `struct aero_requests`; and what must stay alive with it."""
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


def layout_struct(ffi: Any, regions: RegionColumns) -> tuple[Any, list[Any]]:
    """Describe regions as `struct aero_layout`; and what must stay alive with it."""
    held = [array(ffi, column, np.int64) for column in regions]
    return ffi.new("struct aero_layout *", [*held, len(regions.start_pfn)]), held
