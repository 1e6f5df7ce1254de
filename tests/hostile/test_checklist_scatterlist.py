"""Ranges as descriptors (F_SG) of a hostile driver; entries of tests/hostile/test_checklist.py.

What a PFN or a word can name wrongly, and what a chain can be, holds for this protocol too: its
descriptors are themselves the ranges, so each lie about a buffer is one about guest memory.
"""

import ctypes
import errno
import random

import pytest

from replay.wire import MAX_ENTRIES, Reject
from tests.hostile.machine import (
    BUFFER_GPA,
    FAR_PAGES,
    FAR_PFN,
    HIGH_PAGES,
    HIGH_PFN,
    HOLE_PFN,
    INDIRECT,
    LAST_PFN,
    LOW_PAGES,
    NEXT,
    ROM_PFN,
    TABLE_ENTRIES,
    WRITE,
    Machine,
    block,
    chained,
    descriptor,
    found,
    le32,
    running,
)
from tests.hostile.test_checklist_backings import address, failing_with
from tests.hostile.test_seed_defects import resident
from tests.memory.conftest import huge_page_pool  # noqa: F401  (a fixture)
from tracer.trace.schema import PAGE_BYTES, Queue

GIB = 1 << 30
BALLOON = (Queue.INFLATE, Queue.DEFLATE)
_libc = ctypes.CDLL(None, use_errno=True)


def sent(
    blocks: list[tuple[int, int]], rejected: dict[Reject, int], *spans: tuple[int, int]
) -> None:
    """One request on both queues: what it discards or asks for, and what is counted."""
    for queue in BALLOON:
        with running("scatterlist") as machine:
            handled = machine.send_blocks(queue, *blocks)
            assert handled.rejected == rejected
            assert found(handled.runs) == machine.pages(*spans)


def void(table: bytes, reason: Reject, head: int = 0) -> None:
    """Of such a chain nothing counts as sent, on either queue."""
    for queue in BALLOON:
        with running("scatterlist") as machine:
            handled = machine.send_table(queue, table, head)
            assert handled.rejected == {reason: 1}
            assert found(handled.runs) == []


def test_scatterlist_empty_chain() -> None:
    void(b"", Reject.BAD_CHAIN)


def test_scatterlist_0_length_descriptor() -> None:
    gpa, _ = block(FAR_PFN, 1)
    sent([(gpa, 0), block(HIGH_PFN, 1)], {Reject.EMPTY_DESCRIPTOR: 1}, (HIGH_PFN, 1))
    sent([(gpa, 0)], {Reject.EMPTY_DESCRIPTOR: 1, Reject.EMPTY: 1})


@pytest.mark.parametrize("queue", BALLOON)
def test_scatterlist_device_readable_descriptor(queue: Queue) -> None:
    """No range: the device may not discard what the driver gave it to read."""
    gpa, length = block(HIGH_PFN, 1)
    with running("scatterlist") as machine:
        first = machine.send_table(queue, chained([(BUFFER_GPA, 4096, 0), (gpa, length, WRITE)]))
        assert first.rejected == {Reject.NOT_A_BLOCK: 1}
        assert found(first.runs) == machine.pages((HIGH_PFN, 1))
        as_pfns = machine.send(queue, le32(HIGH_PFN + 7))
        assert as_pfns.rejected == {Reject.NOT_A_BLOCK: 1, Reject.EMPTY: 1}
        assert found(as_pfns.runs) == []
    void(chained([(gpa, length, WRITE), (BUFFER_GPA, 4096, 0)]), Reject.WRONG_ORDER)
    void(chained([(1 << 50, 4096, 0), (gpa, length, WRITE)]), Reject.NOT_MEMORY)


def test_scatterlist_range_crossing_end_of_ram() -> None:
    sent([block(LAST_PFN - 1, 100)], {Reject.OUTSIDE: 98}, (LAST_PFN - 1, 2))


def test_scatterlist_range_crossing_a_hole() -> None:
    hole = FAR_PFN - HOLE_PFN
    across = block(HOLE_PFN - 3, hole + 5)
    sent([across], {Reject.OUTSIDE: hole}, (HOLE_PFN - 3, 3), (FAR_PFN, 2))


def test_scatterlist_range_outside_ram() -> None:
    """In the hole, in ROM, and beyond what PFNs of 32 bits can say."""
    bad = [block(HOLE_PFN, 5), block(ROM_PFN, 2), block(0x80000000, 1), block(0xFFFFFFFF, 1)]
    bad += [block(1 << 32, 1), block((1 << 52) - 3, 2)]
    sent([*bad, block(FAR_PFN, 1)], {Reject.OUTSIDE: 12}, (FAR_PFN, 1))


def test_scatterlist_range_at_last_page() -> None:
    sent([block(LAST_PFN, 1), block(LAST_PFN + 1, 1)], {Reject.OUTSIDE: 1}, (LAST_PFN, 1))


def test_scatterlist_addr_len_overflow() -> None:
    """A sum that wraps must not come out at page 0; one that ends at 2**64 does not wrap."""
    last = (1 << 64) - PAGE_BYTES
    for length in (2 * PAGE_BYTES, GIB, 4 * GIB - PAGE_BYTES):
        sent([(last, length)], {Reject.BEYOND_ADDRESSES: 1})
    sent([(last, PAGE_BYTES)], {Reject.OUTSIDE: 1})


def test_scatterlist_range_of_4_gib_1() -> None:
    gpa, _ = block(FAR_PFN, 1)
    beyond = (1 << 20) - 1 - FAR_PAGES
    ranges = [(gpa, 4 * GIB - 1), (gpa, 4 * GIB - PAGE_BYTES)]
    rejected = {Reject.UNALIGNED: 1, Reject.OUTSIDE: beyond}
    sent(ranges, rejected, (FAR_PFN, FAR_PAGES))


def test_scatterlist_range_unaligned() -> None:
    gpa, length = block(HIGH_PFN, 4)
    bad = [(gpa + 1, length), (gpa, length - 1), (gpa + 512, PAGE_BYTES), (gpa - 1, 1)]
    sent([*bad, block(FAR_PFN, 1)], {Reject.UNALIGNED: len(bad)}, (FAR_PFN, 1))


def test_scatterlist_more_than_32_ranges() -> None:
    """More than a driver's request holds are taken, up to the ring's size, and counted."""
    pfns = [FAR_PFN + 2 * i for i in range(TABLE_ENTRIES)]
    over = TABLE_ENTRIES - MAX_ENTRIES
    sent([block(pfn, 1) for pfn in pfns], {Reject.OVERSIZED: over}, *[(pfn, 1) for pfn in pfns])


@pytest.mark.parametrize("length", [1, 2, TABLE_ENTRIES])
def test_scatterlist_chain_in_a_circle(length: int) -> None:
    """Every descriptor is all of far memory, over and over."""
    gpa, size = block(FAR_PFN, FAR_PAGES)
    table = [descriptor(gpa, size, WRITE | NEXT, (i + 1) % length) for i in range(TABLE_ENTRIES)]
    void(b"".join(table), Reject.BAD_CHAIN)


def test_scatterlist_chain_out_of_its_table() -> None:
    for head, follower in ((0, TABLE_ENTRIES), (0, 0xFFFF), (TABLE_ENTRIES, 0), (0xFFFF, 0)):
        first = descriptor(*block(HIGH_PFN, 1), WRITE | NEXT, follower)
        void(first + bytes(16 * (TABLE_ENTRIES - 1)), Reject.BAD_CHAIN, head)


def test_scatterlist_indirect_within_indirect() -> None:
    good = descriptor(*block(HIGH_PFN, 1), WRITE)
    with running("scatterlist") as machine:

        def send(inner: bytes, flags: int = INDIRECT, length: int | None = None) -> object:
            machine.low[BUFFER_GPA : BUFFER_GPA + len(inner)] = inner
            size = len(inner) if length is None else length
            return machine.send_table(Queue.INFLATE, descriptor(BUFFER_GPA, size, flags))

        assert found(send(good).runs) == machine.pages((HIGH_PFN, 1))
        for bad in (
            send(descriptor(BUFFER_GPA, 16, INDIRECT)),
            send(good, INDIRECT | NEXT),
            send(good, length=15),
            send(good, length=0),
            send(good, length=0xFFFFFFF0),
            send(descriptor(*block(HIGH_PFN, 1), WRITE | NEXT, 1)),
        ):
            assert bad.rejected == {Reject.BAD_CHAIN: 1}
            assert found(bad.runs) == []


def test_scatterlist_ring_reset_mid_request() -> None:
    with running("scatterlist") as machine:
        late = machine.device.handle(Queue.INFLATE, descriptor(*block(HIGH_PFN, 3), WRITE))
        machine.device.reset()
        machine.carry_out(late)
        assert machine.device.rejected == {Reject.RESET: 3}
        assert machine.outcome is None


def test_scatterlist_overlapping_ranges_in_one_request() -> None:
    """The same, one within another, and one across the end of another: each page goes once."""
    ranges = [block(HIGH_PFN + 3, 2)] * 20 + [block(HIGH_PFN, 5), block(HIGH_PFN + 4, 4)]
    with running("scatterlist") as machine:
        handled = machine.send_blocks(Queue.INFLATE, *ranges)
        assert not handled.rejected
        assert found(handled.runs) == machine.pages((HIGH_PFN, 8))
        assert machine.outcome is not None
        assert machine.outcome.bytes == 8 * PAGE_BYTES


def test_scatterlist_same_range_inflated_twice() -> None:
    with running("scatterlist") as machine:
        for _ in range(2):
            machine.send_blocks(Queue.INFLATE, block(HIGH_PFN, 9))
        assert machine.device.host_owned.total_pages == 9
        machine.send_blocks(Queue.DEFLATE, block(HIGH_PFN, 9))
        assert machine.device.host_owned.total_pages == 0
        assert not machine.device.rejected


def test_scatterlist_deflated_without_inflate() -> None:
    """The pages keep their content: deflate asks for memory and takes none."""
    with running("scatterlist") as machine:
        before = machine.memory.resident_pages()
        handled = machine.send_blocks(Queue.DEFLATE, block(HIGH_PFN, HIGH_PAGES))
        assert found(handled.runs) == machine.pages((HIGH_PFN, HIGH_PAGES))
        assert machine.device.host_owned.total_pages == 0
        assert machine.memory.resident_pages() == before


def test_scatterlist_inflate_deflate_of_one_host_page_interleaved() -> None:
    with running("scatterlist", host_page_bytes=64 << 10) as machine:
        for pfn in (HIGH_PFN, HIGH_PFN + 8):
            assert found(machine.send_blocks(Queue.INFLATE, block(pfn, 8)).runs) == []
            machine.send_blocks(Queue.DEFLATE, block(pfn, 8))
        assert machine.device.rejected == {Reject.HOST_PAGE: 16}
    with running("scatterlist") as machine:
        late = machine.device.handle(Queue.INFLATE, descriptor(*block(HIGH_PFN, 2), WRITE))
        machine.send_blocks(Queue.DEFLATE, block(HIGH_PFN, 1))
        machine.carry_out(late)
        assert machine.device.rejected == {Reject.TAKEN_BACK: 1}


@pytest.mark.parametrize("order", ["falling", "random"])
def test_scatterlist_order_descending_or_random(order: str) -> None:
    pfns = [HIGH_PFN + 4 * i for i in reversed(range(MAX_ENTRIES))]
    if order == "random":
        random.Random(7).shuffle(pfns)
    sent([block(pfn, 3) for pfn in pfns], {}, *[(pfn, 3) for pfn in sorted(pfns)])


def test_scatterlist_1_page_requests_of_migration() -> None:
    with running("scatterlist") as machine:
        for new in range(HIGH_PFN + 1, HIGH_PFN + 101):
            machine.send_blocks(Queue.INFLATE, block(new, 1))
            machine.send_blocks(Queue.DEFLATE, block(new - 1, 1))
        assert found(machine.device.host_owned) == machine.pages((HIGH_PFN + 100, 1))
        assert not machine.device.rejected


def test_scatterlist_inhibited_mode() -> None:
    with running("scatterlist", inhibited=True) as machine:
        assert found(machine.send_blocks(Queue.INFLATE, block(HIGH_PFN, 5)).runs) == []
        assert found(machine.device.host_owned) == machine.pages((HIGH_PFN, 5))
        machine.send_blocks(Queue.DEFLATE, block(HIGH_PFN, 5))
        assert machine.device.rejected == {Reject.INHIBITED: 5}


def whole_host_pages(machine: Machine, unit: int) -> None:
    """A range that begins one page late, and ends one page late, gives the host page between."""
    handled = machine.send_blocks(Queue.INFLATE, block(FAR_PFN + 1, 2 * unit))
    assert found(handled.runs) == machine.pages((FAR_PFN + unit, unit))
    assert handled.rejected == {Reject.HOST_PAGE: unit}
    assert machine.outcome is not None
    assert not machine.outcome.failures


def test_scatterlist_backing_page_2_mib(huge_page_pool: int) -> None:  # noqa: F811
    assert huge_page_pool
    with running("scatterlist", backing="hugetlb", host_page_bytes=2 << 20) as machine:
        whole_host_pages(machine, 512)


def test_scatterlist_backing_page_64_kib() -> None:
    with running("scatterlist", host_page_bytes=64 << 10) as machine:
        whole_host_pages(machine, 16)


@pytest.mark.parametrize("backing", ["memfd", "file-private"])
def test_scatterlist_shared_and_private_file_backing(backing: str) -> None:
    with running("scatterlist", backing=backing) as machine:
        before = resident(machine)
        machine.send_blocks(Queue.INFLATE, block(FAR_PFN, 100), block(HOLE_PFN - 1, 3))
        assert before - resident(machine) == 101
        assert machine.device.rejected == {Reject.OUTSIDE: 2}


def test_scatterlist_einval_from_the_syscall() -> None:
    """Locked memory is not given back: counted with its errno, and the pages keep their content."""
    with running("scatterlist") as machine:
        ((first, _),) = machine.pages((FAR_PFN, 16))
        locked = address(machine.memory.mapping, first)
        assert _libc.mlock(locked, ctypes.c_size_t(PAGE_BYTES)) == 0
        machine.send_blocks(Queue.INFLATE, block(FAR_PFN, 16))
        failing_with(machine, errno.EINVAL)
        assert _libc.munlock(locked, ctypes.c_size_t(PAGE_BYTES)) == 0


def test_scatterlist_all_of_memory() -> None:
    """One descriptor from 0 to beyond all memory, as large as one can be."""
    whole = (0, 4 * GIB - PAGE_BYTES)
    inside = LOW_PAGES + HIGH_PAGES + FAR_PAGES
    everything = [(0, LOW_PAGES), (HIGH_PFN, HIGH_PAGES), (FAR_PFN, FAR_PAGES)]
    sent([whole], {Reject.OUTSIDE: (1 << 20) - 1 - inside}, *everything)
