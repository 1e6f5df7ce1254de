"""Requests over virtqueues, from one thread to another: all arrive as they were sent."""

import os
import re
import struct
import threading
import time
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.memory import GuestMemory, rules_for
from replay.native.exchange import exchange
from replay.native.types import (
    Agreed,
    Exchange,
    NativeError,
    Operations,
    Service,
    WireRequests,
)
from replay.ranges import Runs
from replay.residency import Residency
from replay.sending import balloon_waits
from replay.strategies.windows import BALLOON
from tracer.trace.schema import Queue, Wire

FEATURES = [Agreed(event_idx=e, indirect=i) for e, i in product((True, False), repeat=2)]
EVERY_FEATURE = pytest.mark.parametrize(
    "agreed", FEATURES, ids=lambda a: f"event_idx={a.event_idx},indirect={a.indirect}"
)


def requests(*parts: tuple[Queue, Wire, bytes], wait: int | list[int] = 1) -> WireRequests:
    contents = [content for *_, content in parts]
    return WireRequests(
        np.frombuffer(b"".join(contents), np.uint8),
        np.cumsum([0, *map(len, contents)]).astype(np.uint64),
        np.array([form for _, form, _ in parts], np.uint8),
        np.array([queue for queue, *_ in parts], np.uint8),
        np.full(len(parts), 0, np.uint8) + np.array(wait, np.uint8),
    )


def pfns(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values) + 1}Q", 8 * len(values) << 32, *values)


def blocks(*ranges: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<QIHH", pfn << 12, pages << 12, 2, 0) for pfn, pages in ranges)


def was_kicked(found: Exchange, agreed: Agreed, times: int) -> bool:
    """Whether the device was notified as often as it has to be.

    With EVENT_IDX a device that still looks for more says so in the ring, and where it takes a
    request before the driver has asked whether to kick, that kick is spared.
    """
    return found.kicks == times or (agreed.event_idx and 1 <= found.kicks <= times)


def was_interrupted(found: Exchange, agreed: Agreed, at_most: int) -> bool:
    """Whether the driver was: one that is still looking is spared in the same way."""
    least = 1 if agreed.event_idx else at_most
    return least <= found.interrupts <= at_most


@EVERY_FEATURE
@pytest.mark.parametrize("form", [Wire.PFNS, Wire.RANGE_WORDS])
def test_everything_arrives_as_it_was_sent(agreed: Agreed, form: Wire) -> None:
    rng = np.random.default_rng(3)
    parts: list[tuple[Queue, Wire, bytes]] = []
    for i in range(200):
        count = int(rng.integers(1, 256))
        content = (words if form == Wire.RANGE_WORDS else pfns)(*rng.integers(1, 1 << 30, count))
        parts.append((Queue.INFLATE if i % 3 else Queue.DEFLATE, form, content))
        if i % 10 == 0:
            many = int(rng.integers(1, 33))
            parts.append((Queue.REPORTING, Wire.SCATTERLIST, blocks(*[(i << 10, 512)] * many)))
    sent = requests(*parts)
    found = exchange(sent, agreed)
    assert found.received.tobytes() == sent.wire.tobytes()
    assert found.received_start.tolist() == sent.start.tolist()
    assert (found.requests, found.refused, found.written_bytes) == (len(parts), 0, 0)
    assert was_kicked(found, agreed, len(parts))
    assert was_interrupted(found, agreed, len(parts))
    assert found.served is None
    assert found.wall_ns == found.send_ns > 0
    assert found.driver_cpu_ns > 0
    assert found.device_cpu_ns > 0


@pytest.mark.parametrize("indirect", [True, False])
def test_what_the_device_reads_is_counted(indirect: bool) -> None:
    agreed = Agreed(indirect=indirect)
    one = exchange(requests((Queue.INFLATE, Wire.PFNS, pfns(*range(256)))), agreed)
    assert (one.descriptors, one.ring_bytes) == (1, 16 + 1024)
    ranges = exchange(
        requests((Queue.INFLATE, Wire.RANGE_WORDS, words(*[1 << 12 | 1] * 4096))), agreed
    )
    table = 1 if indirect else 0
    assert (ranges.descriptors, ranges.ring_bytes) == (2 + table, 16 * (2 + table) + 8 + 32768)
    report = requests((Queue.REPORTING, Wire.SCATTERLIST, blocks(*[(512, 512)] * 32)))
    told = exchange(report, agreed)
    assert (told.descriptors, told.ring_bytes) == (32 + table, 16 * (32 + table))


def ranges_one_by_one(count: int) -> list[tuple[Queue, Wire, bytes]]:
    return [(Queue.INFLATE, Wire.SCATTERLIST, blocks((i * 8, 4))) for i in range(count)]


@EVERY_FEATURE
@pytest.mark.parametrize(("count", "kicks"), [(1, 1), (127, 1), (128, 1), (129, 2), (1000, 8)])
def test_ranges_are_added_until_the_ring_is_full(agreed: Agreed, count: int, kicks: int) -> None:
    sent = requests(*ranges_one_by_one(count), wait=0)
    found = exchange(sent, agreed)
    assert found.received.tobytes() == sent.wire.tobytes()
    assert (found.requests, found.descriptors, found.refused) == (count, count, 0)
    assert found.written_bytes == 0
    assert was_kicked(found, agreed, kicks)
    assert was_interrupted(found, agreed, count)


def test_the_driver_waits_where_it_is_told_to_and_before_it_turns_to_another_queue() -> None:
    parts = ranges_one_by_one(10)
    wait = [0] * 10
    wait[3] = 1
    agreed = Agreed(event_idx=False)
    assert exchange(requests(*parts, wait=wait), agreed).kicks == 2
    parts[5:] = [(Queue.DEFLATE, form, content) for _, form, content in parts[5:]]
    assert exchange(requests(*parts, wait=0), agreed).kicks == 2


@given(
    st.lists(st.tuples(st.sampled_from(BALLOON), st.integers(1, 300), st.booleans()), max_size=8)
)
@settings(max_examples=30)
def test_the_driver_waits_as_often_as_is_counted(
    stretches: list[tuple[Queue, int, bool]],
) -> None:
    parts = [
        (queue, Wire.SCATTERLIST, blocks((1, 4)))
        for queue, count, _ in stretches
        for _ in range(count)
    ]
    wait = [waits and i == count - 1 for _, count, waits in stretches for i in range(count)]
    sent = requests(*parts, wait=list(map(int, wait)))
    assert exchange(sent, Agreed(event_idx=False)).kicks == balloon_waits(sent)


@EVERY_FEATURE
def test_more_requests_than_the_indices_can_count(agreed: Agreed) -> None:
    count = 66000
    wire = np.arange(count, dtype="<u4").view(np.uint8)
    ones = np.ones(count, np.uint8)
    start = np.arange(0, 4 * count + 4, 4).astype(np.uint64)
    found = exchange(WireRequests(wire, start, 0 * ones, 0 * ones, ones), agreed)
    assert found.received.tobytes() == wire.tobytes()
    assert found.requests == count
    assert was_kicked(found, agreed, count)
    assert was_interrupted(found, agreed, count)


def test_nothing_to_send() -> None:
    found = exchange(requests())
    assert (found.requests, found.kicks, found.ring_bytes, len(found.received)) == (0, 0, 0, 0)


def test_both_threads_run_where_they_are_told_to_and_the_callers_cpus_stay() -> None:
    allowed = os.sched_getaffinity(0)
    cpus = (min(allowed), max(allowed))
    seen: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            for task in Path("/proc/self/task").iterdir():
                with suppress(OSError):
                    status = (task / "status").read_text()
                    seen.update(re.findall(r"^Cpus_allowed_list:\s*(\S+)$", status, re.M))

    sent = requests(*[(Queue.INFLATE, Wire.PFNS, pfns(1))] * 20_000)
    looking = threading.Thread(target=look)
    looking.start()
    try:
        found = exchange(sent, Agreed(cpus=cpus))
    finally:
        ended.set()
        looking.join()
        # Joined is not gone yet, and the next test counts threads.
        while Path(f"/proc/self/task/{looking.native_id}").exists():
            time.sleep(0.001)
    assert found.requests == 20_000
    assert {str(cpu) for cpu in cpus} <= seen
    assert os.sched_getaffinity(0) == allowed


def test_no_thread_and_no_descriptor_is_left_behind() -> None:
    def counts() -> tuple[int, int]:
        own = Path("/proc/self")
        return len(list((own / "task").iterdir())), len(list((own / "fd").iterdir()))

    before = counts()
    exchange(requests((Queue.INFLATE, Wire.PFNS, pfns(1))))
    assert counts() == before


UNSENDABLE = {
    "257 PFNs": [(Queue.INFLATE, Wire.PFNS, pfns(*range(257)))],
    "half a PFN": [(Queue.INFLATE, Wire.PFNS, pfns(1) + b"\0\0")],
    "no PFN": [(Queue.DEFLATE, Wire.PFNS, b"")],
    "4097 words": [(Queue.INFLATE, Wire.RANGE_WORDS, words(*[1 << 12 | 1] * 4097))],
    "no word": [(Queue.INFLATE, Wire.RANGE_WORDS, words())],
    "half a word": [(Queue.INFLATE, Wire.RANGE_WORDS, words(1) + b"\0" * 4)],
    "33 blocks": [(Queue.REPORTING, Wire.SCATTERLIST, blocks(*[(1, 1)] * 33))],
    "PFNs on reporting": [(Queue.REPORTING, Wire.PFNS, pfns(1))],
    "a queue without pages": [(Queue.STATS, Wire.PFNS, pfns(1))],
    "a queue that does not exist": [(9, Wire.PFNS, pfns(1))],
    "a form that does not exist": [(Queue.INFLATE, 3, pfns(1))],
    "two forms on one queue": [
        (Queue.INFLATE, Wire.PFNS, pfns(1)),
        (Queue.INFLATE, Wire.RANGE_WORDS, words(1)),
    ],
}


@pytest.mark.parametrize("name", UNSENDABLE)
def test_what_no_driver_sends_is_refused(name: str) -> None:
    parts = UNSENDABLE[name]
    with pytest.raises(NativeError, match=f"request {len(parts) - 1} of {len(parts)}"):
        exchange(requests(*parts))


def test_one_buffer_is_not_sent_twice_at_once() -> None:
    with pytest.raises(NativeError, match="request 0 of 1"):
        exchange(requests((Queue.INFLATE, Wire.PFNS, pfns(1)), wait=0))


@pytest.mark.parametrize("start", [[0, 5], [4, 0], [0, 4, 2]])
def test_requests_outside_the_wire_are_refused(start: list[int]) -> None:
    one = np.ones(len(start) - 1, np.uint8)
    with pytest.raises(ValueError, match="request starts"):
        exchange(WireRequests(np.zeros(4, np.uint8), np.array(start, np.uint64), one, one, one))


PAGES = 64


def discards(*ranges: tuple[int, int]) -> Operations:
    page, pages = np.array(ranges, np.uint64).reshape(-1, 2).T
    return Operations(
        np.full(len(ranges), 4, np.uint8),
        np.ascontiguousarray(page << np.uint64(12)),
        np.ascontiguousarray(pages << np.uint64(12)),
        np.arange(len(ranges), dtype=np.int64),
    )


def everything() -> Residency:
    none = np.zeros(0, np.int64)
    return Residency(Runs(np.array([0]), np.array([PAGES])), Runs(none, none), "")


def test_a_device_that_serves_translates_and_discards_before_it_answers() -> None:
    sent = requests(
        (Queue.INFLATE, Wire.PFNS, pfns(3, 4, 5, 99)),
        (Queue.DEFLATE, Wire.PFNS, pfns(5)),
        (Queue.REPORTING, Wire.SCATTERLIST, blocks((32, 8), (60, 8))),
    )
    operations = discards((3, 1), (4, 1), (32, 8))
    with GuestMemory(PAGES << 12, "anon", 7) as memory:
        memory.restore(everything())
        service = Service(
            memory.mapping,
            operations,
            rules_for("anon"),
            [(0, PAGES << 12, 0)],
            np.array([2, 2, 3], np.int64),
        )
        found = exchange(sent, service=service)
        assert memory.resident_pages() == PAGES - 10
    served = found.served
    assert served is not None
    assert (served.outcome.calls, served.outcome.failures) == (3, 0)
    assert served.outcome.bytes == 10 << 12
    # PFN 99 is no memory, and half of the last block is none.
    assert (served.translation.entries, served.translation.rejected) == (7, 2)
    assert served.translation.pages == 4 + 8 + 4
    assert 0 < served.translate_ns < found.wall_ns
    assert 0 < served.discard_ns == served.outcome.wall_ns < found.wall_ns
    assert found.send_ns == found.wall_ns - served.translate_ns - served.discard_ns
    assert (found.requests, found.written_bytes) == (3, 0)


def test_failures_are_counted_with_the_operation_that_failed() -> None:
    sent = requests((Queue.INFLATE, Wire.PFNS, pfns(3)), (Queue.INFLATE, Wire.PFNS, pfns(4)))
    operations = discards((3, 1), (4, 1))
    operations.advice[1] = 9  # MADV_REMOVE, which private memory refuses
    with GuestMemory(PAGES << 12, "anon", 7) as memory:
        memory.restore(everything())
        ends = np.array([1, 2], np.int64)
        regions = [(0, PAGES << 12, 0)]
        rules = rules_for("anon")
        service = Service(memory.mapping, operations, rules, regions, ends)
        found = exchange(sent, service=service)
    assert found.served is not None
    outcome = found.served.outcome
    assert (outcome.failures, outcome.first_failed, outcome.first_errno) == (1, 1, 22)
    assert outcome.failed.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("ends", "message"), [([2], "one element"), ([2, 1], "rise"), ([0, 1], "last operation")]
)
def test_shares_that_are_none(ends: list[int], message: str) -> None:
    sent = requests(*[(Queue.INFLATE, Wire.PFNS, pfns(3))] * 2)
    with GuestMemory(PAGES << 12, "anon", 7) as memory:
        service = Service(
            memory.mapping,
            discards((3, 1), (4, 1)),
            rules_for("anon"),
            [(0, PAGES << 12, 0)],
            np.array(ends, np.int64),
        )
        with pytest.raises(ValueError, match=message):
            exchange(sent, service=service)


def test_an_operation_outside_memory_is_refused_before_anything_is_sent() -> None:
    sent = requests((Queue.INFLATE, Wire.PFNS, pfns(3)))
    with GuestMemory(PAGES << 12, "anon", 7) as memory:
        memory.restore(everything())
        service = Service(
            memory.mapping,
            discards((PAGES, 1)),
            rules_for("anon"),
            [(0, PAGES << 12, 0)],
            np.array([1], np.int64),
        )
        with pytest.raises(NativeError, match="operation 0 of 1 was refused"):
            exchange(sent, service=service)
        assert memory.resident_pages() == PAGES
