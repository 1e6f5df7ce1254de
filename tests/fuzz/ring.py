"""Fuzz target: a descriptor table and the memory it points at, as a guest may leave them.

The model's reader and the C device of stage b must agree on what a chain says.

Run alone: python -m tests.fuzz.ring [CORPUS_OR_INPUT...] [libFuzzer options].
"""

from tests.fuzz.engine import explore, instrumented

with instrumented("replay"):
    from replay.chain import GuestRam, read_chain
    from replay.device import BalloonDevice
    from replay.plan import Context
    from replay.ranges import subtract
    from replay.wire import DESCRIPTOR, MAX_REQUEST_BYTES
    from tests.hostile.both_readers import assert_agreed
    from tracer.trace.manifest import Region

ENTRIES = 8
"""Descriptors in the table; the rest of an input is the guest's memory from gpa 0 on."""
TABLE_BYTES = ENTRIES * DESCRIPTOR.itemsize
HEAD_BYTES = 2
"""Queue; and in one byte where the chain begins and the protocol."""
PROTOCOLS = ("pfns", "scatterlist")
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
    protocol = PROTOCOLS[data[1] // (ENTRIES + 1) % len(PROTOCOLS)]
    model = BalloonDevice(Context(REGIONS), protocol=protocol)  # type: ignore[arg-type]
    model.ask_for_hints(int.from_bytes(low[:4], "little"))
    for _ in range(2):
        handled = model.take(queue, table, at, ram)
        assert subtract(handled.runs, model.context.layout.runs).total_pages == 0
        assert set(chain.rejected) <= set(handled.rejected)
    if at < ENTRIES:
        assert_agreed(table.ljust(TABLE_BYTES, b"\0"), at, low)


if __name__ == "__main__":
    explore(one)
