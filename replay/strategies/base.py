"""What every strategy is: from requests to operations, from operations to a plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from replay.backings import Advice
from replay.native.ascending import weave
from replay.plan import Context, Plan, Protocol, SentRanges, UInt8s
from replay.ranges import Bools, Int64s
from replay.requests import Requests
from replay.strategies.select import Pieces
from replay.wire import MAX_DESCRIPTOR_PAGES, MAX_ENTRIES, MAX_PFNS, shares
from tracer.trace.schema import PAGE_BYTES, PFN_SHIFT, Queue

Value = TypeVar("Value", bound=np.generic)
Deflated = Literal["left", "merged", "taken out"]
"""What whoever merges does with the pages of deflate requests: nothing, the same as with those of
inflate requests, or takes them out of what is held back."""
PFN_BYTES = 4
"""An inflate or deflate request is an array of le32 PFNs (virtio 1.x, 5.5.6)."""
DESCRIPTOR_BYTES = 16
"""A reported block is one descriptor of the split ring and has no content."""


class Operations(NamedTuple):
    """One or more pieces of advice, given on each piece in turn.

    `joined` and `thread` are those of a plan, one element a piece, for a single advice.
    """

    advice: Sequence[Advice]
    pieces: Pieces
    joined: Bools | None = None
    thread: UInt8s | None = None


class Sent(NamedTuple):
    """Wire requests, in order: when each is sent, its bytes that name pages, and its ranges.

    `ranges.wire` counts these requests. A strategy whose protocol is not `pfns` must name them.
    """

    request: Int64s
    bytes: Int64s
    ranges: SentRanges | None = None


class Strategy(ABC):
    """A pure rule: requests in, plan out.

    A subclass names itself and its source, and says which operations it gives on which pages.
    `settled` must be overridden where operations wait for later requests, and `merged_with` where
    pages of several requests are merged. A subclass that is a frozen dataclass has its fields as
    parameters.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    """The VMM, patch or paper that the rule is taken from."""
    protocol: ClassVar[Protocol] = "pfns"
    causal: ClassVar[bool] = True
    """False for a bound that looks ahead: no device can do it."""
    discards: ClassVar[bool] = True
    deflated: ClassVar[Deflated] = "left"

    @property
    def label(self) -> str:
        """The name, and each parameter that is not at its default: `load_strategy` reads it."""
        if not is_dataclass(self):
            return self.name
        own = [(f.name, getattr(self, f.name), f.default) for f in fields(self)]
        changed = [f"{key}={_text(value)}" for key, value, default in own if value != default]
        return f"{self.name}:{','.join(changed)}" if changed else self.name

    @abstractmethod
    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        """Decide; each item's requests ascend and no two items share a request."""

    def advice(self, context: Context) -> Advice:
        """The advice that it discards with on this memory."""
        return context.discard

    def refusal(self, context: Context) -> str | None:
        """Say why it cannot work on this memory; None where it can."""
        return context.memory.why_not(self.advice(context)) if self.discards else None

    def sent(self, requests: Requests, context: Context) -> Sent:
        """Wire requests that carry the balloon's pages; by default as they were recorded."""
        del context
        return sent_as_recorded(requests)

    def settled(self, requests: Requests) -> int:
        """First request whose operations could still change if more requests followed."""
        return len(requests)

    def merged_with(self, requests: Requests) -> Int64s:
        """For each request, the one with which what it names is merged; -1: with none."""
        return np.arange(len(requests))

    def decided(self, requests: Requests, context: Context) -> list[Operations]:
        """What `operations` gives, held to its form; raises as `plan` does."""
        parts = [_checked(part) for part in self.operations(requests, context)]
        return [part for part in parts if len(part.pieces.page)]

    def sent_in_all(self, requests: Requests, context: Context) -> Sent:
        """What `sent` gives, and reports, which are sent as recorded under every strategy."""
        return _with_reports(self.sent(requests, context), requests)

    def plan(self, requests: Requests, context: Context) -> Plan:
        """Plan the whole stream.

        Args:
            requests: Requests in order of arrival.
            context: The memory they act on.

        Returns:
            Operations and wire requests, both in order of the recorded requests.

        Raises:
            TypeError: `operations` gave something that is no list of Operations.
            ValueError: Columns that belong together differ in length.
        """
        parts = self.decided(requests, context)
        order = None
        if len(parts) > 1:
            order = _in_order([_each(part.pieces.request, part) for part in parts])
        # One column after the other: each takes as much again while it is put in order.
        request = _ordered([_each(part.pieces.request, part) for part in parts], order)
        offset = _ordered([_each(part.pieces.page, part) for part in parts], order)
        offset_bytes = offset.view(np.uint64) << np.uint64(PFN_SHIFT)
        del offset
        length = _ordered([_each(part.pieces.pages, part) for part in parts], order)
        length_bytes = length.view(np.uint64) << np.uint64(PFN_SHIFT)
        del length
        codes = [np.tile(np.array(p.advice, np.uint8), len(p.pieces.page)) for p in parts]
        advice = _ordered(codes, order, np.uint8)
        joined, thread = (
            _ordered([_or_zeros(p, getattr(p, name)) for p in parts], order, np.uint8)
            if any(getattr(p, name) is not None for p in parts)
            else None
            for name in ("joined", "thread")
        )
        sent = self.sent_in_all(requests, context)
        return Plan(
            self.label,
            self.protocol,
            advice,
            offset_bytes,
            length_bytes,
            request,
            sent.request,
            sent.bytes,
            requests.queue[sent.request],
            sent.ranges,
            self.discards,
            None if joined is None else joined.view(np.bool_),
            thread,
        )


def at_least(minimum: int, strategy: Strategy, *names: str) -> None:
    """Raise ValueError where a parameter is below a minimum."""
    for name in names:
        value = getattr(strategy, name)
        if value < minimum:
            raise ValueError(f"{name} is {value}; it must be {minimum} or more")


def check_unit(name: str, size_bytes: int) -> None:
    """Raise ValueError where a parameter is the size of no page."""
    if size_bytes < PAGE_BYTES or size_bytes & (size_bytes - 1):
        raise ValueError(f"{name} is {size_bytes}: not a power of two from {PAGE_BYTES} up")


def _text(value: object) -> str:
    return "none" if value is None else str(value).lower()


def _checked(part: object) -> Operations:
    """Hold what a strategy gives to its form: anyone may have written it."""
    if not isinstance(part, Operations) or not isinstance(part.pieces, Pieces):
        raise TypeError(f"operations() must give a list of Operations, not of {_kind(part)}")
    given = part.advice if isinstance(part.advice, Sequence) else ()
    if not given or not all(isinstance(advice, Advice) for advice in given):
        raise TypeError("the advice of Operations must be a sequence of Advice, such as (FREE,)")
    for name, column in zip(Pieces._fields, part.pieces, strict=True):
        if not isinstance(column, np.ndarray) or column.dtype != np.int64 or column.ndim != 1:
            raise TypeError(f"Pieces.{name} must be a flat array of int64, not {_kind(column)}")
    columns = (*part.pieces, part.joined, part.thread)
    lengths = [len(column) for column in columns if column is not None]
    if len(set(lengths)) > 1:
        raise ValueError(f"the columns of Operations differ in length: {lengths}")
    if len(part.advice) > 1 and (part.joined is not None or part.thread is not None):
        raise ValueError("joined and thread go with a single advice")
    return part


def _kind(value: object) -> str:
    dtype = getattr(value, "dtype", None)
    return type(value).__name__ if dtype is None else f"{type(value).__name__} of {dtype}"


def _each(column: Int64s, part: Operations) -> Int64s:
    """A piece's value for each piece of advice on it."""
    return column if len(part.advice) == 1 else np.repeat(column, len(part.advice))


def _or_zeros(part: Operations, column: Bools | UInt8s | None) -> UInt8s:
    if column is None:
        return np.zeros(len(part.pieces.page) * len(part.advice), np.uint8)
    return column.astype(np.uint8)


def _in_order(requests: list[Int64s]) -> Int64s:
    """The order that sorts lists of requests, each ascending, laid end to end; equals as they lie.

    Lists of anybody's strategy are looked at first.
    """
    if len(requests) == 2 and all(bool((each[1:] >= each[:-1]).all()) for each in requests):
        return weave(*requests)
    return np.argsort(np.concatenate(requests), kind="stable")


def _ordered(
    parts: list[npt.NDArray[Value]], order: Int64s | None, kind: type[np.generic] = np.int64
) -> npt.NDArray[Value]:
    """One column of those of the parts; an empty one of a kind where there are none."""
    if len(parts) == 1:
        return parts[0]
    column = np.concatenate([np.zeros(0, kind), *parts])
    return column if order is None else column[order]


def sent_as_recorded(requests: Requests) -> Sent:
    """Wire requests of le32 PFNs for each recorded inflate or deflate request.

    One each, but no driver of this protocol sends more than 256 PFNs at once, nor none.
    """
    balloon = np.flatnonzero(np.isin(requests.queue, (Queue.INFLATE, Queue.DEFLATE)))
    source, pfns = shares(requests.pages[balloon], MAX_PFNS)
    return Sent(balloon[source], pfns * PFN_BYTES)


def _with_reports(sent: Sent, requests: Requests) -> Sent:
    reports = sent_reports(requests)
    if len(reports.request) == 0:
        return sent
    request = np.concatenate((sent.request, reports.request))
    order = np.argsort(request, kind="stable")
    size = np.concatenate((sent.bytes, reports.bytes))
    ranges = sent.ranges
    if ranges is not None:
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        ranges = ranges._replace(wire=place[ranges.wire])
    return Sent(request[order], size[order], ranges)


def sent_reports(requests: Requests) -> Sent:
    """Wire requests of descriptors for each recorded report: one each, of at most 32 blocks.

    A block of 4 GiB or more, which no guest reports, takes several descriptors.
    """
    reports = np.flatnonzero(requests.queue == Queue.REPORTING)
    _, pages, request = requests.runs_of(Queue.REPORTING)
    source, _ = shares(np.abs(pages), MAX_DESCRIPTOR_PAGES)
    entries = np.bincount(request[source], minlength=len(requests))[reports]
    of, count = shares(entries, MAX_ENTRIES)
    return Sent(reports[of], count * DESCRIPTOR_BYTES)
