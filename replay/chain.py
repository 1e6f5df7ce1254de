"""Descriptor chains of a split virtqueue, as bytes in the memory of a guest that nobody trusts.

A chain is walked once, over at most as many descriptors as its table holds, and no more bytes are
copied than the longest request has, whatever lengths the descriptors claim.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from replay.wire import DESCRIPTOR, MAX_REQUEST_BYTES, NEXT, WRITABLE, Reject

INDIRECT = 4
"""VRING_DESC_F_INDIRECT: the buffer is a table of descriptors."""
MAX_TABLE = 1 << 15
"""Entries of the largest ring (virtio 1.2, 2.7)."""
_KNOWN = WRITABLE | NEXT | INDIRECT


@dataclass(frozen=True)
class Chain:
    """One buffer of a queue.

    Args:
        readable: Content of the descriptors that the device may read, joined in their order.
        writable: The descriptors that it may write, in the ring's own form of 16 bytes.
        rejected: What was left out, by reason.
        void: It cannot be followed or read as a whole, so nothing of it counts as sent.
    """

    readable: bytes = b""
    writable: bytes = b""
    rejected: Counter[Reject] = field(default_factory=Counter)
    void: bool = False


class GuestRam:
    """Guest memory by guest physical address.

    Args:
        pieces: Address and content of each piece, ascending; they do not overlap. What lies
            between them is no memory.
    """

    def __init__(self, pieces: Sequence[tuple[int, bytes | bytearray | memoryview]]) -> None:
        self._begin = [gpa for gpa, _ in pieces]
        self._content = [memoryview(content) for _, content in pieces]
        self._ends = [gpa + len(content) for gpa, content in pieces]
        # Where memory ends that begins with each piece or before it: pieces that touch are one.
        self._reach = list(self._ends)
        for i in reversed(range(len(pieces) - 1)):
            if self._ends[i] == self._begin[i + 1]:
                self._reach[i] = self._reach[i + 1]

    def holds(self, gpa: int, length: int) -> bool:
        """Whether all of `[gpa, gpa + length)` is memory."""
        at = bisect_right(self._begin, gpa) - 1
        return at >= 0 and gpa < self._ends[at] and gpa + length <= self._reach[at]

    def read(self, gpa: int, length: int) -> bytes:
        """Copy bytes of memory; `holds` must be true of them."""
        parts, at = [], bisect_right(self._begin, gpa) - 1
        while length > 0:
            into = gpa - self._begin[at]
            parts.append(bytes(self._content[at][into : into + length]))
            gpa, length, at = gpa + len(parts[-1]), length - len(parts[-1]), at + 1
        return b"".join(parts)


def read_chain(table: bytes, head: int, ram: GuestRam) -> Chain:
    """Read one chain.

    A chain that cannot be followed to its end, or whose readable part is not wholly memory, is
    void: half a request could name other pages than the whole one. QEMU gives the device up for
    such a chain (virtqueue_pop in hw/virtio/virtio.c); here it is counted, and the queue goes on.

    Args:
        table: The ring's descriptor table.
        head: Index from the available ring.
        ram: Guest memory.
    """
    rejected: Counter[Reject] = Counter()
    readable: list[bytes] = []
    writable: list[bytes] = []
    room = MAX_REQUEST_BYTES
    for raw, addr, length, flags in _walk(table, head, ram, rejected):
        if flags & ~_KNOWN:
            rejected[Reject.UNKNOWN_FLAG] += 1
        if length == 0:
            rejected[Reject.EMPTY_DESCRIPTOR] += 1
        elif flags & WRITABLE:
            writable.append(raw)
        elif not ram.holds(addr, length):
            rejected[Reject.NOT_MEMORY] += 1
        elif writable:
            rejected[Reject.WRONG_ORDER] += 1
        else:
            taken = min(length, room)
            if taken < length:
                rejected[Reject.TOO_LONG] += length - taken
            readable.append(ram.read(addr, taken))
            room -= taken
    if rejected[Reject.BAD_CHAIN] or rejected[Reject.NOT_MEMORY] or rejected[Reject.WRONG_ORDER]:
        return Chain(rejected=+rejected, void=True)
    return Chain(b"".join(readable), b"".join(writable), +rejected)


def _walk(
    table: bytes, head: int, ram: GuestRam, rejected: Counter[Reject]
) -> Iterator[tuple[bytes, int, int, int]]:
    """Follow a chain: its descriptors as bytes, address, length and flags."""
    entries = _entries(table)
    index, indirect = head, False
    left = len(entries)  # a chain that is longer than its table runs in a circle
    while left and 0 <= index < len(entries):
        left -= 1
        entry = entries[index]
        addr, length, flags = int(entry["addr"]), int(entry["len"]), int(entry["flags"])
        if flags & INDIRECT:
            inner = None if indirect or flags & NEXT else _inner(addr, length, left + 1, ram)
            if inner is None:
                break
            entries, index, indirect, left = inner, 0, True, len(inner)
            continue
        yield entry.tobytes(), addr, length, flags
        if not flags & NEXT:
            return
        index = int(entry["next"])
    rejected[Reject.BAD_CHAIN] += 1


def _entries(table: bytes) -> np.ndarray:
    return np.frombuffer(table, DESCRIPTOR, count=min(len(table) // DESCRIPTOR.itemsize, MAX_TABLE))


def _inner(addr: int, length: int, most: int, ram: GuestRam) -> np.ndarray | None:
    """The table that an indirect descriptor points at; None where it is no such table.

    A chain holds no more descriptors than its queue, indirect or not (virtio 1.2, 2.7.5.3.1).
    """
    size = DESCRIPTOR.itemsize
    if not length or length % size or length > most * size:
        return None
    return _entries(ram.read(addr, length)) if ram.holds(addr, length) else None
