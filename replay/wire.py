"""The balloon's wire formats: what the driver puts into a request, and what the device makes of it.

Bytes come from a guest that nobody trusts. Decoding never raises, does work in proportion to the
bytes alone, and counts what it leaves out. Units are 4 KiB balloon pages on every host.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from replay.ranges import Int64s
from tracer.trace.schema import PAGE_BYTES, PFN_SHIFT

MAX_PFNS = 256
"""PFNs in a request of the Linux driver (VIRTIO_BALLOON_ARRAY_PFNS_MAX)."""
MAX_WORDS = 4096
"""Words that the seed's driver buffer of 32 KiB holds."""
MAX_ENTRIES = 32
"""Blocks in one report of Linux (PAGE_REPORTING_CAPACITY)."""
MAX_REQUEST_BYTES = 1 << 20
"""More than any driver sends in one request; what lies behind is not looked at."""
ADDRESSABLE_PAGES = 1 << (64 - PFN_SHIFT)
HEADER_BYTES = 8
WORD_BYTES = 8
MAX_SHORT_PAGES = (1 << PFN_SHIFT) - 1
"""A word has 12 bits for the count; 0 says that the next word is the count."""
MAX_STAT_TAGS = 16
"""Tags of `struct virtio_balloon_stat` in Linux 6.12; 10 before 6.11."""
MAX_DESCRIPTOR_PAGES = (1 << 32 >> PFN_SHIFT) - 1
"""Whole pages that one descriptor can name: its length has 32 bits."""

DESCRIPTOR = np.dtype([("addr", "<u8"), ("len", "<u4"), ("flags", "<u2"), ("next", "<u2")])
"""struct vring_desc."""
_HEADER = np.dtype([("cmd", "u1"), ("flag", "u1"), ("id", "<u2"), ("data_len", "<u4")])
_STAT = np.dtype([("tag", "<u2"), ("val", "<u8")])
NEXT = 1
"""VRING_DESC_F_NEXT: the chain goes on."""
WRITABLE = 2
"""VRING_DESC_F_WRITE: the driver hands reported blocks over as buffers to write into."""


class Reject(StrEnum):
    """Why a part of a request was left out, or was worth counting."""

    EMPTY = "request without content"
    RAGGED = "bytes behind the last whole item"
    OVERSIZED = "items beyond what a driver sends in one request"
    TOO_LONG = "bytes beyond the longest request"
    SHORT_HEADER = "header cut short"
    SHORT_PAYLOAD = "payload shorter than the header says"
    TRAILING = "bytes behind the payload"
    UNKNOWN_COMMAND = "command or flag that does not exist"
    NO_COUNT = "extended range without its count"
    EMPTY_RANGE = "range of no pages"
    BEYOND_ADDRESSES = "pages beyond 64 bits of address"
    UNALIGNED = "entry that is not whole balloon pages"
    NOT_WRITABLE = "reported block that the device may not write"
    UNKNOWN_TAG = "statistic that does not exist"
    OUTSIDE = "pages that are no guest memory"
    PARTIAL = "entry that is not wholly inside one region"
    HOST_PAGE = "pages of a host page that was not given whole"
    INHIBITED = "pages kept because discarding is inhibited"
    POISONED = "reported pages kept because the guest poisons free pages"
    WRONG_QUEUE = "queue that does not exist"
    BAD_CHAIN = "descriptor chain that runs in a circle or leaves its table"
    NOT_MEMORY = "descriptor that is not wholly guest memory"
    EMPTY_DESCRIPTOR = "descriptor of no bytes"
    UNKNOWN_FLAG = "descriptor flag that does not exist"
    WRONG_ORDER = "readable descriptor behind a writable one"
    NOT_READABLE = "descriptor that the device may not read"
    NOT_A_BLOCK = "report or hint with content to read"
    STATS_EARLY = "statistics buffer before the last one was asked back"
    HINT_ID = "hint command that was not asked for"
    HINT_STOPPED = "hinted block when no hints were asked for"
    RESET = "pages kept because the guest had reset the device"
    TAKEN_BACK = "pages kept because the guest had taken them back"


@dataclass(frozen=True, eq=False)
class Decoded:
    """Runs that a request names, in wire order, and what was left out or counted.

    Args:
        start: int64[n], first PFN of each run.
        pages: int64[n], at least 1; `start + pages` is at most 2**52.
        rejected: Counts by reason, in the unit that the reason names.
    """

    start: Int64s
    pages: Int64s
    rejected: Counter[Reject] = field(default_factory=Counter)


def _nothing(reason: Reject, count: int = 1) -> Decoded:
    none = np.zeros(0, np.int64)
    return Decoded(none, none, Counter({reason: count}))


def _items(
    data: bytes, dtype: np.dtype[np.void] | str, rejected: Counter[Reject]
) -> npt.NDArray[np.void]:
    """View the whole items of a payload without a copy."""
    if len(data) > MAX_REQUEST_BYTES:
        rejected[Reject.TOO_LONG] += len(data) - MAX_REQUEST_BYTES
        data = data[:MAX_REQUEST_BYTES]
    size = np.dtype(dtype).itemsize
    if len(data) % size:
        rejected[Reject.RAGGED] += len(data) % size
    if not data:
        rejected[Reject.EMPTY] += 1
    return np.frombuffer(data, dtype, count=len(data) // size)


def decode_pfns(data: bytes) -> Decoded:
    """Decode an inflate or deflate request: an array of le32 PFNs, over one or more descriptors.

    More than 256 are taken, as every VMM but Firecracker does, and counted.
    """
    rejected: Counter[Reject] = Counter()
    pfns = _items(data, "<u4", rejected).astype(np.int64)
    if len(pfns) > MAX_PFNS:
        rejected[Reject.OVERSIZED] += len(pfns) - MAX_PFNS
    return Decoded(pfns, np.ones(len(pfns), np.int64), rejected)


def decode_range_words(data: bytes) -> Decoded:
    """Decode a request of the seed's protocol (F_PAGE_RANGE, 2016).

    Header: cmd u8, flag u8, id le16, data_len le32; then le64 words `pfn << 12 | pages`. Where
    pages is 0 the next word is the count. A count is cut at the end of the address space, so no
    sum of the result wraps. A header that claims more than was sent makes the whole request void.
    """
    if len(data) < HEADER_BYTES:
        return _nothing(Reject.SHORT_HEADER if data else Reject.EMPTY)
    header = np.frombuffer(data, _HEADER, count=1)[0]
    length, given = int(header["data_len"]), len(data) - HEADER_BYTES
    if header["cmd"] or header["flag"]:
        return _nothing(Reject.UNKNOWN_COMMAND)
    if length > given:
        return _nothing(Reject.SHORT_PAYLOAD)
    rejected: Counter[Reject] = Counter()
    if given > length:
        rejected[Reject.TRAILING] += given - length
    words = _items(data[HEADER_BYTES : HEADER_BYTES + length], "<u8", rejected).astype(np.uint64)
    if len(words) > MAX_WORDS:
        rejected[Reject.OVERSIZED] += len(words) - MAX_WORDS
    return _ranges(words, rejected)


def _ranges(words: npt.NDArray[np.uint64], rejected: Counter[Reject]) -> Decoded:
    """Split words into ranges without a loop: of adjoining words that end in 0, every second."""
    low = words & np.uint64(MAX_SHORT_PAGES)
    index = np.arange(len(words), dtype=np.int64)
    last_other = np.maximum.accumulate(np.where(low == 0, -1, index)) if len(words) else index
    extended = (low == 0) & ((index - last_other) % 2 == 1)
    head = np.ones(len(words), bool)
    head[1:] = ~extended[:-1]
    if len(words) and extended[-1]:
        rejected[Reject.NO_COUNT] += 1
        head[-1] = False
    at = np.flatnonzero(head)
    start = (words[at] >> np.uint64(PFN_SHIFT)).astype(np.int64)
    following = np.minimum(at + 1, max(len(words) - 1, 0))
    count = np.where(extended[at], words[following], low[at])
    room = (ADDRESSABLE_PAGES - start).astype(np.uint64)
    if (beyond := int((count > room).sum())) > 0:
        rejected[Reject.BEYOND_ADDRESSES] += beyond
    pages = np.minimum(count, room).astype(np.int64)
    if (void := int((pages == 0).sum())) > 0:
        rejected[Reject.EMPTY_RANGE] += void
    return Decoded(start[pages > 0], pages[pages > 0], rejected)


def range_words(start: Int64s, pages: Int64s) -> tuple[npt.NDArray[np.uint64], Int64s]:
    """Words of ranges: `pfn << 12 | pages`, or 0 pages and a word of count.

    Returns:
        The words, and how many each range takes: 1 or 2.
    """
    extended = pages > MAX_SHORT_PAGES
    size = np.where(extended, 2, 1)
    behind = np.cumsum(size)
    words = np.zeros(int(size.sum()), np.uint64)
    words[behind - size] = start.view(np.uint64) << np.uint64(PFN_SHIFT)
    words[behind - size] |= np.where(extended, 0, pages).astype(np.uint64)
    words[behind[extended] - 1] = pages[extended]
    return words.astype("<u8", copy=False), size


def close_requests(words: Int64s, batch: Int64s, capacity: int) -> Int64s:
    """Find the ranges after which the seed's driver sends its buffer.

    It sends when fewer than two words are free, because the next range may need two, and at the
    end of a batch.

    Args:
        words: 1 or 2 for each range.
        batch: Batch of each range, ascending.
        capacity: Words in the buffer.

    Returns:
        Indices of the ranges that close a request, ascending.
    """
    if len(words) == 0:
        return np.zeros(0, np.int64)
    ends = np.append(np.flatnonzero(batch[1:] != batch[:-1]), len(words) - 1)
    reach = np.cumsum(words)
    before = np.concatenate(([0], reach[ends[:-1]]))
    long = np.flatnonzero(reach[ends] - before >= capacity - 1)
    full = []
    for sent, end in zip(before[long].tolist(), ends[long].tolist(), strict=True):
        at = int(np.searchsorted(reach, sent + capacity - 1))
        while at < end:
            full.append(at)
            at = int(np.searchsorted(reach, int(reach[at]) + capacity - 1))
    return np.sort(np.concatenate((ends, np.array(full, np.int64))))


def shares(count: Int64s, most: int) -> tuple[Int64s, Int64s]:
    """Cut each of many counts into shares of `most`, the last one smaller; 0 gives none.

    Returns:
        Which count each share is of, ascending, and its size.
    """
    parts = -(-count // most)
    source = np.repeat(np.arange(len(count), dtype=np.int64), parts)
    within = np.arange(len(source)) - np.repeat(np.cumsum(parts) - parts, parts)
    return source, np.minimum(count[source] - within * most, most)


def decode_scatterlist(data: bytes) -> Decoded:
    """Decode a report: descriptors of 16 bytes as in the split ring (addr, len, flags, next)."""
    rejected: Counter[Reject] = Counter()
    entries = _items(data, DESCRIPTOR, rejected)
    if len(entries) > MAX_ENTRIES:
        rejected[Reject.OVERSIZED] += len(entries) - MAX_ENTRIES
    addr, length = entries["addr"], entries["len"].astype(np.uint64)
    checks = (
        (Reject.NOT_WRITABLE, entries["flags"] & WRITABLE == 0),
        (Reject.EMPTY_RANGE, length == 0),
        (Reject.UNALIGNED, (addr | length) % np.uint64(PAGE_BYTES) != 0),
        # addr + len may be 2**64 itself: the last page of the address space.
        (Reject.BEYOND_ADDRESSES, (addr + length < addr) & (addr + length != 0)),
    )
    good = np.ones(len(entries), bool)
    for reason, wrong in checks:
        if (count := int((good & wrong).sum())) > 0:
            rejected[reason] += count
        good &= ~wrong
    start = (addr[good] >> np.uint64(PFN_SHIFT)).astype(np.int64)
    return Decoded(start, (length[good] >> np.uint64(PFN_SHIFT)).astype(np.int64), rejected)


def descriptors(start: Int64s, pages: Int64s) -> npt.NDArray[np.void]:
    """Name ranges by device-writable descriptors, `pages` at most `MAX_DESCRIPTOR_PAGES`."""
    entries = np.zeros(len(start), DESCRIPTOR)
    entries["addr"] = start.view(np.uint64) << np.uint64(PFN_SHIFT)
    entries["len"] = pages << PFN_SHIFT
    entries["flags"] = WRITABLE
    return entries


def decode_stats(data: bytes) -> tuple[dict[int, int], Counter[Reject]]:
    """Decode the statistics buffer: packed items of 10 bytes, le16 tag and le64 value.

    Returns:
        Value by tag, the last one where a tag repeats; and what was left out.
    """
    rejected: Counter[Reject] = Counter()
    items = _items(data, _STAT, rejected)
    if len(items) > MAX_STAT_TAGS:
        rejected[Reject.OVERSIZED] += len(items) - MAX_STAT_TAGS
    known = items["tag"] < MAX_STAT_TAGS
    if (unknown := int((~known).sum())) > 0:
        rejected[Reject.UNKNOWN_TAG] += unknown
    kept = items[known]
    return dict(zip(kept["tag"].tolist(), kept["val"].tolist(), strict=True)), rejected


def decode_hint_id(data: bytes) -> int | None:
    """Decode a free page hint command: exactly one le32 id, else None."""
    return int.from_bytes(data, "little") if len(data) == 4 else None
