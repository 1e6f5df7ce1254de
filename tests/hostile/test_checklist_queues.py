"""Reports, hints and statistics of a hostile driver; entries of tests/hostile/test_checklist.py."""

import struct

from replay.wire import Reject
from tests.hostile.machine import (
    FAR_PAGES,
    FAR_PFN,
    HIGH_PAGES,
    HIGH_PFN,
    HOLE_PFN,
    LAST_PFN,
    block,
    found,
    le32,
    running,
)
from tracer.trace.schema import PAGE_BYTES, Queue

REPORT, HINT, STATS = Queue.REPORTING, Queue.FREE_PAGE_HINT, Queue.STATS
GIB = 1 << 30
STOP = 0


def test_report_sg_unaligned() -> None:
    gpa, length = block(HIGH_PFN, 4)
    bad = ((gpa + 1, length), (gpa, length - 1), (gpa + 512, PAGE_BYTES), (gpa - 1, 1))
    with running() as machine:
        handled = machine.send_blocks(REPORT, *bad, block(FAR_PFN, 1))
        assert handled.rejected == {Reject.UNALIGNED: len(bad)}
        assert found(handled.runs) == machine.pages((FAR_PFN, 1))


def test_report_longer_than_block() -> None:
    """cloud-hypervisor punched holes beyond guest RAM for these until its commit 326cd8807."""
    bad = (
        block(HIGH_PFN, HIGH_PAGES + 1),
        block(LAST_PFN, 2),
        block(HOLE_PFN - 1, FAR_PFN - HOLE_PFN + 2),
        block(HIGH_PFN - 1, 4),
        block(HOLE_PFN, 4),
        block(1 << 40, 4),
    )
    with running() as machine:
        handled = machine.send_blocks(REPORT, *bad, block(FAR_PFN, FAR_PAGES))
        assert handled.rejected == {Reject.PARTIAL: len(bad)}
        assert found(handled.runs) == machine.pages((FAR_PFN, FAR_PAGES))


def test_report_of_mixed_orders() -> None:
    with running() as machine:
        blocks = [block(HIGH_PFN, 1), block(FAR_PFN + 512, 512), block(FAR_PFN + 1024, 1024)]
        handled = machine.send_blocks(REPORT, *blocks)
        assert not handled.rejected
        assert found(handled.runs) == machine.pages((HIGH_PFN, 1), (FAR_PFN + 512, 1536))
        assert machine.device.host_owned.total_pages == 0
        many = [block(FAR_PFN + 2 * i, 1) for i in range(40)]
        assert machine.send_blocks(REPORT, *many).rejected == {Reject.OVERSIZED: 8}


def test_report_of_4_gib_1() -> None:
    with running() as machine:
        gpa = FAR_PFN * PAGE_BYTES
        handled = machine.send_blocks(REPORT, (gpa, 4 * GIB - 1), (gpa, 4 * GIB - PAGE_BYTES))
        assert handled.rejected == {Reject.UNALIGNED: 1, Reject.PARTIAL: 1}
        assert found(handled.runs) == []
        last = ((1 << 64) - PAGE_BYTES, 4 * GIB - PAGE_BYTES)
        assert machine.send_blocks(REPORT, last).rejected == {Reject.BEYOND_ADDRESSES: 1}


def test_hint_id_mismatch() -> None:
    with running() as machine:
        machine.device.ask_for_hints(0x80000000)
        for wrong in (0x80000001, 1, STOP, 0xFFFFFFFF):
            handled = machine.send(HINT, le32(wrong))
            assert handled.rejected == {Reject.HINT_ID: 1}
        for raw in (le32(0x80000000)[:3], le32(0x80000000) + b"\0"):
            assert machine.send(HINT, raw).rejected == {Reject.HINT_ID: 1}
        handled = machine.send_blocks(HINT, block(HIGH_PFN, 4), command=0x80000001)
        assert handled.rejected == {Reject.HINT_ID: 1, Reject.HINT_STOPPED: 1}
        assert not machine.device.hinting


def test_hint_id_replay() -> None:
    """QEMU began to hint again for an id that it had used up, until its commit 67808fda37."""
    with running() as machine:
        machine.device.ask_for_hints(0x80000000)
        handled = machine.send_blocks(HINT, block(HIGH_PFN, 4), command=0x80000000)
        assert found(handled.runs) == machine.pages((HIGH_PFN, 4))
        for _ in range(2):
            assert machine.send(HINT, le32(0x80000000)).rejected == {Reject.HINT_ID: 1}
        assert machine.device.hinting
        assert not machine.send(HINT, le32(STOP)).rejected
        assert machine.send(HINT, le32(0x80000000)).rejected == {Reject.HINT_ID: 1}
        assert not machine.device.hinting
        assert machine.outcome is None


def test_hint_after_stop() -> None:
    with running() as machine:
        assert machine.send(HINT, le32(STOP)).rejected == {Reject.HINT_ID: 1}
        machine.device.ask_for_hints(9)
        machine.send(HINT, le32(9))
        handled = machine.send_blocks(HINT, block(HIGH_PFN, 4), block(HOLE_PFN, 1))
        assert found(handled.runs) == machine.pages((HIGH_PFN, 4))
        assert handled.rejected == {Reject.PARTIAL: 1}
        machine.send(HINT, le32(STOP))
        late = machine.send_blocks(HINT, block(HIGH_PFN, 4), block(FAR_PFN, 4))
        assert late.rejected == {Reject.HINT_STOPPED: 2}
        assert found(late.runs) == []
        assert machine.send(HINT, le32(STOP)).rejected == {Reject.HINT_ID: 1}


def stat(tag: int, value: int) -> bytes:
    return struct.pack("<HQ", tag, value)


def test_stats_over_16_tags() -> None:
    """A buffer of 4 GiB stalled Firecracker's device until its commit ed96b50d2."""
    with running() as machine:
        handled = machine.send(STATS, b"".join(stat(tag % 16, tag) for tag in range(20)))
        assert handled.rejected == {Reject.OVERSIZED: 4}
        assert handled.stats == {tag: tag + 16 if tag < 4 else tag for tag in range(16)}
        machine.device.ask_for_stats()
        many = machine.send(STATS, *[stat(3, 1) * 400] * 100)
        assert many.rejected == {Reject.OVERSIZED: 40_000 - 16}
        assert many.stats == {3: 1}


def test_stats_unknown_tag() -> None:
    with running() as machine:
        handled = machine.send(STATS, stat(16, 1) + stat(4, 7) + stat(65535, (1 << 64) - 1))
        assert handled.rejected == {Reject.UNKNOWN_TAG: 2}
        assert handled.stats == {4: 7}


def test_stats_second_buffer_before_ack() -> None:
    with running() as machine:
        assert not machine.device.ask_for_stats()
        assert not machine.send(STATS, stat(4, 1)).rejected
        early = machine.send(STATS, stat(4, 2))
        assert early.rejected == {Reject.STATS_EARLY: 1}
        assert early.stats == {4: 2}
        assert machine.device.ask_for_stats()
        assert not machine.device.ask_for_stats()
        assert not machine.send(STATS, stat(4, 3)).rejected


def test_stats_not_multiple_of_10() -> None:
    with running() as machine:
        for extra in range(1, 10):
            handled = machine.send(STATS, stat(0, 5) + b"\xff" * extra)
            assert handled.rejected == {Reject.RAGGED: extra}
            assert handled.stats == {0: 5}
            assert machine.device.ask_for_stats()


def test_inhibited_mode() -> None:
    """Requests are answered and pages change hands; no page is discarded, and all are counted."""
    with running(inhibited=True) as machine:
        assert found(machine.send(Queue.INFLATE, le32(HIGH_PFN, HIGH_PFN + 1)).runs) == []
        assert found(machine.device.host_owned) == machine.pages((HIGH_PFN, 2))
        assert found(machine.send_blocks(REPORT, block(FAR_PFN, 4)).runs) == []
        machine.send(Queue.DEFLATE, le32(HIGH_PFN))
        assert machine.device.rejected == {Reject.INHIBITED: 6}
    with running(poison_val=0xAA) as machine:
        assert found(machine.send_blocks(REPORT, block(FAR_PFN, 4)).runs) == []
        assert machine.device.rejected == {Reject.POISONED: 4}
