"""Reads a BPF ring buffer in bulk, straight from its mapping: no callback and no Python per event.

The programs never ask for a wake-up (BPF_RB_NO_WAKEUP), so a drain runs on a timer. All records of
one ring have one size, which makes the mapped ring a strided array: the layout is a page with the
consumer's position, a page with the producer's, and the data (kernel/bpf/ringbuf.c, since 5.8). So
records are copied as they lie there, headers and all, and fields are found behind those. `drain.c`
does that, in one pass and without the interpreter's lock. The kernel offers the data a second time
after that, so that a record that wraps is whole. It is not mapped here: resident memory would count
every page of the ring twice.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tracer.errors import ProbeError
from tracer.trace.errors import AerostatError

_HEADER_BYTES = 8

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


def load_drain() -> tuple[Any, Any]:
    """Give cffi's `ffi` and the library.

    Raises:
        AerostatError: The extension is not built.
    """
    try:
        from tracer.engine._drain import ffi, lib
    except ImportError as error:
        raise AerostatError(
            "the C extension tracer.engine._drain is not built",
            reason=str(error),
            remedy="install a C compiler and run `make setup`, or `pip install -e .`",
        ) from error
    return ffi, lib


class Ring:
    """One mapped ring of fixed-size records.

    Args:
        map_fd: Descriptor of a BPF_MAP_TYPE_RINGBUF map; stays the caller's.
        size_bytes: The ring's data size, a power of two of pages.
        record: Layout of every record in it.

    Raises:
        AerostatError: The C extension is not built.
    """

    def __init__(self, map_fd: int, size_bytes: int, record: np.dtype[np.void]) -> None:
        self._ffi, self._lib = load_drain()
        self._size_bytes = size_bytes
        self._record_bytes = record.itemsize
        self._slot = slot_layout(record)
        page = mmap.PAGESIZE
        self._shape = self._ffi.new("struct aero_ring_shape *", [size_bytes, record.itemsize, page])
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
            ProbeError: A record has another length than expected, or the positions cannot be: the
                ring is not ours. Nothing was taken.
        """
        # Most reads find nothing: that costs no call, after which another thread may have the lock.
        slots = min(self._waiting_bytes(), self._size_bytes) // self._slot.itemsize
        if slots <= 0:
            return np.empty(0, self._slot)
        taken = np.empty(slots, self._slot)
        count = self._drained(taken)
        if count < 0:
            raise self._refusal(count)
        if count < slots:
            # Not a slice, which would keep all of the memory. No other name for it is left.
            taken.resize(count, refcheck=False)
        return taken

    def _waiting_bytes(self) -> int:
        if self._consumer is None or self._producer is None:
            raise ProbeError("the ring is closed")
        # The consumer's position first: the producer's is never behind it then.
        begin = int(self._consumer[0])
        return int(self._producer[0]) - begin

    def _drained(self, taken: Records) -> int:
        """Move records into an array; how many, or why none.

        While C looks at the ring, cffi holds the mapping: `close` fails then, and unmaps nothing.
        """
        held = self._ffi.from_buffer
        with (
            held("uint64_t[]", self._control) as consumer,
            held("uint8_t[]", self._data) as pages,
            held("uint8_t[]", taken.view(np.uint8)) as to,
        ):
            return int(self._lib.aero_drain(self._shape, consumer, pages, to, len(taken)))

    def _refusal(self, code: int) -> ProbeError:
        if code == self._lib.AERO_RING_POSITION:
            return ProbeError(
                "a ring's positions are not those of a ring",
                reason=f"{self._waiting_bytes()} bytes to be read of {self._size_bytes}",
                remedy="report this, with the version of the kernel",
            )
        return ProbeError(
            "a ring holds a record of an unexpected length",
            reason=f"expected {self._record_bytes} bytes",
            remedy="report this: bpf/records.h and tracer/engine/decode.py do not agree",
        )

    @property
    def used_share(self) -> float:
        """How full the ring is, 0 to 1."""
        return 0.0 if self._consumer is None else self._waiting_bytes() / self._size_bytes

    def close(self) -> None:
        """Unmap the ring; what is left in it is lost."""
        self._consumer = self._producer = None
        self._control.close()
        self._data.close()
