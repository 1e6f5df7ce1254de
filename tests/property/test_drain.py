"""The C that empties a ring, on memory between guard pages, against the same written in Python."""

import ctypes
import mmap
import os
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.engine.ring import load_drain

PAGE = mmap.PAGESIZE
LARGEST = 4 * PAGE
BUSY, DISCARDED = 1 << 31, 1 << 30
LENGTH, POSITION = -1, -2
ffi, lib = load_drain()


class Guarded:
    """So many bytes that end where a page begins which kills the process when it is touched."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size + 2 * PAGE)
        whole = np.frombuffer(self._map, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (0, PAGE + size):
            at = ctypes.c_void_p(whole.ctypes.data + guard)
            if libc.mprotect(at, ctypes.c_size_t(PAGE), 0):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self.bytes = whole[PAGE : PAGE + size]

    def last(self, kind: str, size: int) -> object:
        """The last so many bytes of it, for C."""
        return ffi.cast(kind, self.bytes.ctypes.data + len(self.bytes) - size)


CONTROL, TARGET = Guarded(PAGE), Guarded(LARGEST)
RINGS = {size: Guarded(PAGE + size) for size in (PAGE, LARGEST)}
NOISE = np.random.default_rng(7).integers(0, 256, LARGEST, np.uint8)


@dataclass
class Case:
    """A ring as anybody may have left it."""

    size: int
    record: int
    begin: int
    ahead: int
    headers: list[int]
    slots: int

    @property
    def slot(self) -> int:
        return 8 + (self.record + 7) // 8 * 8


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Mostly sound ones; positions and headers of any kind among them."""
    size = draw(st.sampled_from(sorted(RINGS)))
    record = draw(st.sampled_from([1, 8, 20, 56, 1120, 4088, 5000]))
    case = Case(size, record, 0, 0, [], 0)
    word = st.integers(0, 1 << 40).map(lambda words: 8 * words)
    case.begin = draw(st.one_of(word, word, st.integers(0, (1 << 64) - 1)))
    whole = st.integers(0, size // case.slot).map(lambda slots: slots * case.slot)
    anywhere = st.integers(-(1 << 63), (1 << 63) - 1)
    case.ahead = draw(st.one_of(whole, whole, st.integers(-size, 2 * size), anywhere))
    sound = st.sampled_from([record] * 12 + [record | DISCARDED] * 2)
    flags = st.sampled_from([BUSY, BUSY | DISCARDED, 1 << 29]).map(lambda flag: record | flag)
    odd = st.one_of(sound, flags, st.integers(0, (1 << 32) - 1))
    case.headers = draw(st.lists(draw(st.sampled_from([sound, odd])), min_size=1, max_size=300))
    case.slots = draw(st.one_of(st.just(size // case.slot), st.integers(0, size // case.slot)))
    return case


def lay_out(case: Case) -> np.ndarray:
    """Write positions and headers; the data as it lies there."""
    pages = RINGS[case.size].bytes
    CONTROL.bytes[:8] = np.frombuffer(case.begin.to_bytes(8, "little"), np.uint8)
    producer = (case.begin + case.ahead) % (1 << 64)
    pages[:8] = np.frombuffer(producer.to_bytes(8, "little"), np.uint8)
    data = pages[PAGE:]
    data[:] = NOISE[: case.size]
    if case.begin % 8 == 0:
        for slot in range(case.size // case.slot):
            at = (case.begin + slot * case.slot) % case.size
            header = case.headers[slot % len(case.headers)]
            data[at : at + 4] = np.frombuffer(header.to_bytes(4, "little"), np.uint8)
    return data


def expected(case: Case, data: np.ndarray) -> tuple[int, int, bytes]:
    """What is returned, by how much the consumer moves on, and what is copied."""
    if case.ahead <= 0:
        return 0, 0, b""
    if case.ahead > case.size or case.begin % 8:
        return POSITION, 0, b""
    twice, copied = np.concatenate([data, data]).tobytes(), b""
    at = moved = case.begin % case.size
    for _ in range(min(case.slots, case.ahead // case.slot)):
        place = moved % case.size
        header = int.from_bytes(twice[place : place + 4], "little")
        if header & BUSY:
            break
        if header & ~DISCARDED != case.record:
            return LENGTH, 0, b""
        copied += b"" if header & DISCARDED else twice[place : place + case.slot]
        moved += case.slot
    return len(copied) // case.slot, moved - at, copied


@settings(max_examples=400)
@given(cases())
def test_it_reads_what_the_model_reads_and_nothing_beside_it(case: Case) -> None:
    data = lay_out(case)
    count, moves, copied = expected(case, data)
    room = case.slots * case.slot
    TARGET.bytes[:] = 0
    found = lib.aero_drain(
        ffi.new("struct aero_ring_shape *", [case.size, case.record, PAGE]),
        CONTROL.last("uint64_t *", PAGE),
        RINGS[case.size].last("uint8_t *", PAGE + case.size),
        TARGET.last("uint8_t *", room),
        case.slots,
    )
    assert found == count
    consumer = int.from_bytes(CONTROL.bytes[:8].tobytes(), "little")
    assert consumer == (case.begin + moves) % (1 << 64)
    assert not TARGET.bytes[: LARGEST - room].any()
    if found >= 0:
        written = TARGET.bytes[LARGEST - room :].tobytes()
        assert written == copied.ljust(room, b"\0")
