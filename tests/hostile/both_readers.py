"""Sends a raw chain to both that read one: the device model, and the C device of stage b."""

import struct
from dataclasses import dataclass

import numpy as np

from replay.chain import Chain, GuestRam, read_chain
from replay.native.binding import load
from replay.wire import DESCRIPTOR, MAX_REQUEST_BYTES, WRITABLE, Reject, decode_scatterlist
from tracer.trace.schema import Wire

HARMLESS = {Reject.UNKNOWN_FLAG, Reject.TOO_LONG}
"""Counted by the model alone; the C device takes fewer bytes and refuses what is longer."""


@dataclass(frozen=True)
class Popped:
    """What the C device made of a chain: its answer, why it refused it, and what it took."""

    answer: int
    refused: int
    content: bytes


def assert_agreed(table: bytes, head: int, low: bytes) -> None:
    """Have both read the chain at `head`, in guest memory that is `low` from address 0 on.

    Where the C device takes a buffer, the model reads the same; where it refuses one, the model
    counts something. Read twice: as content, and as descriptors that are themselves the ranges.
    """
    _, lib = load()
    chain = read_chain(table, head, GuestRam([(0, low)]))
    for form, agree in ((Wire.PFNS, _content_agrees), (Wire.SCATTERLIST, _ranges_agree)):
        popped = _pop(table, head, low, form)
        if popped.answer == lib.AERO_SKIPPED:
            assert head >= len(table) // DESCRIPTOR.itemsize
            assert chain.rejected == {Reject.BAD_CHAIN: 1}
            continue
        assert popped.answer == lib.AERO_TAKEN
        if popped.refused != lib.AERO_TABLE:  # C takes no indirect table behind other descriptors
            agree(chain, popped, sound=popped.refused == lib.AERO_SOUND)


def _content_agrees(chain: Chain, popped: Popped, *, sound: bool) -> None:
    if not sound:
        assert chain.rejected or chain.writable
        return
    assert set(chain.rejected) <= HARMLESS
    assert chain.readable == popped.content
    assert not chain.writable


def _ranges_agree(chain: Chain, popped: Popped, *, sound: bool) -> None:
    """The C device looks at no buffer's memory here, and leaves flags to whoever decodes."""
    if not sound:
        assert chain.rejected or decode_scatterlist(chain.writable).rejected
        return
    assert set(chain.rejected) <= {*HARMLESS, Reject.NOT_MEMORY}
    if not chain.void:
        taken = np.frombuffer(popped.content, DESCRIPTOR)
        told = np.frombuffer(chain.writable, DESCRIPTOR)
        taken = taken[taken["flags"] & WRITABLE != 0]
        assert taken[["addr", "len"]].tolist() == told[["addr", "len"]].tolist()


def _pop(table: bytes, head: int, low: bytes, form: Wire) -> Popped:
    """Have the C device pop one buffer; tables and rings lie behind the memory it may look at."""
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
    answer = lib.aero_device_pop(device, ring, int(form), buffer)
    return Popped(answer, buffer.refused, bytes(ffi.buffer(content, buffer.length_bytes)))
