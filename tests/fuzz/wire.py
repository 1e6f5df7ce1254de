"""Fuzz target: bytes on any queue of the device model, beside the C decoder of stage c.

Run alone: python -m tests.fuzz.wire [CORPUS_OR_INPUT...] [libFuzzer options].
"""

import numpy as np

from tests.fuzz.engine import explore, instrumented

with instrumented("replay"):
    from replay import native
    from replay.device import BalloonDevice
    from replay.plan import Context
    from replay.ranges import Runs, subtract
    from tracer.trace.manifest import Region
    from tracer.trace.schema import PAGE_BYTES, Queue, Wire

HEAD_BYTES = 2
PROTOCOLS = ("pfns", "range_words", "scatterlist")
UNITS = (PAGE_BYTES, 4 * PAGE_BYTES, 512 * PAGE_BYTES)
MAPS = tuple(
    tuple(Region("ram", pfn << 12, None, pages << 12, "anon", 4096) for pfn, pages in parts)
    for parts in (((0, 64), (100, 64)), ((0, 0xA0), (0x100, 0xF00), (0x2000, 0x1000)))
)


def head(queue: int, protocol: str = "pfns", unit: int = 0, memory: int = 0) -> bytes:
    """The bytes before a request's content that choose queue, protocol, host page and memory."""
    return bytes([queue, PROTOCOLS.index(protocol) | unit << 2 | memory << 4])


def one(data: bytes) -> None:
    """Have one request taken twice, with a reset between or not, and look at all of it."""
    if len(data) < HEAD_BYTES:
        return
    queue, choice = data[0] % 6, data[1]
    context = Context(MAPS[choice >> 4 & 1], UNITS[(choice >> 2 & 3) % 3])
    model = BalloonDevice(
        context,
        protocol=PROTOCOLS[(choice & 3) % 3],  # type: ignore[arg-type]
        inhibited=bool(choice & 32),
    )
    content = data[HEAD_BYTES:]
    if queue == Queue.FREE_PAGE_HINT:
        model.ask_for_hints(int.from_bytes(content[:4], "little"))
    for _ in range(2):
        handled = model.handle(queue, content)
        assert (handled.runs.pages > 0).all()
        assert subtract(handled.runs, context.layout.runs).total_pages == 0
        assert all(count > 0 for count in handled.rejected.values())
        assert model.host_owned.total_pages <= context.layout.guest_pages
        if choice & 64:
            model.reset()
            assert model.owed(handled).total_pages == 0
    translated(content, context, handled.runs)


def translated(content: bytes, context: Context, runs: Runs) -> None:
    """The C decoder finds no page outside memory either, and no more than there are."""
    layout = context.layout
    regions = tuple(
        (int(start) << 12, int(end - start) << 12, int(page) << 12)
        for start, end, page in zip(layout.start_pfn, layout.end_pfn, layout.base_page, strict=True)
    )
    wire = np.frombuffer(content, np.uint8)
    start = np.array([0, len(content)], np.uint64)
    for form in Wire:
        found = native.translate(wire, start, np.array([form], np.uint8), regions)
        assert 0 <= found.rejected <= found.entries + 1
        assert 0 <= found.pages <= found.entries * layout.guest_pages
        assert found.entries <= len(content) // 4
    assert runs.total_pages <= layout.guest_pages


if __name__ == "__main__":
    explore(one)
