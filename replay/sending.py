"""What a plan's driver would send, byte for byte: the input of the timed stages b and c."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replay.check import PlanError
from replay.native.selecting import wire_pfns
from replay.native.types import Bytes, Times, WireRequests, Words
from replay.plan import Context, Plan, SentRanges
from replay.ranges import Int64s
from replay.requests import Requests
from replay.strategies.base import sent_as_recorded, sent_reports
from replay.wire import (
    HEADER_BYTES,
    MAX_DESCRIPTOR_PAGES,
    MAX_ENTRIES,
    MAX_WORDS,
    WORD_BYTES,
    descriptors,
    range_words,
    shares,
)
from tracer.trace.schema import PFN_SHIFT, Queue, Wire

RING_REQUESTS = 128
"""So many fit the ring at once: its size in QEMU, and Linux' driver needs one descriptor for each
(VIRTIO_RING_F_INDIRECT_DESC)."""
_FORMS = {
    "pfns": Wire.PFNS,
    "range_words": Wire.RANGE_WORDS,
    "scatterlist": Wire.SCATTERLIST,
}


@dataclass(frozen=True, eq=False)
class Sending(WireRequests):
    """All wire requests of a plan, in the order in which they are sent.

    Args:
        request: int64[n], ascending: the recorded request by whose arrival each has been sent.
    """

    request: Int64s


def sending(requests: Requests, plan: Plan, recorded: Sending | None = None) -> Sending:
    """Build what the driver sends under a plan's protocol.

    Under `pfns` these are the recorded requests, 256 PFNs at most in each. Under another protocol
    they are the ranges that the plan's requests name: the seed's header and at most 4096 words, or
    one descriptor a range. Reports are sent as recorded under every protocol, 32 blocks at most.

    Args:
        requests: The requests.
        plan: A plan of them.
        recorded: What another plan sends under `pfns`, where that is known: all send the same.

    Raises:
        PlanError: The plan says that something else is sent: other counts or sizes, or ranges that
            do not fit a request of its protocol.
    """
    if plan.protocol == "pfns":
        sent = recorded or _in_order(_pfn_arrays(requests), _reports(requests))
    else:
        sent = _in_order(_named_ranges(plan), _reports(requests))
    if not np.array_equal(sent.request, plan.sent_request):
        raise _refuse(plan, f"it sends {plan.wire_requests} requests, its protocol {len(sent)}")
    size = np.diff(sent.start.astype(np.int64))
    if not np.array_equal(size, plan.sent_bytes):
        wrong = int(np.flatnonzero(size != plan.sent_bytes)[0])
        what = f"{int(plan.sent_bytes[wrong])} bytes, its content is {int(size[wrong])}"
        raise _refuse(plan, f"wire request {wrong} has {what}")
    return sent


def balloon_waits(sent: WireRequests) -> int:
    """Count how often the driver waits for the device with what it inflated or deflated.

    It sends until it is told to wait, turns to another queue or has sent all, and waits for every
    ring full of requests before that (`driver_side.c`). How often it kicks is left to chance, as
    either side may still be awake (VIRTIO_RING_F_EVENT_IDX).

    Args:
        sent: What a plan's driver sends.
    """
    ends = sent.wait.astype(np.bool_)
    ends[:-1] |= sent.queue[1:] != sent.queue[:-1]
    ends[-1:] = True
    last = np.flatnonzero(ends)
    rings = -(-np.diff(last, prepend=-1) // RING_REQUESTS)
    return int(rings[sent.queue[last] != Queue.REPORTING].sum())


def _named_ranges(plan: Plan) -> Sending:
    """What the balloon's requests hold under a protocol of ranges."""
    if plan.sent_ranges is None:
        raise _refuse(plan, f"its protocol is {plan.protocol}, and it names no ranges to send")
    is_report = plan.sent_queue == Queue.REPORTING
    wire = np.cumsum(~is_report) - 1  # of each request among the balloon's
    ranges = plan.sent_ranges._replace(wire=wire[plan.sent_ranges.wire])
    return _ranges(plan, ranges, plan.sent_request[~is_report], plan.sent_queue[~is_report])


def operation_ends(plan: Plan, sent: Sending, context: Context) -> Times:
    """Say which operations a device carries out before it gives each wire request back.

    An operation goes with the wire request that brings its last page. Where one recorded request
    is the last of several wire requests, and nothing tells them apart, that is the last of them.

    Returns:
        int64[n], rising: request i carries out operations `[i - 1]:[i]` of this.

    Raises:
        PlanError: There are operations and nothing is sent.
    """
    if len(sent) == 0 and len(plan):
        raise _refuse(plan, "it has operations and sends nothing")
    last = np.maximum(np.searchsorted(sent.request, plan.request, "right") - 1, 0)
    ranges = plan.sent_ranges
    if ranges is not None and len(ranges.wire):
        first = np.minimum(np.searchsorted(sent.request, plan.request, "left"), last)
        named = np.clip(_by_range(plan, ranges, context), first, last)
        # Reports are no ranges of the protocol.
        last = np.where(sent.queue[last] == Queue.REPORTING, last, named)
    carried = np.bincount(np.maximum.accumulate(last), minlength=len(sent))
    return np.cumsum(carried).astype(np.int64)


def _by_range(plan: Plan, ranges: SentRanges, context: Context) -> Int64s:
    """The wire request of the range that holds each operation's last page, or of one before it."""
    stride = context.layout.memory_pages + 1
    page = np.maximum(context.layout.pages_of(ranges.pfn), 0)
    key = plan.sent_request[ranges.wire] * stride + page
    order = np.argsort(key, kind="stable")
    end = ((plan.offset_bytes + plan.length_bytes) >> np.uint64(PFN_SHIFT)).astype(np.int64)
    at = np.searchsorted(key[order], plan.request * stride + end - 1, "right") - 1
    found: Int64s = ranges.wire[order[np.maximum(at, 0)]]
    return found


def _starts(size_bytes: Int64s) -> Words:
    start = np.zeros(len(size_bytes) + 1, np.uint64)
    np.cumsum(size_bytes, out=start[1:])
    return start


def _pfn_arrays(requests: Requests) -> Sending:
    sent = sent_as_recorded(requests)
    pfns = wire_pfns(requests.columns, (Queue.INFLATE, Queue.DEFLATE))
    return _sending(
        pfns.view(np.uint8), sent.bytes, "pfns", requests.queue[sent.request], sent.request
    )


def _reports(requests: Requests) -> Sending:
    sent = sent_reports(requests)
    pfn, pages, _ = requests.runs_of(Queue.REPORTING)
    first = np.where(pages < 0, pfn + pages + 1, pfn)
    entries = _descriptors(first, np.abs(pages))
    queue = np.full(len(sent.request), Queue.REPORTING, np.uint8)
    return _sending(entries, sent.bytes, "scatterlist", queue, sent.request)


def _descriptors(start: Int64s, pages: Int64s) -> Bytes:
    source, count = shares(pages, MAX_DESCRIPTOR_PAGES)
    within = np.cumsum(count) - count
    before = np.cumsum(pages) - pages
    entries = descriptors(start[source] + within - before[source], count)
    return entries.view(np.uint8).reshape(-1)


def _ranges(plan: Plan, ranges: SentRanges, request: Int64s, queue: Bytes) -> Sending:
    """Words or descriptors for ranges; `ranges.wire` counts the balloon's requests alone."""
    if len(ranges.wire) and (np.diff(ranges.wire) < 0).any():
        raise _refuse(plan, "the ranges that it sends are not in order of its requests")
    if len(ranges.pages) and int(ranges.pages.min()) < 1:
        raise _refuse(plan, "it sends a range of no pages")
    if plan.protocol == "scatterlist":
        if len(ranges.pages) and int(ranges.pages.max()) > MAX_DESCRIPTOR_PAGES:
            raise _refuse(plan, f"a descriptor holds {MAX_DESCRIPTOR_PAGES} pages at most")
        entries = np.bincount(ranges.wire, minlength=len(request))
        _check_most(plan, entries, MAX_ENTRIES, "descriptors")
        content = descriptors(ranges.pfn, ranges.pages).view(np.uint8).reshape(-1)
        return _sending(content, entries * 16, plan.protocol, queue, request)
    words, width = range_words(ranges.pfn, ranges.pages)
    count = np.bincount(ranges.wire, width, minlength=len(request)).astype(np.int64)
    _check_most(plan, count, MAX_WORDS, "words")
    size = HEADER_BYTES + WORD_BYTES * count
    # One word of header, cmd u8, flag u8, id le16, data_len le32, before the words of each request.
    content = np.insert(
        words, np.cumsum(count) - count, (count * WORD_BYTES).astype(np.uint64) << np.uint64(32)
    )
    return _sending(
        content.astype("<u8", copy=False).view(np.uint8), size, plan.protocol, queue, request
    )


def _check_most(plan: Plan, count: Int64s, most: int, what: str) -> None:
    if len(count) and (int(count.max()) > most or int(count.min()) < 1):
        raise _refuse(plan, f"a wire request holds 1 to {most} {what}")


def _sending(
    wire: Bytes, size_bytes: Int64s, protocol: str, queue: Bytes, request: Int64s
) -> Sending:
    wait = np.ones(len(request), np.uint8)
    if protocol == "scatterlist" and len(request):
        wait[:-1] = (request[1:] != request[:-1]) | (queue[:-1] == Queue.REPORTING)
    return Sending(
        wire,
        _starts(size_bytes),
        np.full(len(request), _FORMS[protocol], np.uint8),
        queue,
        wait,
        request,
    )


def _in_order(balloon: Sending, reports: Sending) -> Sending:
    """Both in order of the recorded requests."""
    if len(reports) == 0:
        return balloon
    request = np.concatenate((balloon.request, reports.request))
    order = np.argsort(request, kind="stable")
    size = np.concatenate([np.diff(each.start.astype(np.int64)) for each in (balloon, reports)])
    old = (np.cumsum(size) - size)[order]
    start = _starts(size[order])
    byte = np.arange(int(size.sum())) + np.repeat(old - start[:-1].astype(np.int64), size[order])
    columns = ("form", "queue", "wait")
    form, queue, wait = (
        np.concatenate((getattr(balloon, name), getattr(reports, name)))[order] for name in columns
    )
    wire = np.concatenate((balloon.wire, reports.wire))[byte]
    return Sending(wire, start, form, queue, wait, request[order])


def _refuse(plan: Plan, reason: str) -> PlanError:
    return PlanError(
        f"the requests of strategy {plan.name!r} cannot be sent",
        reason=reason,
        remedy="mend the strategy's sent(); docs/strategies.md says what each protocol holds",
    )
