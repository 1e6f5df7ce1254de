"""Reads a BPF ring buffer in bulk, straight from its mapping: no callback and no Python per event.

The programs never ask for a wake-up (BPF_RB_NO_WAKEUP), so a drain runs on a timer. All records of
one ring have one size, which makes the mapped ring a strided array: the layout is a page with the
consumer's position, a page with the producer's, and the data mapped twice in a row so that a record
that wraps is whole (kernel/bpf/ringbuf.c, since 5.8).
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
            map_fd, page + 2 * size_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
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
        offset = mmap.PAGESIZE + begin % self._size_bytes
        raw = np.frombuffer(self._data, np.uint8, waiting * self._stride_bytes, offset)
        headers = np.ndarray(
            (waiting,), np.uint32, buffer=raw.data, strides=(self._stride_bytes,)
        ).copy()
        whole = self._whole(headers)
        slots = raw.reshape(waiting, self._stride_bytes)
        taken = slots[:whole, _HEADER_BYTES : _HEADER_BYTES + self._record.itemsize].copy()
        self._consumer[0] = begin + whole * self._stride_bytes
        records: Records = taken.reshape(-1).view(self._record)
        return pick_records(records, (headers[:whole] & _DISCARDED) == 0)

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
                remedy="report this: bpf/records.h and tracer/decode.py do not agree",
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
