"""Reads a BPF ring buffer in bulk, straight from its mapping: no callback and no Python per event.

The programs never ask for a wake-up (BPF_RB_NO_WAKEUP), so a drain runs on a timer. All records of
one ring have one size, which makes the mapped ring a strided array: the layout is a page with the
consumer's position, a page with the producer's, and the data (kernel/bpf/ringbuf.c, since 5.8). So
records are copied as they lie there, headers and all, and fields are found behind those. The kernel
offers the data a second time after that, so that a record that wraps is whole. It is not mapped
here: resident memory would count every page of the ring twice.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tracer.errors import ProbeError

_HEADER_BYTES = 8
_BUSY = np.uint32(1 << 31)
_DISCARDED = np.uint32(1 << 30)
_LENGTH = np.uint32((1 << 30) - 1)

Records = npt.NDArray[np.void]


def join_records(parts: Sequence[Records]) -> Records:
    """Join arrays of records with the same fields, at least one.

    numpy moves structured arrays field by field, and plain bytes eight times as fast. That way go
    those that lie in memory alike, as all of one ring do.
    """
    filled = [part for part in parts if len(part)]
    if len(filled) < 2:
        return filled[0] if filled else parts[0]
    layout = filled[0].dtype
    if any(part.dtype != layout for part in filled):
        return np.concatenate(filled)
    joined: Records = np.concatenate([_as_bytes(part) for part in filled]).view(layout)
    return joined


def pick_records(records: Records, wanted: npt.NDArray[np.bool_]) -> Records:
    """Take the records that are wanted, without a copy where all are."""
    if wanted.all():
        return records
    picked: Records = _as_bytes(records)[wanted].view(records.dtype)
    return picked


def _as_bytes(records: Records) -> Records:
    return records.view(np.dtype((np.void, records.dtype.itemsize)))


def slot_layout(record: np.dtype[np.void]) -> np.dtype[np.void]:
    """Say how a record lies in its ring: behind a header, and filled up to 8 bytes."""
    fields: Mapping[str, Any] = record.fields or {}
    return np.dtype(
        {
            "names": list(fields),
            "formats": [field[0] for field in fields.values()],
            "offsets": [_HEADER_BYTES + field[1] for field in fields.values()],
            "itemsize": _HEADER_BYTES + (record.itemsize + 7) // 8 * 8,
        }
    )


class Ring:
    """One mapped ring of fixed-size records.

    Args:
        map_fd: Descriptor of a BPF_MAP_TYPE_RINGBUF map; stays the caller's.
        size_bytes: The ring's data size, a power of two of pages.
        record: Layout of every record in it.
    """

    def __init__(self, map_fd: int, size_bytes: int, record: np.dtype[np.void]) -> None:
        self._size_bytes = size_bytes
        self._record_bytes = record.itemsize
        self._slot = slot_layout(record)
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
            slot[n], the record's fields as `slot_layout` places them: a copy; the ring's space is
            free again.

        Raises:
            ProbeError: A record has another length than expected: the ring is not ours.
        """
        if self._consumer is None or self._producer is None:
            raise ProbeError("the ring is closed")
        begin = int(self._consumer[0])
        waiting = (int(self._producer[0]) - begin) // self._slot.itemsize
        if waiting <= 0:
            return np.empty(0, self._slot)
        # Headers come first: what is finished now stays as it is until the consumer moves on.
        headers = self._other_headers(begin, waiting)
        whole, wanted = (waiting, None) if headers is None else self._finished(headers)
        taken = self._copied(begin, whole)
        self._consumer[0] = begin + whole * self._slot.itemsize
        return taken if wanted is None else pick_records(taken, wanted)

    def _other_headers(self, begin: int, count: int) -> npt.NDArray[np.uint32] | None:
        """Copy the headers of slots where not all are of finished records of our length.

        A header has 8 bytes, so none lies across the ring's end. No look at the ring outlives this
        call: numpy does not keep the mapping, so one that an error kept would outlive the memory.
        """
        at, stride = begin % self._size_bytes, self._slot.itemsize
        before = min(count, -(-(self._size_bytes - at) // stride))
        parts = [self._first_words(at, before)]
        if before < count:
            after_at = at + before * stride - self._size_bytes
            parts.append(self._first_words(after_at, count - before))
        if all((part == self._record_bytes).all() for part in parts):
            return None
        return np.concatenate(parts)

    def _first_words(self, at: int, count: int) -> npt.NDArray[np.uint32]:
        """Look at the first word of so many slots, from a place in the ring on: no copy."""
        return np.ndarray(count, np.uint32, self._data, mmap.PAGESIZE + at, (self._slot.itemsize,))

    def _finished(self, headers: npt.NDArray[np.uint32]) -> tuple[int, npt.NDArray[np.bool_]]:
        """Count the records before the first that is still being written, and say which to keep."""
        busy = np.flatnonzero(headers & _BUSY)
        headers = headers[: busy[0]] if len(busy) else headers
        if np.any((headers & _LENGTH) != self._record_bytes):
            raise ProbeError(
                "a ring holds a record of an unexpected length",
                reason=f"expected {self._record_bytes} bytes",
                remedy="report this: bpf/records.h and tracer/engine/decode.py do not agree",
            )
        return len(headers), (headers & _DISCARDED) == 0

    def _copied(self, begin: int, count: int) -> Records:
        """Copy slots, up to the ring's end and from its begin on."""
        taken = np.empty(count, self._slot)
        target = taken.view(np.uint8)
        at = begin % self._size_bytes
        before = min(len(target), self._size_bytes - at)
        data = np.frombuffer(self._data, np.uint8, self._size_bytes, mmap.PAGESIZE)
        target[:before] = data[at : at + before]
        target[before:] = data[: len(target) - before]
        return taken

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
