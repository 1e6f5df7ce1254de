"""The seed's range protocol from a hostile driver; entries of tests/hostile/test_checklist.py."""

import pytest

from replay.wire import MAX_WORDS, Reject
from tests.hostile.machine import (
    FAR_PAGES,
    FAR_PFN,
    HIGH_PAGES,
    HIGH_PFN,
    HOLE_PFN,
    LAST_PFN,
    LOW_PAGES,
    found,
    running,
    word,
    words,
)
from tests.unit.encoded import encode_range_words
from tracer.trace.schema import Queue

EVERYTHING = [(0, LOW_PAGES), (HIGH_PFN, HIGH_PAGES), (FAR_PFN, FAR_PAGES)]
ENDLESS = (1 << 64) - 1


def sent(data: bytes, rejected: dict[Reject, int], *spans: tuple[int, int]) -> None:
    """One request on both queues: what it discards or asks for, and what is counted."""
    for queue in (Queue.INFLATE, Queue.DEFLATE):
        with running("range_words") as machine:
            handled = machine.send(queue, data)
            assert handled.rejected == rejected
            assert found(handled.runs) == machine.pages(*spans)


@pytest.mark.parametrize("extra", range(1, 8))
def test_length_not_multiple_of_8(extra: int) -> None:
    data = words(word(HIGH_PFN, 2), data_len=8 + extra) + b"\xff" * extra
    sent(data, {Reject.RAGGED: extra}, (HIGH_PFN, 2))


def test_range_nr_0_at_end() -> None:
    """The seed's device read the count from behind its buffer."""
    sent(words(word(HIGH_PFN, 2), word(FAR_PFN, 0)), {Reject.NO_COUNT: 1}, (HIGH_PFN, 2))
    sent(words(word(FAR_PFN, 0)), {Reject.NO_COUNT: 1})


def test_nr_0_with_extended_count_0() -> None:
    data = words(word(HIGH_PFN, 0), 0, word(FAR_PFN, 1))
    sent(data, {Reject.EMPTY_RANGE: 1}, (FAR_PFN, 1))


def test_count_crossing_end_of_ram() -> None:
    sent(words(word(LAST_PFN - 1, 100)), {Reject.OUTSIDE: 98}, (LAST_PFN - 1, 2))
    sent(words(word(LAST_PFN, 0), 1 << 40), {Reject.OUTSIDE: (1 << 40) - 1}, (LAST_PFN, 1))


def test_count_crossing_a_hole() -> None:
    hole = FAR_PFN - HOLE_PFN
    data = words(word(HOLE_PFN - 3, 0), hole + 5)
    sent(data, {Reject.OUTSIDE: hole}, (HOLE_PFN - 3, 3), (FAR_PFN, 2))
    sent(words(word(HOLE_PFN, 5)), {Reject.OUTSIDE: 5})


def test_count_wrapping_2_64() -> None:
    """Bytes, pages and addresses all wrap with these; none may come out small, or at page 0."""
    for pfn in (HIGH_PFN, FAR_PFN, LAST_PFN):
        inside = [(at, pages) for at, pages in EVERYTHING if at > pfn]
        begin, pages = next(span for span in EVERYTHING if span[0] <= pfn < sum(span))
        inside = [(pfn, begin + pages - pfn), *inside]
        left = (1 << 52) - pfn - sum(pages for _, pages in inside)
        for count in ((1 << 52) - pfn + 1, 1 << 52, (1 << 63) + 1, ENDLESS):
            rejected = {Reject.BEYOND_ADDRESSES: 1, Reject.OUTSIDE: left}
            sent(words(word(pfn, 0), count), rejected, *inside)
    sent(words(word((1 << 52) - 1, 2)), {Reject.BEYOND_ADDRESSES: 1, Reject.OUTSIDE: 1})


def test_data_len_over_payload() -> None:
    sent(words(word(HIGH_PFN, 1), data_len=9), {Reject.SHORT_PAYLOAD: 1})
    sent(words(word(HIGH_PFN, 1), data_len=16), {Reject.SHORT_PAYLOAD: 1})
    sent(words(data_len=1), {Reject.SHORT_PAYLOAD: 1})
    for size in range(1, 8):
        sent(words()[:size], {Reject.SHORT_HEADER: 1})


def test_data_len_under_payload() -> None:
    data = words(word(HIGH_PFN, 1), word(FAR_PFN, 1), data_len=8)
    sent(data, {Reject.TRAILING: 8}, (HIGH_PFN, 1))
    sent(words(word(HIGH_PFN, 1), data_len=0), {Reject.TRAILING: 8, Reject.EMPTY: 1})


def test_data_len_huge() -> None:
    """4 GiB less one byte: nothing of that size is set aside (bounded by machine.MAX_BYTES)."""
    sent(words(word(HIGH_PFN, 1), data_len=0xFFFFFFFF), {Reject.SHORT_PAYLOAD: 1})
    full = words(*[word(1 << 40, 0), ENDLESS] * (MAX_WORDS // 2))
    with running("range_words") as machine:
        handled = machine.send(Queue.INFLATE, full)
        assert found(handled.runs) == []
        assert set(handled.rejected) == {Reject.BEYOND_ADDRESSES, Reject.OUTSIDE}


@pytest.mark.parametrize("short", range(1, 8))
def test_data_len_not_multiple_of_8(short: int) -> None:
    data = words(word(HIGH_PFN, 1), word(FAR_PFN, 1), data_len=16 - short)
    sent(data, {Reject.RAGGED: 8 - short, Reject.TRAILING: short}, (HIGH_PFN, 1))


def test_exactly_4096_pages() -> None:
    """The seed's driver made another range of them; the encoder here uses the extended form."""
    (data,) = encode_range_words([FAR_PFN], [4096])
    sent(data, {}, (FAR_PFN, 4096))
    # What that driver sent: the count spills into the PFN, and the next word becomes a count.
    spilled = words((FAR_PFN << 12) + 4096, word(HIGH_PFN, 1))
    beyond = word(HIGH_PFN, 1) - (FAR_PAGES - 1)
    sent(spilled, {Reject.OUTSIDE: beyond}, (FAR_PFN + 1, FAR_PAGES - 1))


def test_unknown_cmd() -> None:
    for cmd in (1, 7, 255):
        sent(words(word(HIGH_PFN, 1), cmd=cmd), {Reject.UNKNOWN_COMMAND: 1})


def test_unknown_flag() -> None:
    for flag in (1, 2, 255):
        sent(words(word(HIGH_PFN, 1), flag=flag), {Reject.UNKNOWN_COMMAND: 1})
