"""huge: discard a huge page as soon as it is wholly in the balloon; the rest waits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replay.hostpage import changes, whole_units
from replay.native.ascending import weave
from replay.plan import Context
from replay.ranges import Bools, Int64s, Runs, compact, expand, merge, merge_sorted, subtract
from replay.requests import Requests
from replay.strategies.base import Operations, check_unit
from replay.strategies.deferred import (
    Holding,
    by_hold,
    ever_held,
    flat,
    from_holds,
    moves_within,
    still_held,
)
from replay.strategies.select import Pieces, merged_requests, merged_within, whole_host_pages
from replay.strategies.windows import BALLOON
from tracer.trace.schema import PAGE_BYTES, Queue


@dataclass(frozen=True)
class Huge(Holding):
    """Whole huge pages first: a discard of a part splits one, and frees nothing until all is gone.

    The device marks the pages that it holds back. The request that makes a huge page whole brings
    its discard, neighbours merged. When the hold ends, the rest goes in merged ranges. What is
    deflated meanwhile is never discarded. Reported blocks are merged within their request; deflate
    only acknowledges.

    Args:
        unit_bytes: Size of a huge page: a power of two of at least 4096.
    """

    unit_bytes: int = 2 << 20

    name = "huge"
    source = (
        "Hui Zhu, VIRTIO_BALLOON_F_THP_ORDER and F_CONT_PAGES (2020), and HyperAlloc (EuroSys"
        " 2025), where the guest collects whole huge pages; here the device does"
    )

    def __post_init__(self) -> None:
        """Refuse sizes that no page has."""
        super().__post_init__()
        check_unit("unit_bytes", self.unit_bytes)

    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        """One discard per merged range of whole units, per range of the rest, and per block."""
        discard = (self.advice(context),)
        whole, rest = self._whole_and_rest(requests, context)
        found = rest
        if len(whole.page):
            order = weave(whole.request, rest.request)
            both = (np.concatenate(columns) for columns in zip(whole, rest, strict=True))
            found = Pieces(*(column[order] for column in both))
        return [
            Operations(discard, whole_host_pages(found, requests, context)),
            Operations(discard, merged_requests(requests, context, Queue.REPORTING)),
        ]

    def _whole_and_rest(self, requests: Requests, context: Context) -> tuple[Pieces, Pieces]:
        """Whole units with the requests that make them so, and the rest with the ends of holds."""
        window = (self.hold_bytes, self.hold_ns)
        until = self.held_until(requests)
        unit = self.unit_bytes // PAGE_BYTES
        # Only a unit that a hold is given whole, at whatever times, can become whole in it.
        parts = _whole_parts(ever_held(requests, context, *window), unit)
        remaining = still_held(requests, context, *window)
        if len(parts.page) == 0:
            return parts, remaining
        ever = by_hold(parts, context)
        given, taken = (moves_within(ever, requests, context, until, q) for q in BALLOON)
        by, plain = _last_pieces(given, taken, ever, unit)
        start = np.repeat(ever.start, ever.pages // unit) + unit * _count_up(ever.pages // unit)
        intricate = merge(start[~plain], np.full(int((~plain).sum()), unit))
        given, taken = (moves_within(intricate, requests, context, until, q) for q in BALLOON)
        again, again_by, remains = _page_by_page(given, taken, unit)
        pages = expand(intricate)
        rest = merge_sorted(subtract(by_hold(remaining, context), ever), compact(pages[remains]))
        start, by = np.append(start[plain], pages[again]), np.append(by[plain], again_by)
        whole = from_holds(Runs(start, np.full(len(start), unit)), context)
        return merged_within(whole, by, context), from_holds(rest, context)


def _whole_parts(found: Pieces, unit: int) -> Pieces:
    """The whole units in each piece."""
    found = Pieces(*(column[found.pages >= unit] for column in found))
    start = -(-found.page // unit) * unit
    pages = (found.page + found.pages) // unit * unit - start
    kept = pages > 0
    return Pieces(start[kept], pages[kept], found.request[kept])


def _count_up(lengths: Int64s) -> Int64s:
    """0, 1, 2 up to each length, one after the other."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _units_of(moved: Pieces, unit: int) -> tuple[Int64s, Int64s]:
    """Number of each unit that each piece touches, and the piece's request."""
    low = moved.page // unit
    count = (moved.page + moved.pages - 1) // unit - low + 1
    return expand(Runs(low, count)), np.repeat(moved.request, count)


def _last_pieces(given: Pieces, taken: Pieces, ever: Runs, unit: int) -> tuple[Int64s, Bools]:
    """For each unit the request of its last piece, and whether that is what makes it whole.

    It is where no page of the unit is deflated during the hold, or inflated twice.
    """
    by = np.zeros(ever.total_pages // unit, np.int64)
    plain = np.ones(len(by), np.bool_)
    number, request = _units_of(given, unit)
    by[number] = request  # requests ascend, so the last one counts
    plain[_units_of(taken, unit)[0]] = False
    if int(given.pages.sum()) != ever.total_pages:
        named = np.bincount(expand(Runs(given.page, given.pages)) // unit, minlength=len(by))
        plain &= named == unit
    return by, plain


def _page_by_page(given: Pieces, taken: Pieces, unit: int) -> tuple[Int64s, Int64s, Int64s]:
    """First pages of units that become whole and by which request, and pages that remain.

    What remains is still held at the end, and went with no whole unit.
    """
    held = changes(flat(given), flat(taken))
    whole, by = whole_units(held, unit)
    stays = held.given & held.last
    page, request = held.page[stays], held.request[stays]
    # The last time that the unit of each page became whole: after the page came, or before.
    at = np.searchsorted(whole, page // unit * unit, side="right") - 1
    went = np.zeros(len(page), np.bool_)
    known = np.flatnonzero(at >= 0)
    same = whole[at[known]] == page[known] // unit * unit
    went[known] = same & (by[at[known]] >= request[known])
    return whole, by, page[~went]
