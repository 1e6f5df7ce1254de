"""Descriptor chains of a hostile driver; entries of tests/hostile/test_checklist.py."""

import pytest

from replay.wire import MAX_REQUEST_BYTES, Reject
from tests.hostile.machine import (
    BUFFER_GPA,
    FAR_PFN,
    HIGH_PFN,
    HOLE_PFN,
    INDIRECT,
    LOW_PAGES,
    NEXT,
    TABLE_ENTRIES,
    WRITE,
    Machine,
    chained,
    descriptor,
    found,
    le32,
    running,
)
from tracer.trace.schema import PAGE_BYTES, Queue

LOW_END = LOW_PAGES * PAGE_BYTES
BALLOON = (Queue.INFLATE, Queue.DEFLATE)


def test_empty_chain() -> None:
    with running() as machine:
        for queue in Queue:
            handled = machine.send_table(queue, b"")
            assert handled.rejected == {Reject.BAD_CHAIN: 1}
            assert found(handled.runs) == []
        assert machine.device.rejected == {Reject.BAD_CHAIN: len(Queue)}


def test_0_length_descriptor() -> None:
    with running() as machine:
        handled = machine.send(Queue.INFLATE, b"", le32(HIGH_PFN), b"")
        assert handled.rejected == {Reject.EMPTY_DESCRIPTOR: 2}
        assert found(handled.runs) == machine.pages((HIGH_PFN, 1))
        for queue in BALLOON:
            handled = machine.send(queue, b"")
            assert handled.rejected == {Reject.EMPTY_DESCRIPTOR: 1, Reject.EMPTY: 1}


def test_pfn_array_over_several_descriptors() -> None:
    """cloud-hypervisor used only the first descriptor of a chain until its commit 52db3f865."""
    data = le32(*range(HIGH_PFN, HIGH_PFN + 200))
    with running() as machine:
        handled = machine.send(Queue.INFLATE, data[:3], data[3:400], data[400:401], data[401:])
        assert not handled.rejected
        assert found(handled.runs) == machine.pages((HIGH_PFN, 200))


def writable_among_pfns(machine: Machine, queue: Queue) -> None:
    machine.low[BUFFER_GPA : BUFFER_GPA + 8] = le32(HIGH_PFN, HIGH_PFN + 1)
    table = chained([(BUFFER_GPA, 4, 0), (BUFFER_GPA + 4, 4, WRITE)])
    handled = machine.send_table(queue, table)
    assert handled.rejected == {Reject.NOT_READABLE: 1}
    assert found(handled.runs) == machine.pages((HIGH_PFN, 1))
    handled = machine.send_table(queue, chained([(BUFFER_GPA, 4, WRITE), (BUFFER_GPA, 4, 0)]))
    assert handled.rejected == {Reject.WRONG_ORDER: 1}
    assert found(handled.runs) == []


def test_device_writable_descriptor_on_inflate() -> None:
    with running() as machine:
        writable_among_pfns(machine, Queue.INFLATE)


def test_device_writable_descriptor_on_deflate() -> None:
    with running() as machine:
        writable_among_pfns(machine, Queue.DEFLATE)


def refused_as_no_memory(*spans: tuple[int, int]) -> None:
    """Such a buffer of PFNs is void as a whole, also where its first part is memory."""
    with running() as machine:
        machine.low[LOW_END - 8 :] = le32(HIGH_PFN, HIGH_PFN + 1)
        for addr, length in spans:
            handled = machine.send_table(Queue.INFLATE, chained([(addr, length, 0)]))
            assert handled.rejected == {Reject.NOT_MEMORY: 1}
            assert found(handled.runs) == []
        good = machine.send_table(Queue.INFLATE, chained([(LOW_END - 8, 8, 0)]))
        assert found(good.runs) == machine.pages((HIGH_PFN, 2))


def test_descriptor_crossing_ram() -> None:
    refused_as_no_memory((LOW_END - 8, 12), (LOW_END - 4, 0xFFFFFFFF), (LOW_END - 8, 4096))


def test_descriptor_outside_ram() -> None:
    hole = HOLE_PFN * PAGE_BYTES
    refused_as_no_memory((LOW_END, 8), (hole, 8), (1 << 63, 1024), ((1 << 64) - 1024, 1024))


def test_addr_len_overflow() -> None:
    """Sums that wrap to small addresses must not look like memory."""
    refused_as_no_memory(
        ((1 << 64) - 4, 4 + BUFFER_GPA),
        ((1 << 64) - 1, 0xFFFFFFFF),
        ((1 << 64) - 4096, 4096),
    )


def test_ring_reset_mid_request() -> None:
    """A request that was taken before a reset must not discard what the guest owns after it."""
    with running() as machine:
        device = machine.device
        late = device.handle(Queue.INFLATE, le32(HIGH_PFN, HIGH_PFN + 1))
        report = device.handle(Queue.REPORTING, descriptor(FAR_PFN << 12, 2 << 20, WRITE))
        device.ask_for_hints(5)
        device.handle(Queue.STATS, bytes(10))
        device.reset()
        assert device.host_owned.total_pages == 0
        assert not device.holds_stats
        machine.carry_out(late)
        machine.carry_out(report)
        assert device.rejected == {Reject.RESET: 2 + 512}
        assert machine.outcome is None
        assert device.handle(Queue.FREE_PAGE_HINT, le32(5)).rejected == {Reject.HINT_ID: 1}
        again = machine.send(Queue.INFLATE, le32(HIGH_PFN))
        assert found(again.runs) == machine.pages((HIGH_PFN, 1))


@pytest.mark.parametrize("length", [1, 2, TABLE_ENTRIES])
def test_chain_in_a_circle(length: int) -> None:
    """Every descriptor claims 4 GiB of one small buffer's memory, over and over."""
    table = b"".join(
        descriptor(0, LOW_END, NEXT, (index + 1) % length) for index in range(TABLE_ENTRIES)
    )
    with running() as machine:
        handled = machine.send_table(Queue.INFLATE, table)
        beyond = max(TABLE_ENTRIES * LOW_END - MAX_REQUEST_BYTES, 0)
        assert handled.rejected == {Reject.BAD_CHAIN: 1, Reject.TOO_LONG: beyond}
        assert found(handled.runs) == []


def test_chain_out_of_its_table() -> None:
    with running() as machine:
        for head, follower in ((0, TABLE_ENTRIES), (0, 0xFFFF), (TABLE_ENTRIES, 0), (0xFFFF, 0)):
            first = descriptor(BUFFER_GPA, 4, NEXT, follower)
            table = first + bytes(16 * (TABLE_ENTRIES - 1))
            handled = machine.send_table(Queue.INFLATE, table, head)
            assert handled.rejected == {Reject.BAD_CHAIN: 1}
            assert found(handled.runs) == []


def test_indirect_within_indirect() -> None:
    inner_at, data_at = BUFFER_GPA, BUFFER_GPA + 4096
    with running() as machine:
        machine.low[data_at : data_at + 4] = le32(HIGH_PFN)

        def send(inner: bytes, flags: int = INDIRECT, length: int | None = None) -> object:
            machine.low[inner_at : inner_at + len(inner)] = inner
            size = len(inner) if length is None else length
            return machine.send_table(Queue.INFLATE, descriptor(inner_at, size, flags))

        good = send(descriptor(data_at, 4))
        assert found(good.runs) == machine.pages((HIGH_PFN, 1))
        assert not good.rejected
        nested = descriptor(inner_at, 16, INDIRECT)
        for bad in (
            send(nested),
            send(descriptor(data_at, 4), INDIRECT | NEXT),
            send(descriptor(data_at, 4), length=15),
            send(descriptor(data_at, 4), length=0),
            send(descriptor(data_at, 4), length=0xFFFFFFF0),
            send(descriptor(data_at, 4, NEXT, 1)),
        ):
            assert bad.rejected == {Reject.BAD_CHAIN: 1}
            assert found(bad.runs) == []
