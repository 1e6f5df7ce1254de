"""Sends a raw chain to both that read one: the device model, and the C device of stage b."""

import struct

import numpy as np

from replay.chain import GuestRam, read_chain
from replay.native.binding import load
from replay.wire import DESCRIPTOR, MAX_REQUEST_BYTES, Reject

HARMLESS = {Reject.UNKNOWN_FLAG, Reject.TOO_LONG}
"""Counted by the model alone; the C device takes fewer bytes and refuses what is longer."""


def assert_agreed(table: bytes, head: int, low: bytes) -> None:
    """Have both read the chain at `head`, in guest memory that is `low` from address 0 on.

    Where the C device takes a buffer, the model reads the same; where it refuses one, the model
    counts something. Tables and rings lie behind the memory, where no descriptor may point.
    """
    size = len(table) // DESCRIPTOR.itemsize
    avail = struct.pack(f"<HHH{size}H", 0, 1, head, *[0] * size)
    used = bytes(4 + 8 * size + 2)
    room = bytes(-len(low) % DESCRIPTOR.itemsize)
    shared = np.frombuffer(bytearray(low + room + table + avail + used), np.uint8)
    ffi, lib = load()
    ring = ffi.new("struct aero_ring *")
    ring.shared, ring.shared_bytes = ffi.from_buffer("uint8_t[]", shared), len(low)
    ring.desc_offset = len(low) + len(room)
    ring.avail_offset = ring.desc_offset + len(table)
    ring.used_offset = ring.avail_offset + len(avail)
    ring.size, ring.indirect = size, 1
    content = ffi.new("uint8_t[]", MAX_REQUEST_BYTES)
    buffer = ffi.new("struct aero_buffer *", [content, MAX_REQUEST_BYTES])
    device = ffi.new("struct aero_device *")
    popped = lib.aero_device_pop(device, ring, 0, buffer)
    chain = read_chain(table, head, GuestRam([(0, low)]))
    if popped == lib.AERO_SKIPPED:
        assert head >= size
        assert chain.rejected == {Reject.BAD_CHAIN: 1}
        return
    assert popped == lib.AERO_TAKEN
    if buffer.refused == lib.AERO_SOUND:
        assert set(chain.rejected) <= HARMLESS
        assert chain.readable == bytes(ffi.buffer(content, buffer.length_bytes))
        assert not chain.writable
    elif buffer.refused != lib.AERO_TABLE:  # C takes no indirect table behind other descriptors
        assert chain.rejected or chain.writable
