"""Reads a BPF ring buffer in bulk, straight from its mapping: no callback and no Python per event.

The programs never ask for a wake-up (BPF_RB_NO_WAKEUP), so a drain runs on a timer. All records of
one ring have one size, which makes the mapped ring a strided array: the layout is a page with the
consumer's position, a page with the producer's, and the data (kernel/bpf/ringbuf.c, since 5.8). The
kernel offers the data a second time after that, so that a record that wraps is whole. It is not
mapped here: resident memory would count every page of the ring twice.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tracer.errors import ProbeError

_HEADER_BYTES = 8
_BUSY = np.uint32(1 << 31)
_DISCARDED = np.uint32(1 << 30)
_LENGTH = np.uint32((1 << 30) - 1)
_WORD = np.dtype(np.uint32)

Records = npt.NDArray[np.void]


def join_records(parts: Sequence[Records]) -> Records:
    """Join arrays of records of one layout, at least one.

    numpy moves structured arrays field by field, and plain bytes eight times as fast.
    """
    filled = [part for part in parts if len(part)]
    if len(filled) < 2:
        return filled[0] if filled else parts[0]
    joined: Records = np.concatenate([_as_bytes(part) for part in filled]).view(filled[0].dtype)
    return joined


def pick_records(records: Records, wanted: npt.NDArray[np.bool_]) -> Records:
    """Take the records that are wanted, without a copy where all are."""
    if wanted.all():
        return records
    picked: Records = _as_bytes(records)[wanted].view(records.dtype)
    return picked


def _as_bytes(records: Records) -> Records:
    return records.view(np.dtype((np.void, records.dtype.itemsize)))


class Ring:
    """One mapped ring of fixed-size records.

    Args:
        map_fd: Descriptor of a BPF_MAP_TYPE_RINGBUF map; stays the caller's.
        size_bytes: The ring's data size, a power of two of pages.
        record: Layout of every record in it.
    """

    def __init__(self, map_fd: int, size_bytes: int, record: np.dtype[np.void]) -> None:
        self._size_bytes = size_bytes
        self._record = record
        self._stride_bytes = _HEADER_BYTES + (record.itemsize + 7) // 8 * 8
        page = mmap.PAGESIZE
        self._control = mmap.mmap(map_fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._data = mmap.mmap(
            map_fd, page + size_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
        )
        self._consumer: npt.NDArray[np.uint64] | None = np.frombuffer(
            self._control, np.uint64, count=1
        )
        self._producer: npt.NDArray[np.uint64] | None = np.frombuffer(
            self._data, np.uint64, count=1
        )

    def read(self) -> Records:
        """Take every whole record out of the ring.

        Returns:
            record[n]: a copy; the ring's space is free again.

        Raises:
            ProbeError: A record has another length than expected: the ring is not ours.
        """
        if self._consumer is None or self._producer is None:
            raise ProbeError("the ring is closed")
        begin = int(self._consumer[0])
        waiting = (int(self._producer[0]) - begin) // self._stride_bytes
        if waiting <= 0:
            return np.empty(0, self._record)
        headers = self._headers(begin, waiting)
        whole = self._whole(headers)
        taken = self._copied(begin, whole)
        self._consumer[0] = begin + whole * self._stride_bytes
        return pick_records(taken, (headers[:whole] & _DISCARDED) == 0)

    def _headers(self, begin: int, count: int) -> npt.NDArray[np.uint32]:
        """Copy the headers of slots: 8 bytes, so that none lies across the ring's end."""
        at = begin % self._size_bytes
        before = min(count, -(-(self._size_bytes - at) // self._stride_bytes))
        after_at = at + before * self._stride_bytes - self._size_bytes
        parts = (self._strided(at, before, 1), self._strided(after_at, count - before, 1))
        return np.concatenate(parts).reshape(count)

    def _copied(self, begin: int, count: int) -> Records:
        """Copy the records of slots: up to the ring's end, across it, and from its begin on."""
        words = self._stride_bytes // _WORD.itemsize
        at = begin % self._size_bytes
        taken = np.empty(count, self._record)
        target = taken.view(np.uint8).reshape(count, self._record.itemsize)
        before = min(count, (self._size_bytes - at) // self._stride_bytes)
        target[:before] = self._payload(self._strided(at, before, words))
        at += before * self._stride_bytes
        if before < count and at < self._size_bytes:
            left = (self._size_bytes - at) // _WORD.itemsize
            parts = (self._strided(at, 1, left), self._strided(0, 1, words - left))
            target[before : before + 1] = self._payload(np.concatenate(parts, axis=1))
            before, at = before + 1, at + self._stride_bytes
        after = self._strided(at - self._size_bytes, count - before, words)
        target[before:] = self._payload(after)
        return taken

    def _strided(self, at: int, count: int, words: int) -> npt.NDArray[np.uint32]:
        """Look at the first words of so many slots, from a place in the ring on: no copy."""
        if not count:
            return np.empty((0, words), _WORD)
        return np.ndarray(
            (count, words),
            _WORD,
            buffer=self._data,
            offset=mmap.PAGESIZE + at,
            strides=(self._stride_bytes, _WORD.itemsize),
        )

    def _payload(self, slots: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
        """Leave the header out, and what fills the record up to 8 bytes."""
        return slots.view(np.uint8)[:, _HEADER_BYTES : _HEADER_BYTES + self._record.itemsize]

    def _whole(self, headers: npt.NDArray[np.uint32]) -> int:
        """Count the records before the first one that its producer has not finished."""
        if np.all(headers == self._record.itemsize):
            return len(headers)  # none is busy, discarded or of another length
        busy = np.flatnonzero(headers & _BUSY)
        whole = int(busy[0]) if len(busy) else len(headers)
        if np.any((headers[:whole] & _LENGTH) != self._record.itemsize):
            raise ProbeError(
                "a ring holds a record of an unexpected length",
                reason=f"expected {self._record.itemsize} bytes",
                remedy="report this: bpf/records.h and tracer/engine/decode.py do not agree",
            )
        return whole

    @property
    def used_share(self) -> float:
        """How full the ring is, 0 to 1."""
        if self._consumer is None or self._producer is None:
            return 0.0
        return (int(self._producer[0]) - int(self._consumer[0])) / self._size_bytes

    def close(self) -> None:
        """Unmap the ring; what is left in it is lost."""
        self._consumer = self._producer = None
        self._control.close()
        self._data.close()
