"""What a plan's driver would send, byte for byte: the input of the timed stages b and c."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replay.layout import Layout
from replay.native.types import Bytes, Words
from replay.plan import Context, Plan
from replay.ranges import Int64s, pfns_from_runs
from replay.requests import Requests
from replay.wire import HEADER_BYTES, MAX_SHORT_PAGES, WORD_BYTES
from tracer.trace.schema import PFN_SHIFT, Queue, Wire

MAX_WIRE_PFN = (1 << 32) - 1
"""Highest number in a PFN array."""


@dataclass(frozen=True, eq=False)
class Sending:
    """All wire requests, one after the other; balloon queues first, then reporting.

    Args:
        wire: uint8, the content.
        start: uint64[n + 1]: request i is `wire[start[i]:start[i + 1]]`.
        form: uint8[n], `Wire`.
    """

    wire: Bytes
    start: Words
    form: Bytes


def sending(requests: Requests, plan: Plan, context: Context) -> Sending:
    """Build what the driver sends under a plan's protocol.

    Under `pfns` these are the recorded requests. Under another protocol the ranges are those that
    the plan's operations cover, split into requests where the plan says a request ends. Reports
    are sent as recorded under every protocol: le64 address and le64 length for each descriptor.
    """
    if plan.protocol == "pfns":
        balloon = _pfn_arrays(requests)
    else:
        balloon = _ranges(requests, plan, context.layout)
    reports = _reports(requests)
    wire = np.concatenate((balloon.wire, reports.wire))
    shifted = reports.start[1:] + balloon.start[-1]
    return Sending(
        wire,
        np.concatenate((balloon.start, shifted)),
        np.concatenate((balloon.form, reports.form)),
    )


def _starts(size_bytes: Int64s) -> Words:
    start = np.zeros(len(size_bytes) + 1, np.uint64)
    np.cumsum(size_bytes, out=start[1:])
    return start


def _raw(values: Int64s, kind: str) -> Bytes:
    return np.ascontiguousarray(values.astype(kind)).view(np.uint8)


def _pfn_arrays(requests: Requests) -> Sending:
    sent = np.isin(requests.queue, (Queue.INFLATE, Queue.DEFLATE))
    pfn, pages, _ = requests.runs_of(Queue.INFLATE, Queue.DEFLATE)
    # A cast would send what 32 bits cannot hold as a page of low memory. The highest number is no
    # guest's memory, as is what it stands for.
    wire = _raw(np.minimum(pfns_from_runs(pfn, pages), MAX_WIRE_PFN), "<u4")
    form = np.full(int(sent.sum()), Wire.PFNS, np.uint8)
    return Sending(wire, _starts(requests.pages[sent] * 4), form)


def _reports(requests: Requests) -> Sending:
    sent = requests.queue == Queue.REPORTING
    pfn, pages, _ = requests.runs_of(Queue.REPORTING)
    first = np.where(pages < 0, pfn + pages + 1, pfn)
    pairs = np.stack((first << PFN_SHIFT, np.abs(pages) << PFN_SHIFT), axis=1)
    size = np.diff(requests.run_offsets)[sent] * 16
    return Sending(
        _raw(pairs.reshape(-1), "<u8"),
        _starts(size),
        np.full(int(sent.sum()), Wire.SCATTERLIST, np.uint8),
    )


def _ranges(requests: Requests, plan: Plan, layout: Layout) -> Sending:
    """Words or descriptors for the ranges of the plan's balloon operations."""
    balloon = requests.queue[plan.request] != Queue.REPORTING
    page = (plan.offset_bytes[balloon] >> np.uint64(PFN_SHIFT)).astype(np.int64)
    pages = (plan.length_bytes[balloon] >> np.uint64(PFN_SHIFT)).astype(np.int64)
    region = np.searchsorted(layout.base_page, page, side="right") - 1
    pfn = page - layout.base_page[region] + layout.start_pfn[region]
    end = _ends(plan, plan.request[balloon])
    if plan.protocol == "scatterlist":
        pairs = np.stack((pfn << PFN_SHIFT, pages << PFN_SHIFT), axis=1).reshape(-1)
        size = np.diff(np.concatenate(([0], end))) * 16
        return Sending(_raw(pairs, "<u8"), _starts(size), _form(end, Wire.SCATTERLIST))
    return _words(pfn, pages, end)


def _ends(plan: Plan, request: Int64s) -> Int64s:
    """After which operation each wire request ends: even shares of what one arrival brings."""
    arrivals, first, count = np.unique(request, return_index=True, return_counts=True)
    sent = plan.sent_request[plan.sent_queue != Queue.REPORTING]
    shares = np.searchsorted(sent, arrivals, "right") - np.searchsorted(sent, arrivals, "left")
    shares = np.clip(shares, 1, count)
    group = np.repeat(np.arange(len(arrivals)), shares)
    within = np.arange(len(group)) - np.repeat(np.cumsum(shares) - shares, shares) + 1
    ends: Int64s = first[group] + count[group] * within // shares[group]
    return ends


def _words(pfn: Int64s, pages: Int64s, end: Int64s) -> Sending:
    """The seed's requests: a header, then `pfn << 12 | pages`, or 0 pages and a word of count."""
    extended = pages > MAX_SHORT_PAGES
    width = 1 + extended
    reach = np.concatenate(([0], np.cumsum(width)))
    # One word of header stands before the words of each request.
    header = reach[np.concatenate(([0], end[:-1]))] + np.arange(len(end)) if len(end) else end
    request = np.searchsorted(end, np.arange(len(pfn)), side="right")
    place = reach[:-1] + request + 1
    words = np.zeros(int(reach[-1]) + len(end), np.uint64)
    words[place] = (pfn << PFN_SHIFT).astype(np.uint64) | np.where(extended, 0, pages).astype(
        np.uint64
    )
    words[place[extended] + 1] = pages[extended].astype(np.uint64)
    size = np.diff(np.concatenate((header, [len(words)]))) * WORD_BYTES
    words[header] = (size - HEADER_BYTES).astype(np.uint64) << np.uint64(32)
    return Sending(
        np.ascontiguousarray(words.astype("<u8")).view(np.uint8),
        _starts(size),
        _form(end, Wire.RANGE_WORDS),
    )


def _form(end: Int64s, form: Wire) -> Bytes:
    return np.full(len(end), form, np.uint8)
