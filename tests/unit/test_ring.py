"""The ring's bulk read against a ring that is laid out byte by byte as the kernel does it."""

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.engine.ring import Ring, join_records
from tracer.errors import ProbeError

PAGE = mmap.PAGESIZE
SIZE = PAGE
BUSY, DISCARDED = 1 << 31, 1 << 30
RECORDS = {
    8: np.dtype([("number", np.uint64)]),
    20: np.dtype([("number", np.uint64), ("rest", np.uint32, (3,))]),
    96: np.dtype([("number", np.uint64), ("rest", np.uint64, (11,))]),
    1120: np.dtype([("number", np.uint64), ("rest", np.uint32, (278,))]),
}


class Kernel:
    """Writes records to a file that is laid out as a ring: consumer, producer, data."""

    def __init__(self, file: int, item_bytes: int, position: int) -> None:
        self.file, self.item_bytes, self.position = file, item_bytes, position
        self.stride = 8 + (item_bytes + 7) // 8 * 8
        os.ftruncate(file, 2 * PAGE + SIZE)
        os.pwrite(file, struct.pack("<Q", position), 0)
        self.produced(0)

    def produced(self, slots: int) -> None:
        self.position += slots * self.stride
        os.pwrite(self.file, struct.pack("<Q", self.position), PAGE)

    def put(self, number: int, flags: int = 0, length: int | None = None) -> None:
        body = number.to_bytes(8, "little") + bytes([number & 0xFF]) * (self.item_bytes - 8)
        header = struct.pack("<II", (length or self.item_bytes) | flags, 77)
        for at, byte in enumerate((header + body).ljust(self.stride, b"\xee")):
            os.pwrite(self.file, bytes([byte]), 2 * PAGE + (self.position + at) % SIZE)
        self.produced(1)

    def consumed(self) -> int:
        return struct.unpack("<Q", os.pread(self.file, 8, 0))[0]


@contextmanager
def made(item_bytes: int, position: int) -> Iterator[tuple[Kernel, Ring]]:
    file = os.memfd_create("ring")
    try:
        kernel = Kernel(file, item_bytes, position)
        ring = Ring(file, SIZE, RECORDS[item_bytes])
        yield kernel, ring
        ring.close()
    finally:
        os.close(file)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(RECORDS)),
    st.integers(0, 4 * SIZE // 8),
    st.lists(st.lists(st.sampled_from([0, 0, 0, DISCARDED]), max_size=300), max_size=4),
)
def test_what_is_put_is_read_wherever_it_wraps(
    item_bytes: int, words: int, rounds: list[list[int]]
) -> None:
    """From every place in the ring, up to a full one, in several rounds."""
    with made(item_bytes, words * 8) as (kernel, ring):
        number = 0
        for flags in rounds:
            wanted = []
            for flag in flags[: SIZE // kernel.stride]:
                kernel.put(number, flag)
                wanted += [] if flag else [number]
                number += 1
            records = ring.read()
            assert records.dtype.names == RECORDS[item_bytes].names
            assert records["number"].tolist() == wanted
            if len(wanted) and "rest" in records.dtype.names:
                low = (records["number"] & 0xFF).astype(np.uint8)
                rest = np.ascontiguousarray(records["rest"]).view(np.uint8)
                assert (rest.reshape(len(records), -1) == low[:, None]).all()
            assert kernel.consumed() == kernel.position
            assert len(ring.read()) == 0


@pytest.mark.parametrize("item_bytes", RECORDS)
@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_record_that_is_not_finished_ends_a_read(item_bytes: int, before: int) -> None:
    """At the ring's end, where the record itself lies across it."""
    position = SIZE - 16 - before * (8 + (item_bytes + 7) // 8 * 8)
    with made(item_bytes, position % (1 << 40)) as (kernel, ring):
        for number in range(before):
            kernel.put(number)
        at = kernel.position
        kernel.put(before, BUSY)
        assert ring.read()["number"].tolist() == list(range(before))
        assert kernel.consumed() == at
        kernel.position = at
        kernel.put(before)
        assert ring.read()["number"].tolist() == [before]


def test_a_record_of_another_length_is_refused() -> None:
    with made(20, 0) as (kernel, ring):
        kernel.put(1)
        kernel.put(2, length=24)
        with pytest.raises(ProbeError, match="unexpected length"):
            ring.read()


def test_a_closed_ring_is_refused() -> None:
    with made(20, 0) as (_, ring):
        ring.close()
        with pytest.raises(ProbeError, match="closed"):
            ring.read()
        assert ring.used_share == 0.0


def test_records_of_a_ring_are_joined_with_those_that_lie_elsewhere() -> None:
    """Runs that threads left open come from a map, without a ring's headers between them."""
    record = RECORDS[20]
    from_map = np.array([(5, (1, 2, 3))], record)
    with made(20, SIZE - 16) as (kernel, ring):
        kernel.put(7)
        kernel.put(9)
        of_ring = ring.read()
    joined = join_records((of_ring, from_map, of_ring[1:]))
    assert joined["number"].tolist() == [7, 9, 5, 9]
    assert joined["rest"].tolist() == [
        [0x07070707] * 3,
        [0x09090909] * 3,
        [1, 2, 3],
        [0x09090909] * 3,
    ]
