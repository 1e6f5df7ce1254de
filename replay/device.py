"""The balloon device: what a guest's bytes may do, and which pages are the host's to discard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from replay.check import PlanError, PlanReport, check_plan
from replay.hostpage import completed
from replay.plan import Context, Protocol
from replay.ranges import Bools, Int64s, Runs, compact, empty, merge
from replay.wire import (
    Decoded,
    Reject,
    decode_hint_id,
    decode_pfns,
    decode_range_words,
    decode_scatterlist,
    decode_stats,
)
from tracer.trace.schema import Queue

__all__ = ["BalloonDevice", "Handled", "PlanError", "PlanReport", "check_plan"]

HINT_STOP = 0
"""VIRTIO_BALLOON_CMD_ID_STOP: the driver has sent its last hint."""


_DECODERS: dict[Protocol, Callable[[bytes], Decoded]] = {
    "pfns": decode_pfns,
    "range_words": decode_range_words,
    "scatterlist": decode_scatterlist,
}


@dataclass(frozen=True, eq=False)
class Handled:
    """What one request came to.

    Args:
        queue: The queue it came by.
        runs: Pages of the replayed memory that the device may now discard (inflate, reporting)
            or make ready (deflate); whole host pages for the former two, canonical.
        stats: Value by tag, for a stats request.
        rejected: What was left out, by reason.
    """

    queue: int
    runs: Runs
    stats: dict[int, int] = field(default_factory=dict)
    rejected: Counter[Reject] = field(default_factory=Counter)


class BalloonDevice:
    """Decodes requests and keeps who owns each page.

    An inflated page is the host's until it is deflated. A reported page is the host's during its
    request only. A request is always answered, whatever it holds: bad parts are counted.

    Args:
        context: Guest memory and the host's page size.
        protocol: Form of inflate and deflate requests.
        inhibited: Nothing may be discarded (VFIO, postcopy: ram_block_discard_is_disabled in
            QEMU 5.1 and later); requests are still answered and pages still change hands.
        poison_val: The guest's poison for free pages; unless 0, reports are left alone
            (virtio_balloon_handle_report, QEMU 5.1 and later).
    """

    def __init__(
        self,
        context: Context,
        *,
        protocol: Protocol = "pfns",
        inhibited: bool = False,
        poison_val: int = 0,
    ) -> None:
        self.context = context
        self.inhibited = inhibited
        self.poison_val = poison_val
        self.rejected: Counter[Reject] = Counter()
        self._decode = _DECODERS[protocol]
        self._host_owns: Bools = np.zeros(context.layout.memory_pages, np.bool_)
        self._hint_id: int | None = None
        self.hinting = False

    @property
    def host_owned(self) -> Runs:
        """Pages of the replayed memory that are in the balloon."""
        return compact(np.flatnonzero(self._host_owns))

    def ask_for_hints(self, command_id: int) -> None:
        """Ask the driver for free page hints under an id (2 or more; QEMU counts from 2**31)."""
        self._hint_id, self.hinting = command_id, False

    def handle(self, queue: int, chain: bytes | Sequence[bytes]) -> Handled:
        """Take one request, as the bytes of its descriptors.

        Args:
            queue: `Queue`, or whatever number the guest notified.
            chain: Device-readable bytes; where descriptors are themselves the ranges (REPORTING,
                and the protocol `scatterlist`), these in the ring's own form.
        """
        data = chain if isinstance(chain, bytes) else b"".join(chain)
        if queue in (Queue.INFLATE, Queue.DEFLATE):
            handled = self._balloon(Queue(queue), self._decode(data))
        elif queue == Queue.REPORTING:
            handled = self._report(decode_scatterlist(data))
        elif queue == Queue.STATS:
            stats, rejected = decode_stats(data)
            handled = Handled(queue, empty(), stats, rejected)
        elif queue == Queue.FREE_PAGE_HINT:
            handled = Handled(queue, empty(), rejected=self._hint(decode_hint_id(data)))
        else:
            handled = Handled(queue, empty(), rejected=Counter({Reject.WRONG_QUEUE: 1}))
        self.rejected.update(handled.rejected)
        return handled

    def _balloon(self, queue: Queue, decoded: Decoded) -> Handled:
        """Move pages between guest and host. Runs are cut to memory before anything walks them."""
        clipped = self.context.layout.clip(decoded.start, decoded.pages)
        rejected = Counter(decoded.rejected)
        # A count may be 2**52; the sum of 2**21 of them needs Python's integers.
        outside = sum(decoded.pages.tolist()) - int(clipped.pages.sum())
        _count(rejected, Reject.OUTSIDE, outside)
        named = merge(clipped.page, clipped.pages)
        for start, end in zip(named.start.tolist(), named.end.tolist(), strict=True):
            self._host_owns[start:end] = queue == Queue.INFLATE
        if queue == Queue.DEFLATE:
            return Handled(queue, named, rejected=rejected)
        if self.inhibited:
            _count(rejected, Reject.INHIBITED, named.total_pages)
            return Handled(queue, empty(), rejected=rejected)
        whole = self._whole_host_pages(clipped.page, clipped.pages, named)
        _count(rejected, Reject.HOST_PAGE, named.total_pages - whole.total_pages)
        return Handled(queue, whole, rejected=rejected)

    def _whole_host_pages(self, page: Int64s, pages: Int64s, named: Runs) -> Runs:
        """Pages of host pages that this request gave whole."""
        unit = self.context.host_page_pages
        if unit == 1:
            return named
        if self._decode is decode_pfns:
            last = page[completed(page, np.zeros(len(page), np.int64), unit)]
            return merge(last // unit * unit, np.full(len(last), unit))
        start = -(-page // unit) * unit
        return merge(start, (page + pages) // unit * unit - start)

    def _report(self, decoded: Decoded) -> Handled:
        """Discard reported blocks that are wholly inside one region and whole host pages."""
        clipped = self.context.layout.clip(decoded.start, decoded.pages)
        rejected = Counter(decoded.rejected)
        whole = clipped.pages == decoded.pages[clipped.source]
        _count(rejected, Reject.PARTIAL, len(decoded.start) - int(whole.sum()))
        aligned = (clipped.page | clipped.pages) % self.context.host_page_pages == 0
        _count(rejected, Reject.HOST_PAGE, int(clipped.pages[whole & ~aligned].sum()))
        kept = whole & aligned
        runs = merge(clipped.page[kept], clipped.pages[kept])
        for reason, applies in (
            (Reject.INHIBITED, self.inhibited),
            (Reject.POISONED, self.poison_val),
        ):
            if applies:
                _count(rejected, reason, runs.total_pages)
                return Handled(Queue.REPORTING, empty(), rejected=rejected)
        return Handled(Queue.REPORTING, runs, rejected=rejected)

    def _hint(self, command_id: int | None) -> Counter[Reject]:
        """Start on the id that was asked for, once; stop when hinting; else count."""
        if command_id == HINT_STOP and self.hinting:
            self.hinting = False
        elif command_id is not None and command_id == self._hint_id:
            # The id is used up: a guest that sends it again must not start hinting again.
            self._hint_id, self.hinting = None, True
        else:
            return Counter({Reject.HINT_ID: 1})
        return Counter()


def _count(rejected: Counter[Reject], reason: Reject, count: int) -> None:
    if count:
        rejected[reason] += count
