"""The ring's bulk read against a ring that is laid out byte by byte as the kernel does it."""

import mmap
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.engine.ring import Ring, join_records
from tracer.errors import ProbeError
from tracer.trace.errors import AerostatError

PAGE = mmap.PAGESIZE
SIZE = PAGE
BUSY, DISCARDED = 1 << 31, 1 << 30
RECORDS = {
    8: np.dtype([("number", np.uint64)]),
    20: np.dtype([("number", np.uint64), ("rest", np.uint32, (3,))]),
    56: np.dtype([("number", np.uint64), ("rest", np.uint64, (6,))]),
    96: np.dtype([("number", np.uint64), ("rest", np.uint64, (11,))]),
    1120: np.dtype([("number", np.uint64), ("rest", np.uint32, (278,))]),
    5000: np.dtype([("number", np.uint64), ("rest", np.uint32, (1248,))]),
}


class Kernel:
    """Writes records to a file that is laid out as a ring: consumer, producer, data."""

    def __init__(self, file: int, item_bytes: int, position: int, size: int = SIZE) -> None:
        self.file, self.item_bytes, self.position = file, item_bytes, position
        self.size = size
        self.stride = 8 + (item_bytes + 7) // 8 * 8
        os.ftruncate(file, 2 * PAGE + size)
        os.pwrite(file, struct.pack("<Q", position), 0)
        self.produced(0)

    def produced(self, slots: int) -> None:
        self.advance(slots * self.stride)

    def advance(self, by_bytes: int) -> None:
        self.position += by_bytes
        os.pwrite(self.file, struct.pack("<Q", self.position), PAGE)

    def put(self, number: int, flags: int = 0, length: int | None = None) -> None:
        body = number.to_bytes(8, "little") + bytes([number & 0xFF]) * (self.item_bytes - 8)
        header = struct.pack("<II", (length or self.item_bytes) | flags, 77)
        for at, byte in enumerate((header + body).ljust(self.stride, b"\xee")):
            os.pwrite(self.file, bytes([byte]), 2 * PAGE + (self.position + at) % self.size)
        self.produced(1)

    def consumed(self) -> int:
        return struct.unpack("<Q", os.pread(self.file, 8, 0))[0]


@contextmanager
def made(item_bytes: int, position: int, size: int = SIZE) -> Iterator[tuple[Kernel, Ring]]:
    file = os.memfd_create("ring")
    try:
        kernel = Kernel(file, item_bytes, position, size)
        ring = Ring(file, size, RECORDS[item_bytes])
        yield kernel, ring
        ring.close()
    finally:
        os.close(file)


@settings(max_examples=60)
@given(
    st.sampled_from([8, 20, 96, 1120]),
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


@pytest.mark.parametrize("item_bytes", [8, 20, 96, 1120])
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
        for _ in range(2):  # Nothing is consumed.
            with pytest.raises(ProbeError, match="unexpected length"):
                ring.read()
        assert kernel.consumed() == 0


def test_a_discarded_record_of_another_length_is_refused() -> None:
    with made(20, 0) as (kernel, ring):
        kernel.put(1)
        kernel.put(2, DISCARDED, length=24)
        with pytest.raises(ProbeError, match="unexpected length"):
            ring.read()
        assert kernel.consumed() == 0


def test_what_follows_a_record_that_is_being_written_is_not_judged() -> None:
    with made(20, 0) as (kernel, ring):
        kernel.put(1)
        kernel.put(2, BUSY, length=24)
        kernel.put(3, length=24)
        assert ring.read()["number"].tolist() == [1]
        assert kernel.consumed() == kernel.stride


@pytest.mark.parametrize("before", [1, 30, 63, 64, 65, 100, 127, 128, 129])
def test_a_record_in_the_midst_of_a_block_ends_a_read_or_is_left_out(before: int) -> None:
    """A ring of four pages, of which one holds 64 slots; all of it is written, round its end."""
    size, count = 4 * PAGE, 160
    with made(56, size - 50 * 64, size) as (kernel, ring):
        for number in range(count):
            flags = {before: BUSY, before // 2: DISCARDED}.get(number, 0)
            kernel.put(number, flags)
        expected = [number for number in range(before) if number != before // 2]
        taken = ring.read()
        assert taken["number"].tolist() == expected
        assert taken.base is None  # It does not keep the memory of all that waited.
        assert kernel.consumed() == size - 50 * 64 + before * 64
        end = kernel.position
        kernel.position = kernel.consumed()
        kernel.put(before)
        kernel.position = end
        kernel.produced(0)
        assert ring.read()["number"].tolist() == list(range(before, count))


def test_records_larger_than_a_block_are_read_wherever_they_wrap() -> None:
    size = 8 * PAGE
    with made(5000, 3 * size - 2504, size) as (kernel, ring):
        number = 0
        for count in (5, 1, 3, 5):
            for flags in [0] * count + [DISCARDED]:
                kernel.put(number, flags)
                number += 1 if not flags else 0
            records = ring.read()
            assert records["number"].tolist() == list(range(number - count, number))
            rest = np.ascontiguousarray(records["rest"]).view(np.uint8).reshape(count, -1)
            assert (rest == records["number"].astype(np.uint8)[:, None]).all()
            assert kernel.consumed() == kernel.position


def test_a_ring_is_closed_after_whatever_was_read_or_refused() -> None:
    with made(20, 0) as (kernel, ring):
        kernel.put(1)
        taken = ring.read()
        kernel.put(2, length=24)
        with pytest.raises(ProbeError) as refusal:
            ring.read()
        ring.close()
        assert taken["number"].tolist() == [1]
        assert refusal.value.remedy


def test_an_extension_that_is_not_built_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tracer.engine._drain", None)
    with pytest.raises(AerostatError, match="_drain is not built") as error, made(20, 0):
        pass
    assert "make setup" in error.value.remedy
    assert error.value.reason


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
