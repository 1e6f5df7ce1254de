"""Fuzz target: a descriptor table and the memory it points at, as a guest may leave them.

The model's reader and the C device of stage b must agree on what a chain says.

Run alone: python -m tests.fuzz.ring [CORPUS_OR_INPUT...] [libFuzzer options].
"""

import struct

import numpy as np

from tests.fuzz.engine import explore, instrumented

with instrumented("replay"):
    from replay.chain import GuestRam, read_chain
    from replay.device import BalloonDevice
    from replay.native.binding import load
    from replay.plan import Context
    from replay.ranges import subtract
    from replay.wire import DESCRIPTOR, MAX_REQUEST_BYTES, Reject
    from tracer.trace.manifest import Region

ENTRIES = 8
"""Descriptors in the table; the rest of an input is the guest's memory from gpa 0 on."""
TABLE_BYTES = ENTRIES * DESCRIPTOR.itemsize
HEAD_BYTES = 2
SECOND_GPA = 1 << 20
REGIONS = tuple(
    Region("ram", pfn << 12, None, pages << 12, "anon", 4096) for pfn, pages in ((0, 64), (100, 64))
)


def one(data: bytes) -> None:
    """Read one chain from a table, and have the device take it."""
    if len(data) < HEAD_BYTES:
        return
    queue, at = data[0] % 6, data[1] % (ENTRIES + 1)
    table, low = data[HEAD_BYTES:][:TABLE_BYTES], data[HEAD_BYTES + TABLE_BYTES :]
    half = len(low) // 2
    # Two pieces that touch, and the same again further up, so that lengths can cross borders.
    ram = GuestRam([(0, low[:half]), (half, low[half:]), (SECOND_GPA, low)])
    chain = read_chain(table, at, ram)
    assert len(chain.readable) <= MAX_REQUEST_BYTES
    assert len(chain.writable) % DESCRIPTOR.itemsize == 0
    assert all(count > 0 for count in chain.rejected.values())
    model = BalloonDevice(Context(REGIONS))
    model.ask_for_hints(int.from_bytes(low[:4], "little"))
    for _ in range(2):
        handled = model.take(queue, table, at, ram)
        assert subtract(handled.runs, model.context.layout.runs).total_pages == 0
        assert set(chain.rejected) <= set(handled.rejected)
    if at < ENTRIES:
        agree(table.ljust(TABLE_BYTES, b"\0"), at, low)


def agree(table: bytes, head: int, low: bytes) -> None:
    """Lay table, rings and memory out at gpa 0 for the C device, and have both read the chain."""
    avail = struct.pack(f"<HHH{ENTRIES}H", 0, 1, head, *[0] * ENTRIES)
    used = bytes(4 + 8 * ENTRIES + 2)
    shared = np.frombuffer(bytearray(table + avail + used + low), np.uint8)
    ffi, lib = load()
    ring = ffi.new("struct aero_ring *")
    ring.shared, ring.shared_bytes = ffi.from_buffer("uint8_t[]", shared), len(shared)
    ring.avail_offset, ring.used_offset = TABLE_BYTES, TABLE_BYTES + len(avail)
    ring.size, ring.indirect = ENTRIES, 1
    device = ffi.new("struct aero_device *")
    content = ffi.new("uint8_t[]", MAX_REQUEST_BYTES)
    buffer = ffi.new("struct aero_buffer *", [content, MAX_REQUEST_BYTES])
    assert lib.aero_device_pop(device, ring, 0, buffer) == lib.AERO_TAKEN
    chain = read_chain(table, head, GuestRam([(0, shared.tobytes())]))
    if buffer.refused == lib.AERO_SOUND:
        assert set(chain.rejected) <= {Reject.UNKNOWN_FLAG}
        assert chain.readable == bytes(ffi.buffer(content, buffer.length_bytes))
        assert not chain.writable
    elif buffer.refused != lib.AERO_TABLE:  # C takes no indirect table behind other descriptors
        assert chain.rejected or chain.writable


if __name__ == "__main__":
    explore(one)
