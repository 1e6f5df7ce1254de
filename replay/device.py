"""The balloon device: what a guest's bytes may do, and which pages are the host's to discard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from replay.chain import Chain, GuestRam, read_chain
from replay.hostpage import completed
from replay.plan import Context, Protocol
from replay.ranges import Bools, Int64s, Runs, align_in, compact, empty, intersect, merge
from replay.wire import (
    DESCRIPTOR,
    Decoded,
    Reject,
    decode_hint_id,
    decode_pfns,
    decode_range_words,
    decode_scatterlist,
    decode_stats,
)
from tracer.trace.schema import Queue

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
        runs: Pages of the replayed memory that the device may now discard (inflate, reporting),
            make ready (deflate), or leave out of a migration (hints); whole host pages for the
            former two, canonical.
        stats: Value by tag, for a stats request.
        rejected: What was left out, by reason.
        resets: Resets of the device before this request.
    """

    queue: int
    runs: Runs
    stats: dict[int, int] = field(default_factory=dict)
    rejected: Counter[Reject] = field(default_factory=Counter)
    resets: int = 0


class BalloonDevice:
    """Decodes requests and keeps who owns each page.

    An inflated page is the host's until it is deflated or the device reset. A reported page is the
    host's during its request only. A request is always answered, whatever it holds: bad parts are
    counted, in `rejected` for all requests together.

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
        self.resets = 0
        self.hinting = False
        self.holds_stats = False
        """The driver's statistics buffer is here, until the device wants new statistics."""
        self._decode = _DECODERS[protocol]
        self._host_owns: Bools = np.zeros(context.layout.memory_pages, np.bool_)
        self._hint_id: int | None = None

    @property
    def host_owned(self) -> Runs:
        """Pages of the replayed memory that are in the balloon."""
        return compact(np.flatnonzero(self._host_owns))

    def ask_for_hints(self, command_id: int) -> None:
        """Ask the driver for free page hints under an id (2 or more; QEMU counts from 2**31)."""
        self._hint_id, self.hinting = command_id, False

    def ask_for_stats(self) -> bool:
        """Give the statistics buffer back, for the driver to fill again; False if there is none."""
        held, self.holds_stats = self.holds_stats, False
        return held

    def reset(self) -> None:
        """Start anew, as when a guest boots again: all memory is its own, nothing is asked for."""
        self.resets += 1
        self._host_owns[:] = False
        self._hint_id, self.hinting, self.holds_stats, self.poison_val = None, False, False, 0

    def owed(self, handled: Handled) -> Runs:
        """Say what of a request may still be discarded, when that did not happen at once.

        A page that the guest got back since, and every page after a reset, holds the guest's data
        again.

        Returns:
            Pages of `handled.runs`; the others are counted.
        """
        runs = handled.runs
        if handled.resets != self.resets:
            _count(self.rejected, Reject.RESET, runs.total_pages)
            return empty()
        if handled.queue != Queue.INFLATE:
            return runs
        kept = intersect(runs, self.host_owned)
        _count(self.rejected, Reject.TAKEN_BACK, runs.total_pages - kept.total_pages)
        return kept

    def take(self, queue: int, table: bytes, head: int, ram: GuestRam) -> Handled:
        """Take one request from a split ring.

        Args:
            queue: `Queue`, or whatever number the guest notified.
            table: The ring's descriptor table.
            head: Index from the available ring.
            ram: Guest memory, which holds what the descriptors point at.
        """
        return self._answer(queue, read_chain(table, head, ram))

    def handle(self, queue: int, content: bytes | Sequence[bytes]) -> Handled:
        """Take one request, as the bytes of its descriptors.

        Args:
            queue: `Queue`, or whatever number the guest notified.
            content: Device-readable bytes; where descriptors are themselves the ranges (REPORTING,
                and the protocol `scatterlist`), these in the ring's own form.
        """
        data = content if isinstance(content, bytes) else b"".join(content)
        chain = Chain(writable=data) if self._in_descriptors(queue) else Chain(readable=data)
        return self._answer(queue, chain)

    def _in_descriptors(self, queue: int) -> bool:
        """Whether the queue's descriptors are themselves the ranges, and are not read."""
        balloon = queue in (Queue.INFLATE, Queue.DEFLATE)
        return queue == Queue.REPORTING or (balloon and self._decode is decode_scatterlist)

    def _answer(self, queue: int, chain: Chain) -> Handled:
        """Decode a request and change what it may change; never raises."""
        rejected = Counter(chain.rejected)
        if chain.void:
            self.rejected.update(rejected)
            return Handled(queue, empty(), {}, rejected, self.resets)
        if queue in (Queue.INFLATE, Queue.DEFLATE):
            said = chain.writable if self._in_descriptors(queue) else chain.readable
            runs = self._balloon(Queue(queue), self._decode(said), rejected)
        elif queue == Queue.REPORTING:
            runs = self._report(decode_scatterlist(chain.writable), rejected)
        elif queue == Queue.FREE_PAGE_HINT:
            runs = self._hint(chain, rejected)
        else:
            runs = empty()
        stats = self._statistics(chain, rejected) if queue == Queue.STATS else {}
        _count(rejected, Reject.WRONG_QUEUE, int(queue not in set(Queue)))
        if self._in_descriptors(queue):
            _count(rejected, Reject.NOT_A_BLOCK, int(bool(chain.readable)))
        elif queue != Queue.FREE_PAGE_HINT:
            _count(rejected, Reject.NOT_READABLE, len(chain.writable) // DESCRIPTOR.itemsize)
        self.rejected.update(rejected)
        return Handled(queue, runs, stats, rejected, self.resets)

    def _balloon(self, queue: Queue, decoded: Decoded, rejected: Counter[Reject]) -> Runs:
        """Move pages between guest and host. Runs are cut to memory before anything walks them."""
        layout = self.context.layout
        rejected.update(decoded.rejected)
        inside = layout.inside(decoded.start, decoded.pages)
        # A count may be 2**52; the sum of 2**17 of them needs Python's integers.
        _count(rejected, Reject.OUTSIDE, sum((decoded.pages - inside).tolist()))
        # Merged before they are cut: ranges that each span all regions would give pieces by the
        # product of both.
        clipped = layout.clip(*merge(decoded.start, decoded.pages))
        named = merge(clipped.page, clipped.pages)
        for start, end in zip(named.start.tolist(), named.end.tolist(), strict=True):
            self._host_owns[start:end] = queue == Queue.INFLATE
        if queue == Queue.DEFLATE:
            return named
        if self.inhibited:
            _count(rejected, Reject.INHIBITED, named.total_pages)
            return empty()
        whole = self._whole_host_pages(decoded, named)
        _count(rejected, Reject.HOST_PAGE, named.total_pages - whole.total_pages)
        return whole

    def _whole_host_pages(self, decoded: Decoded, named: Runs) -> Runs:
        """Pages of host pages that this request gave whole."""
        unit = self.context.host_page_pages
        if unit == 1 or self._decode is not decode_pfns:
            return align_in(named, unit)
        page = self.context.layout.clip(decoded.start, decoded.pages).page
        last = page[completed(page, np.zeros(len(page), np.int64), unit)]
        return merge(last // unit * unit, np.full(len(last), unit))

    def _report(self, decoded: Decoded, rejected: Counter[Reject]) -> Runs:
        """Discard reported blocks that are wholly inside one region and whole host pages."""
        page, pages = self._whole_blocks(decoded, rejected)
        aligned = (page | pages) % self.context.host_page_pages == 0
        _count(rejected, Reject.HOST_PAGE, int(pages[~aligned].sum()))
        runs = merge(page[aligned], pages[aligned])
        for reason, applies in (
            (Reject.INHIBITED, self.inhibited),
            (Reject.POISONED, self.poison_val),
        ):
            if applies:
                _count(rejected, reason, runs.total_pages)
                return empty()
        return runs

    def _whole_blocks(self, decoded: Decoded, rejected: Counter[Reject]) -> tuple[Int64s, Int64s]:
        """Keep the blocks that are wholly inside one region, as first page and pages."""
        whole = self.context.layout.whole(decoded.start, decoded.pages)
        rejected.update(decoded.rejected)
        _count(rejected, Reject.PARTIAL, len(decoded.start) - len(whole.page))
        return whole.page, whole.pages

    def _hint(self, chain: Chain, rejected: Counter[Reject]) -> Runs:
        """Follow the command of a request, if it has one, then take its blocks, if hints are on."""
        if chain.readable or not chain.writable:
            self._command(decode_hint_id(chain.readable), rejected)
        blocks = len(chain.writable) // DESCRIPTOR.itemsize
        if not self.hinting:
            _count(rejected, Reject.HINT_STOPPED, blocks)
        if not self.hinting or not blocks:
            return empty()
        return merge(*self._whole_blocks(decode_scatterlist(chain.writable), rejected))

    def _command(self, command_id: int | None, rejected: Counter[Reject]) -> None:
        """Start on the id that was asked for, once; stop when hinting; else count."""
        if command_id == HINT_STOP and self.hinting:
            self.hinting = False
        elif command_id is not None and command_id == self._hint_id:
            # The id is used up: a guest that sends it again must not start hinting again.
            self._hint_id, self.hinting = None, True
        else:
            rejected[Reject.HINT_ID] += 1

    def _statistics(self, chain: Chain, rejected: Counter[Reject]) -> dict[int, int]:
        """Read statistics and keep the buffer; one that comes too early takes the other's place."""
        _count(rejected, Reject.STATS_EARLY, int(self.holds_stats))
        self.holds_stats = True
        stats, left_out = decode_stats(chain.readable)
        rejected.update(left_out)
        return stats


def _count(rejected: Counter[Reject], reason: Reject, count: int) -> None:
    if count:
        rejected[reason] += count
