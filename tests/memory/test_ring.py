"""Both sides of the split virtqueue, read and written as raw bytes by someone else."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memory.ring_bytes import (
    ADDED,
    AHEAD,
    DIRECTION,
    EINVAL,
    EMPTY,
    ENOSPC,
    GPA,
    HEAD,
    INDIRECT,
    LOOP,
    NEXT,
    NONE,
    ORDER,
    OUTSIDE,
    SKIPPED,
    TABLE,
    TOO_LONG,
    WRITE,
    Popped,
    Ring,
)
from tracer.trace.schema import Wire

WORDS = b"\0\0\0\0\x08\0\0\0" + (5 << 12 | 3).to_bytes(8, "little")


@pytest.mark.parametrize("size", [2, 8, 128, 1024])
def test_layout_is_that_of_the_specification(size: int) -> None:
    ring = Ring(size).c
    parts = [
        (ring.desc_offset, 16 * size, 16),
        (ring.avail_offset, 6 + 2 * size, 2),
        (ring.used_offset, 6 + 8 * size, 4),
        (ring.table_offset, 32 * 16 * size, 16),
        (ring.payload_offset, 64, 1),
    ]
    for (begin, length, align), (after, *_) in pairwise(parts):
        assert begin % align == 0
        assert begin + length <= after < begin + length + 16


def test_one_descriptor_is_offered_as_it_is() -> None:
    ring = Ring()
    gpa = ring.put(b"\1\0\0\0\2\0\0\0")
    assert ring.add((gpa, 8, False)) == ADDED
    flags, idx, entries, event = ring.avail()
    assert (flags, idx, entries[0], event) == (0, 1, 0, 0)
    assert ring.descriptor(0) == (gpa, 8, 0, 0)
    assert ring.pop() == Popped(0, b"\1\0\0\0\2\0\0\0", 0)
    assert ring.pop() == NONE
    ring.push(0)
    assert ring.used()[1:3] == (1, [(0, 0)] * 8)
    assert (ring.take(), ring.take()) == (1, 0)


@pytest.mark.parametrize("indirect", [False, True])
def test_header_and_words_are_one_request(indirect: bool) -> None:
    ring = Ring(indirect=indirect)
    gpa = ring.put(WORDS)
    assert ring.add((gpa, 8, False), (gpa + 8, 8, False)) == ADDED
    addr, length, flags, following = ring.descriptor(0)
    if indirect:
        assert (length, flags, following) == (32, INDIRECT, 0)
        table = addr - GPA
        assert ring.descriptor(0, table) == (gpa, 8, NEXT, 1)
        assert ring.descriptor(1, table) == (gpa + 8, 8, 0, 0)
    else:
        assert (addr, length, flags) == (gpa, 8, NEXT)
        assert ring.descriptor(following) == (gpa + 8, 8, 0, 0)
    assert ring.pop(Wire.RANGE_WORDS) == Popped(0, WORDS, 0)
    assert ring.device.descriptors == (3 if indirect else 2)
    assert ring.device.payload_bytes == 16


@pytest.mark.parametrize("indirect", [False, True])
def test_ranges_that_are_descriptors_are_never_read(indirect: bool) -> None:
    ring = Ring(32, indirect=indirect)
    blocks = [((1 << 20) * i, 4096 * i, True) for i in range(1, 33)]
    assert ring.add(*blocks) == ADDED
    assert ring.add(blocks[0]) == (ADDED if indirect else ENOSPC)
    found = ring.pop(Wire.SCATTERLIST)
    assert isinstance(found, Popped)
    assert found.content == b"".join(
        gpa.to_bytes(8, "little") + length.to_bytes(4, "little") + b"\2\0\0\0"
        for gpa, length, _ in blocks
    )
    assert ring.device.payload_bytes == 0


def test_a_driver_adds_no_more_than_there_is_room_for() -> None:
    ring = Ring(4, indirect=False)
    gpa = ring.put(bytes(64))
    assert [ring.add((gpa, 4, False)) for _ in range(5)] == [ADDED] * 4 + [ENOSPC]
    assert ring.add() == EINVAL
    assert ring.add(*[(gpa, 4, False)] * 5) == EINVAL
    assert Ring(64).add(*[(gpa, 4, False)] * 33) == EINVAL
    for _ in range(4):
        found = ring.pop()
        assert isinstance(found, Popped)
        ring.push(found.head)
    assert [ring.take() for _ in range(5)] == [1, 1, 1, 1, 0]
    assert ring.add(*[(gpa, 4, False)] * 4) == ADDED


def test_the_driver_reads_how_much_the_device_says_it_wrote() -> None:
    ring = Ring(payload=64)
    told = [0, 5, 0xFFFFFFFF]
    for written_bytes in told:
        assert ring.add((ring.put(b"1234"), 4, False)) == ADDED
        found = ring.pop()
        assert isinstance(found, Popped)
        ring.push(found.head, written_bytes)
        assert ring.take() == 1
    assert [length for _, length in ring.used()[2][: len(told)]] == told
    assert ring.driver.written_bytes == sum(told)


def test_indices_wrap_after_65536_requests() -> None:
    ring = Ring(4)
    for i in range(65536 + 9):
        gpa = ring.put(i.to_bytes(4, "little"))
        assert ring.add((gpa, 4, False)) == ADDED
        assert ring.kick_due()
        found = ring.pop()
        assert isinstance(found, Popped)
        assert (found.content, found.refused) == (i.to_bytes(4, "little"), 0)
        assert ring.pop() == NONE
        ring.push(found.head)
        assert ring.interrupt_due()
        assert ring.take() == 1
    assert (ring.avail()[1], ring.used()[1]) == (9, 9)
    assert ring.device.buffers == 65545


def test_event_indices_spare_notifications() -> None:
    ring = Ring()
    gpa = ring.put(bytes(4))
    due = []
    for _ in range(3):
        ring.add((gpa, 4, False))
        due.append(ring.kick_due())
    assert due == [True, False, False]  # the device has not looked since
    given = []
    while isinstance(found := ring.pop(), Popped):
        ring.push(found.head)
        given.append(ring.interrupt_due())
    assert given == [True, False, False]  # nor has the driver
    assert ring.used()[3] == 3  # avail_event: tell me of the next one
    assert [ring.take() for _ in range(4)] == [1, 1, 1, 0]
    assert ring.avail()[3] == 3  # used_event
    ring.add((gpa, 4, False))
    assert ring.kick_due()


def test_flags_spare_notifications_without_event_indices() -> None:
    ring = Ring(event_idx=False)
    gpa = ring.put(bytes(4))
    ring.add((gpa, 4, False))
    assert ring.kick_due()
    assert ring.interrupt_due()
    ring.raw[ring.c.used_offset] = 1  # VIRTQ_USED_F_NO_NOTIFY
    ring.raw[ring.c.avail_offset] = 1  # VIRTQ_AVAIL_F_NO_INTERRUPT
    assert not ring.kick_due()
    assert not ring.interrupt_due()
    assert ring.avail()[3] == ring.used()[3] == 0


def chain(ring: Ring, *parts: tuple[int, int, int], last: int = 0) -> None:
    """Descriptors 0, 1, ... of (addr, length, flags), linked; `last` is the last one's next."""
    for i, (addr, length, flags) in enumerate(parts):
        more = i + 1 < len(parts)
        ring.set_descriptor(i, addr, length, flags | (NEXT if more else 0), i + 1 if more else last)


HERE = GPA  # the descriptor table itself: guest memory like any other
END = (1 << 64) - 1
HOSTILE = {
    "points at itself": ([(HERE, 4, NEXT)], LOOP),
    "no bytes": ([(HERE, 0, 0)], EMPTY),
    "no bytes behind good ones": ([(HERE, 4, 0), (HERE, 0, 0)], EMPTY),
    "below memory": ([(GPA - 1, 4, 0)], OUTSIDE),
    "at address 0": ([(0, 4, 0)], OUTSIDE),
    "one byte beyond memory": ([(-1, 5, 0)], OUTSIDE),
    "4 GiB less 1": ([(HERE, (1 << 32) - 1, 0)], OUTSIDE),
    "address and length wrap": ([(END - 3, 8, 0)], OUTSIDE),
    "address and length wrap into memory": ([((1 << 64) - 16, (1 << 32) - 1, 0)], OUTSIDE),
    "device-writable on inflate": ([(HERE, 4, WRITE)], DIRECTION),
    "device-writable behind good bytes": ([(HERE, 4, 0), (HERE, 4, WRITE)], DIRECTION),
    "more than the device takes": ([(HERE, 128, 0)] * 8, TOO_LONG),
    "table of no entries": ([(HERE, 0, INDIRECT)], TABLE),
    "table of half an entry": ([(HERE, 24, INDIRECT)], TABLE),
    "table longer than the queue": ([(HERE, 16 * 9, INDIRECT)], TABLE),
    "table outside": ([(GPA - 16, 16, INDIRECT)], TABLE),
    "table that wraps": ([((1 << 64) - 16, 128, INDIRECT)], TABLE),
    "table and next": ([(HERE, 16, INDIRECT | NEXT)], TABLE),
    "table that is its own entry": ([(HERE, 16, INDIRECT)], TABLE),
    "table behind a good one": ([(HERE, 4, 0), (HERE, 16, INDIRECT)], TABLE),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_chains_are_refused_counted_and_given_back(name: str) -> None:
    parts, reason = HOSTILE[name]
    ring = Ring()
    chain(ring, *[(GPA + ring.bytes - 4 if addr == -1 else addr, *rest) for addr, *rest in parts])
    ring.offer(0)
    found = ring.pop(capacity=1000)
    assert found == Popped(0, b"", reason)
    assert ring.refusals() == {reason: 1}
    ring.push(0)
    assert ring.used()[1] == 1
    gpa = ring.put(b"good")
    ring.set_descriptor(3, gpa, 4)
    ring.offer(3)
    assert ring.pop() == Popped(3, b"good", 0)


def test_the_last_bytes_of_memory_are_memory() -> None:
    ring = Ring()
    ring.raw[ring.bytes - 4 :] = b"last"
    chain(ring, (GPA + ring.bytes - 4, 4, 0))
    ring.offer(0)
    assert ring.pop() == Popped(0, b"last", 0)


@pytest.mark.parametrize("following", [2, 7, 8, 65535])
def test_loops_end_after_as_many_steps_as_the_queue_has(following: int) -> None:
    ring = Ring(8)
    for i in range(8):
        ring.set_descriptor(i, HERE, 1, NEXT, i + 1 if i < 7 else following)
    ring.offer(0)
    assert ring.pop() == Popped(0, b"", LOOP)
    assert ring.device.descriptors == 8


def test_a_whole_queue_in_one_chain_is_no_loop() -> None:
    ring = Ring(8)
    chain(ring, *[(HERE, 1, 0)] * 8)
    ring.offer(0)
    found = ring.pop()
    assert isinstance(found, Popped)
    assert (len(found.content), found.refused) == (8, 0)


def test_a_loop_inside_an_indirect_table() -> None:
    ring = Ring(8)
    table = ring.c.table_offset
    ring.set_descriptor(0, GPA + table, 32, INDIRECT)
    ring.set_descriptor(0, HERE, 1, NEXT, 1, table=table)
    ring.set_descriptor(1, HERE, 1, NEXT, 0, table=table)
    ring.offer(0, 0, 0)
    assert ring.pop() == Popped(0, b"", LOOP)
    ring.set_descriptor(1, HERE, 1, NEXT, 2, table=table)  # beyond the table, within the queue
    assert ring.pop() == Popped(0, b"", LOOP)
    ring.set_descriptor(1, HERE, 16, INDIRECT, 0, table=table)
    assert ring.pop() == Popped(0, b"", TABLE)


def test_indirect_tables_that_were_not_agreed_on() -> None:
    ring = Ring(indirect=False)
    ring.set_descriptor(0, GPA + ring.c.table_offset, 16, INDIRECT)
    ring.set_descriptor(0, HERE, 1, table=ring.c.table_offset)
    ring.offer(0)
    assert ring.pop() == Popped(0, b"", TABLE)


@pytest.mark.parametrize("head", [8, 255, 65535])
def test_a_head_that_is_no_descriptor_is_passed_over(head: int) -> None:
    ring = Ring(8)
    chain(ring, (ring.put(b"good"), 4, 0))
    ring.offer(head, 0)
    assert ring.pop() == SKIPPED
    assert ring.pop() == Popped(0, b"good", 0)
    assert ring.pop() == NONE
    assert ring.refusals() == {HEAD: 1}


@pytest.mark.parametrize("idx", [9, 32768, 65535])
def test_an_index_too_far_ahead_breaks_the_ring(idx: int) -> None:
    ring = Ring(8)
    chain(ring, (HERE, 4, 0))
    ring.offer(0, idx=idx)
    assert [ring.pop() for _ in range(3)] == [NONE] * 3
    assert ring.refusals() == {AHEAD: 1}
    ring.offer(0, idx=1)
    assert ring.pop() == NONE  # only a reset would mend it


def test_ranges_that_are_descriptors() -> None:
    ring = Ring()
    for i, (addr, length, flags, refused) in enumerate(
        [
            (0, 4096, WRITE, 0),
            (END - 4095, 4096, WRITE, 0),  # the last page of 64 bits
            (END - 4094, 4096, WRITE, OUTSIDE),
            (4096, 0, WRITE, EMPTY),
            (1, (1 << 32) - 1, WRITE, 0),  # what is no whole page, stage c refuses
            (4096, 4096, 0, 0),  # as what the device may not write
        ]
    ):
        ring.set_descriptor(0, addr, length, flags)
        ring.offer(0)
        found = ring.pop(Wire.SCATTERLIST)
        assert isinstance(found, Popped), i
        assert found.refused == refused
        entry = addr.to_bytes(8, "little") + length.to_bytes(4, "little") + bytes([flags, 0, 0, 0])
        assert found.content == (b"" if refused else entry)
    chain(ring, (0, 4096, WRITE), (0, 4096, 0))
    ring.offer(0)
    assert ring.pop(Wire.SCATTERLIST) == Popped(0, b"", ORDER)
    chain(ring, (0, 4096, WRITE), (0, 4096, WRITE))
    ring.offer(0)
    assert ring.pop(Wire.SCATTERLIST, capacity=31) == Popped(0, b"", TOO_LONG)


@pytest.mark.parametrize(
    ("ids", "idx"),
    [((8,), None), ((1,), None), (((1 << 32) - 1,), None), ((0,), 9), ((0,), 65535)],
)
def test_a_driver_refuses_what_it_did_not_give(ids: tuple[int, ...], idx: int | None) -> None:
    ring = Ring(8)
    ring.add((ring.put(b"good"), 4, False))
    ring.give_back(*ids, idx=idx)
    assert ring.take() == -1


def test_a_driver_refuses_a_buffer_that_comes_back_twice() -> None:
    ring = Ring(8)
    ring.add((ring.put(b"good"), 4, False))
    ring.give_back(0, 0)
    assert (ring.take(), ring.take()) == (1, -1)


def test_a_driver_believes_no_link_that_a_device_could_have_changed() -> None:
    ring = Ring(8, indirect=False)
    gpa = ring.put(bytes(8))
    ring.add((gpa, 4, False), (gpa, 4, False))
    for i in range(8):
        ring.set_descriptor(i, 0, 0, NEXT, 7)
    ring.give_back(0)
    assert ring.take() == 1
    assert ring.add(*[(gpa, 4, False)] * 8) == ADDED
    found = ring.pop()
    assert isinstance(found, Popped)


addresses = st.one_of(
    st.integers(GPA - 20, GPA + 9000), st.integers(0, END), st.sampled_from([GPA, END, END - 15])
)
lengths = st.one_of(st.integers(0, 200), st.sampled_from([4096, (1 << 32) - 1]))
descriptors = st.tuples(addresses, lengths, st.integers(0, 7), st.integers(0, 9))


@settings(max_examples=400)
@given(
    st.lists(descriptors, max_size=16),
    st.lists(st.one_of(st.integers(0, 8), st.integers(0, 65535)), max_size=8),
    st.sampled_from(list(Wire)),
    st.booleans(),
    st.booleans(),
)
def test_whatever_a_guest_writes_is_answered_in_bounded_work(
    written: list[tuple[int, int, int, int]],
    heads: list[int],
    form: Wire,
    event_idx: bool,
    indirect: bool,
) -> None:
    ring = Ring(8, event_idx=event_idx, indirect=indirect)
    for i, (addr, length, flags, following) in enumerate(written):
        # The first eight are the queue's, the others of the first indirect table.
        table = -1 if i < 8 else ring.c.table_offset
        ring.set_descriptor(i % 8, addr, length, flags, following, table=table)
    ring.offer(*heads)
    answered = 0
    for _ in heads:
        found = ring.pop(form, capacity=300)
        if isinstance(found, Popped):
            assert len(found.content) <= 300
            assert not (found.refused and found.content)
            ring.push(found.head)
            answered += 1
        else:
            assert found == SKIPPED
    assert ring.pop(form) == NONE
    assert answered + ring.refusals().get(HEAD, 0) == len(heads)
    assert ring.device.descriptors <= 9 * len(heads)
    assert ring.used()[1] == answered
