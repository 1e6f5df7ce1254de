"""PFN arrays of a hostile driver; entries of tests/hostile/test_checklist.py."""

import random

import pytest

from replay.wire import MAX_REQUEST_BYTES, Reject
from tests.hostile.machine import (
    FAR_PFN,
    HIGH_PAGES,
    HIGH_PFN,
    HOLE_PFN,
    LAST_PFN,
    LOW_PAGES,
    NEXT,
    ROM_PFN,
    descriptor,
    found,
    le32,
    running,
)
from tracer.trace.schema import Queue


@pytest.mark.parametrize("extra", [1, 2, 3])
def test_length_not_multiple_of_4(extra: int) -> None:
    with running() as machine:
        handled = machine.send(
            Queue.INFLATE, le32(HIGH_PFN, HIGH_PFN + 1) + b"\x02\x01\x01"[:extra]
        )
        assert handled.rejected == {Reject.RAGGED: extra}
        assert found(handled.runs) == machine.pages((HIGH_PFN, 2))


def test_more_than_256_pfns() -> None:
    """Firecracker leaves such a buffer unanswered; here it is taken up to a bound, and counted."""
    with running() as machine:
        handled = machine.send(Queue.INFLATE, le32(*range(HIGH_PFN, HIGH_PFN + 300)))
        assert handled.rejected == {Reject.OVERSIZED: 44}
        assert found(handled.runs) == machine.pages((HIGH_PFN, 300))
        part = le32(HIGH_PFN) * 4096
        pieces = [part] * 32
        handled = machine.send(Queue.INFLATE, *pieces)
        assert handled.rejected == {Reject.OVERSIZED: 32 * 4096 - 256}
        table = b"".join(machine_wide(64))
        handled = machine.send_table(Queue.INFLATE, table)
        assert handled.rejected[Reject.TOO_LONG] == 64 * LOW_PAGES * 4096 - MAX_REQUEST_BYTES


def machine_wide(count: int) -> list[bytes]:
    """Descriptors that each name all of low memory."""
    return [
        descriptor(0, LOW_PAGES * 4096, NEXT if i < count - 1 else 0, i + 1) for i in range(count)
    ]


def outside(*pfns: int) -> None:
    """What is no guest memory is counted, and its neighbours in the request are not lost."""
    with running() as machine:
        for queue in (Queue.INFLATE, Queue.DEFLATE):
            handled = machine.send(queue, le32(HIGH_PFN, *pfns, FAR_PFN))
            assert handled.rejected == {Reject.OUTSIDE: len(pfns)}
            assert found(handled.runs) == machine.pages((HIGH_PFN, 1), (FAR_PFN, 1))


def test_pfn_0xffffffff() -> None:
    outside(0xFFFFFFFF)


def test_pfn_2_31_and_above() -> None:
    """QEMU took PFNs for signed before 4.1 (ffa207d082), so that these came out elsewhere."""
    outside(0x80000000, 0x80000000 + HIGH_PFN, 0xFFFFFFFF - LAST_PFN, 0x7FFFFFFF)


def test_pfn_in_mmio_hole() -> None:
    outside(HOLE_PFN, HOLE_PFN + 1, FAR_PFN - 1)


def test_pfn_in_rom() -> None:
    """ROM is no region of guest memory, as QEMU's memory map has it."""
    outside(LOW_PAGES, ROM_PFN, HIGH_PFN - 1)


def test_pfn_at_last_page() -> None:
    with running() as machine:
        last_high = HIGH_PFN + HIGH_PAGES - 1
        handled = machine.send(
            Queue.INFLATE, le32(LAST_PFN, LAST_PFN + 1, last_high, last_high + 1)
        )
        assert handled.rejected == {Reject.OUTSIDE: 2}
        assert found(handled.runs) == sorted(machine.pages((LAST_PFN, 1), (last_high, 1)))


def test_duplicate_pfns_in_one_request() -> None:
    with running() as machine:
        handled = machine.send(Queue.INFLATE, le32(*[HIGH_PFN + 3] * 255, HIGH_PFN))
        assert found(handled.runs) == machine.pages((HIGH_PFN, 1), (HIGH_PFN + 3, 1))
        assert machine.device.host_owned.total_pages == 2


def test_same_pfn_inflated_twice() -> None:
    with running() as machine:
        for _ in range(2):
            machine.send(Queue.INFLATE, le32(HIGH_PFN))
        assert machine.device.host_owned.total_pages == 1
        machine.send(Queue.DEFLATE, le32(HIGH_PFN))
        assert machine.device.host_owned.total_pages == 0
        assert not machine.device.rejected


def test_deflated_without_inflate() -> None:
    """The page keeps its content: deflate asks for memory and takes none."""
    with running() as machine:
        handled = machine.send(Queue.DEFLATE, le32(HIGH_PFN, LAST_PFN))
        assert found(handled.runs) == machine.pages((HIGH_PFN, 1), (LAST_PFN, 1))
        assert machine.device.host_owned.total_pages == 0


def test_inflate_deflate_of_one_host_page_interleaved() -> None:
    """The interleaving that lost guest data in QEMU 4.0 (b27b32391404), on host pages of 64 KiB."""
    with running(host_page_bytes=64 << 10) as machine:
        first, second = ([HIGH_PFN + half + i for i in range(8)] for half in (0, 8))
        assert found(machine.send(Queue.INFLATE, le32(*first)).runs) == []
        machine.send(Queue.DEFLATE, le32(*first))
        assert found(machine.send(Queue.INFLATE, le32(*second)).runs) == []
        assert machine.device.rejected == {Reject.HOST_PAGE: 16}
        assert machine.outcome is None or not machine.outcome.failures
    with running() as machine:
        late = machine.device.handle(Queue.INFLATE, le32(HIGH_PFN, HIGH_PFN + 1))
        machine.send(Queue.DEFLATE, le32(HIGH_PFN))
        machine.carry_out(late)
        assert machine.device.rejected == {Reject.TAKEN_BACK: 1}


def test_pfn_order_descending() -> None:
    with running() as machine:
        handled = machine.send(Queue.INFLATE, le32(*range(HIGH_PFN + 255, HIGH_PFN - 1, -1)))
        assert found(handled.runs) == machine.pages((HIGH_PFN, 256))


def test_pfn_order_random() -> None:
    pfns = [HIGH_PFN + 2 * i for i in range(256)]
    random.Random(7).shuffle(pfns)
    with running() as machine:
        handled = machine.send(Queue.INFLATE, le32(*pfns))
        wanted = machine.pages(*[(pfn, 1) for pfn in sorted(pfns)])
        assert found(handled.runs) == wanted
        assert machine.outcome is not None
        assert machine.outcome.calls == 256


def test_1_pfn_requests_of_migration() -> None:
    """Compaction moves a page: the new one is inflated, then the old one deflated."""
    with running() as machine:
        old = HIGH_PFN
        machine.send(Queue.INFLATE, le32(old))
        for new in range(HIGH_PFN + 1, HIGH_PFN + 101):
            machine.send(Queue.INFLATE, le32(new))
            machine.send(Queue.DEFLATE, le32(old))
            old = new
        assert found(machine.device.host_owned) == machine.pages((old, 1))
        assert not machine.device.rejected
