"""huge: discard a huge page as soon as it is wholly in the balloon; the rest waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from replay.hostpage import Changes, changes, whole_units
from replay.plan import Context
from replay.ranges import Bools, Int64s, Runs, expand
from replay.requests import Requests
from replay.strategies.base import Operations, check_unit
from replay.strategies.deferred import Holding, broken_holds, hold_ranges
from replay.strategies.select import (
    Pieces,
    merged_requests,
    merged_within,
    pieces,
    whole_host_pages,
    wire_pages,
)
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
        until = self.held_until(requests)
        unit = self.unit_bytes // PAGE_BYTES
        given = pieces(requests, context, Queue.INFLATE)
        hold = until[given.request]
        merged = hold_ranges(requests, context, self.hold_bytes, self.hold_ns)
        intricate = broken_holds(requests, context, until) | _repeat(given, hold, merged, until)
        if not intricate.any():
            whole, rest = _of_plain_holds(given, merged, until, unit)
        else:
            plain, simple = ~intricate[hold], ~intricate[merged.request]
            whole, rest = _both(
                _of_plain_holds(_chosen(given, plain), _chosen(merged, simple), until, unit),
                _of_intricate_holds(_chosen(given, ~plain), requests, context, until, unit),
            )
            rest = merged_within(rest, rest.request, context)
        found = _joined(merged_within(whole, whole.request, context), rest)
        found = _chosen(found, np.argsort(found.request, kind="stable"))
        return [
            Operations(discard, whole_host_pages(found, requests, context)),
            Operations(discard, merged_requests(requests, context, Queue.REPORTING)),
        ]


class Found(NamedTuple):
    """Whole units with the requests that make them whole, and the rest with the ends of holds."""

    whole: Pieces
    rest: Pieces


def _chosen(found: Pieces, which: Bools | Int64s) -> Pieces:
    return Pieces(*(column[which] for column in found))


def _joined(first: Pieces, second: Pieces) -> Pieces:
    return Pieces(*(np.concatenate(columns) for columns in zip(first, second, strict=True)))


def _both(first: Found, second: Found) -> Found:
    return Found(*(_joined(*parts) for parts in zip(first, second, strict=True)))


def _repeat(given: Pieces, hold: Int64s, merged: Pieces, until: Int64s) -> Bools:
    """Mark the holds, by the request that ends them, in which a page is inflated twice."""
    count = len(until) + 1
    if given.pages.sum() == merged.pages.sum():
        return np.zeros(count, np.bool_)
    named = np.bincount(hold, given.pages, count)
    different = np.bincount(merged.request, merged.pages, count)
    repeated: Bools = named != different
    return repeated


def _of_plain_holds(given: Pieces, merged: Pieces, until: Int64s, unit: int) -> Found:
    """Where each page is inflated once and none deflated: units are whole parts of merged runs."""
    page, pages, hold = merged
    end = page + pages
    first = -(-page // unit) * unit
    units = np.maximum(end // unit - first // unit, 0)
    has = units > 0
    if not has.any():
        return Found(_chosen(merged, has), merged)
    # What is left of a run before its first unit, and behind its last.
    head = np.where(has, first, end)
    tail = np.where(has, end // unit * unit, end)
    left = Pieces(
        np.stack((page, tail), axis=1).reshape(-1),
        np.stack((head - page, end - tail), axis=1).reshape(-1),
        np.repeat(hold, 2),
    )
    whole = expand(Runs(first // unit, units))
    by = _completed_by(given, until, (whole, np.repeat(hold, units)), unit)
    return Found(Pieces(whole * unit, np.full(len(whole), unit), by), _chosen(left, left.pages > 0))


def _completed_by(given: Pieces, until: Int64s, units: tuple[Int64s, Int64s], unit: int) -> Int64s:
    """Request of the last piece of each unit; units are sorted by hold and number."""
    by = np.zeros(len(units[0]), np.int64)
    if len(by) == 0:
        return by
    low = given.page // unit
    count = (given.page + given.pages - 1) // unit - low + 1
    number = expand(Runs(low, count))
    request = np.repeat(given.request, count)
    span = int(max(number.max(), units[0].max())) + 1
    keys = units[1] * span + units[0]
    at = np.searchsorted(keys, until[request] * span + number)
    at[at == len(keys)] = 0
    hit = keys[at] == until[request] * span + number
    by[at[hit]] = request[hit]  # requests ascend, so a unit's last piece counts
    return by


def _of_intricate_holds(
    given: Pieces, requests: Requests, context: Context, until: Int64s, unit: int
) -> Found:
    """Page by page, with what is deflated meanwhile taken off."""
    page = expand(Runs(given.page, given.pages))
    request = np.repeat(given.request, given.pages)
    out_page, out_request = wire_pages(requests, context, Queue.DEFLATE)
    within = until[out_request] >= 0
    held = changes((page, request), (out_page[within], out_request[within]), until)
    whole, by = whole_units(held, unit, until)
    rest = _left_over(held, (whole, by), unit, until)
    return Found(Pieces(whole, np.full(len(whole), unit), by), rest)


def _left_over(held: Changes, whole: tuple[Int64s, Int64s], unit: int, until: Int64s) -> Pieces:
    """Pages that are still held when their hold ends, and went with no whole unit."""
    stays = held.given & held.last
    page, request = held.page[stays], held.request[stays]
    end = until[request]
    span = len(until) + 1
    # `whole` is sorted by unit and request: the last one that the hold of each page brought.
    found = whole[0] // unit * span + whole[1]
    before = np.searchsorted(found, page // unit * span + end, side="right") - 1
    gone = np.zeros(len(page), np.bool_)
    known = before >= 0
    at = before[known]
    gone[known] = (whole[0][at] == page[known] // unit * unit) & (whole[1][at] >= request[known])
    left = ~gone
    return Pieces(page[left], np.ones(int(left.sum()), np.int64), end[left])
