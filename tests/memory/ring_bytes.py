"""A virtqueue's shared memory as raw bytes, between guard pages, and an independent reader of it.

What a field is and where it lies is written down here a second time, from the virtio specification
(1.2, 2.7) and not from the code under test.
"""

import ctypes
import mmap
import os
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from replay.native.binding import load
from tracer.trace.schema import Wire

NEXT, WRITE, INDIRECT = 1, 2, 4
GPA = 1 << 40
PAGE = mmap.PAGESIZE
ADDED, EINVAL, ENOSPC = 0, 22, 28
NONE, TAKEN, SKIPPED = 0, 1, 2
SOUND, AHEAD, HEAD, LOOP, TABLE, EMPTY, OUTSIDE, ORDER, DIRECTION, TOO_LONG = range(10)


@dataclass(frozen=True)
class Popped:
    """One buffer, as the device took it."""

    head: int
    content: bytes
    refused: int


class Ring:
    """Both sides of a queue on memory of its own; touching a byte beside it kills the process."""

    def __init__(
        self, size: int = 8, *, event_idx: bool = True, indirect: bool = True, payload: int = 64
    ) -> None:
        ffi, self.lib = load()
        self.c = ffi.new("struct aero_ring *")
        self.c.size, self.c.event_idx, self.c.indirect = size, event_idx, indirect
        self.c.payload_bytes, self.c.gpa = payload, GPA
        used_bytes = self.lib.aero_ring_place(self.c, 0)
        self.bytes = -(-used_bytes // PAGE) * PAGE
        self._map = mmap.mmap(-1, self.bytes + 2 * PAGE)
        whole = np.frombuffer(self._map, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (0, PAGE + self.bytes):
            at = ctypes.c_void_p(whole.ctypes.data + guard)
            if libc.mprotect(at, ctypes.c_size_t(PAGE), 0):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self.raw = memoryview(self._map)[PAGE : PAGE + self.bytes]
        self.c.shared = ffi.cast("uint8_t *", whole.ctypes.data + PAGE)
        self.c.shared_bytes = self.bytes
        self.driver = ffi.new("struct aero_driver *")
        self.device = ffi.new("struct aero_device *")
        self.lib.aero_driver_reset(self.driver, self.c)
        self.ffi: Any = ffi

    # The driver's side.

    def add(self, *elements: tuple[int, int, bool]) -> int:
        """Offer a buffer of (gpa, length, writable by the device)."""
        given = self.ffi.new("struct aero_element[]", list(elements))
        return int(self.lib.aero_driver_add(self.driver, self.c, given, len(elements)))

    def kick_due(self) -> bool:
        return bool(self.lib.aero_driver_kick(self.driver, self.c))

    def take(self) -> int:
        return int(self.lib.aero_driver_take(self.driver, self.c))

    def put(self, content: bytes, at: int = 0) -> int:
        """Write into the driver's buffer; its guest-physical address."""
        offset = self.c.payload_offset + at
        self.raw[offset : offset + len(content)] = content
        return int(GPA + offset)

    # The device's side.

    def pop(self, form: Wire = Wire.PFNS, capacity: int = 4096) -> Popped | int:
        """One buffer; NONE or SKIPPED where there is none."""
        content = self.ffi.new("uint8_t[]", max(capacity, 1))
        buffer = self.ffi.new("struct aero_buffer *", [content, capacity])
        found = self.lib.aero_device_pop(self.device, self.c, int(form), buffer)
        if found != TAKEN:
            return int(found)
        text = bytes(self.ffi.buffer(content, buffer.length_bytes))
        return Popped(buffer.head, text, buffer.refused)

    def push(self, head: int, written_bytes: int = 0) -> None:
        self.lib.aero_device_push(self.device, self.c, head, written_bytes)

    def interrupt_due(self) -> bool:
        return bool(self.lib.aero_device_notify(self.device, self.c))

    def refusals(self) -> dict[int, int]:
        return {reason: n for reason, n in enumerate(self.device.refused) if n}

    # The independent reader and writer.

    def descriptor(self, index: int, table: int | None = None) -> tuple[int, int, int, int]:
        """Address, length, flags, next."""
        base = self.c.desc_offset if table is None else table
        return struct.unpack_from("<QIHH", self.raw, base + 16 * index)

    def avail(self) -> tuple[int, int, list[int], int]:
        """Flags, idx, ring, used_event."""
        size = self.c.size
        flags, idx, *ring, event = struct.unpack_from(f"<HH{size}HH", self.raw, self.c.avail_offset)
        return flags, idx, ring, event

    def used(self) -> tuple[int, int, list[tuple[int, int]], int]:
        """Flags, idx, ring of (id, len), avail_event."""
        size = self.c.size
        flags, idx, *ring, event = struct.unpack_from(
            f"<HH{2 * size}IH", self.raw, self.c.used_offset
        )
        return flags, idx, list(zip(ring[::2], ring[1::2], strict=True)), event

    def set_descriptor(
        self,
        index: int,
        addr: int,
        length: int,
        flags: int = 0,
        following: int = 0,
        table: int = -1,
    ) -> None:
        base = self.c.desc_offset if table < 0 else table
        struct.pack_into("<QIHH", self.raw, base + 16 * index, addr, length, flags, following)

    def offer(self, *heads: int, idx: int | None = None) -> None:
        """Write heads into the avail ring as a guest would, and raise its idx, or set it."""
        _, now, _, _ = self.avail()
        for i, head in enumerate(heads):
            place = self.c.avail_offset + 4 + 2 * ((now + i) % self.c.size)
            struct.pack_into("<H", self.raw, place, head)
        now = (now + len(heads)) % (1 << 16) if idx is None else idx
        struct.pack_into("<H", self.raw, self.c.avail_offset + 2, now)

    def give_back(self, *ids: int, idx: int | None = None) -> None:
        """Write ids into the used ring as a device would, and raise its idx, or set it."""
        _, now, _, _ = self.used()
        for i, head in enumerate(ids):
            place = self.c.used_offset + 4 + 8 * ((now + i) % self.c.size)
            struct.pack_into("<II", self.raw, place, head, 0)
        now = (now + len(ids)) % (1 << 16) if idx is None else idx
        struct.pack_into("<H", self.raw, self.c.used_offset + 2, now)
