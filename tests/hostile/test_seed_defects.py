"""The thirteen defects of the 2016 patch's device, each with an input that it fails on.

`seed_device` follows the patch's own decisions on that input, so that each test first shows the
defect there, and then that the device model does otherwise, over real memory with real discards.
"""

import errno
import gc
import json
import os
import re
import sys
import tracemalloc
from pathlib import Path

import pytest

from replay import chain, wire
from replay.backings import Advice
from replay.device import BalloonDevice
from replay.native.exchange import exchange
from replay.plan import Context, context_of
from replay.requests import load_requests, memory_map
from replay.strategies import STRATEGIES
from replay.wire import Reject, decode_range_words
from tests.hostile.machine import (
    FAR_PAGES,
    FAR_PFN,
    HIGH_PAGES,
    HIGH_PFN,
    HOLE_PFN,
    LAST_PFN,
    LOW_PAGES,
    Machine,
    block,
    found,
    le32,
    regions,
    running,
    word,
    words,
)
from tests.hostile.seed_device import MAX_STEPS, Told, seed_device
from tests.memory.conftest import make_trace  # noqa: F401  (a fixture)
from tests.memory.test_exchange import blocks, requests
from tests.unit.command import AEROSTAT, run
from tracer.trace.reader import open_trace
from tracer.trace.schema import PAGE_BYTES, Queue, Wire

DEFECTS = 13
MEMORY = [
    (pfn * PAGE_BYTES, pages * PAGE_BYTES)
    for pfn, pages in ((0, LOW_PAGES), (HIGH_PFN, HIGH_PAGES), (FAR_PFN, FAR_PAGES))
]
ENDLESS = (1 << 64) - 1


def of_seed(data: bytes, **settings) -> Told:
    return seed_device(data, MEMORY, **settings)


def inflated(data: bytes, *spans: tuple[int, int], **rejected: int) -> None:
    """Send a request to the model, and say what it may discard and what it must count."""
    with running("range_words") as machine:
        handled = machine.send(Queue.INFLATE, data)
        assert found(handled.runs) == machine.pages(*spans)
        assert handled.rejected == {Reject[name]: count for name, count in rejected.items()}
        assert machine.device.rejected == handled.rejected


def test_there_are_thirteen() -> None:
    written = re.findall(r"^def test_(\d+)_", Path(__file__).read_text(), re.MULTILINE)
    assert sorted(map(int, written)) == list(range(1, DEFECTS + 1))


def test_01_memory_is_set_aside_as_the_guest_says() -> None:
    data = words(word(HIGH_PFN, 1), data_len=0xFFFFFFFF)
    assert of_seed(data).allocated_bytes == 0xFFFFFFFF
    inflated(data, SHORT_PAYLOAD=1)  # machine.MAX_BYTES bounds what the model takes


def test_02_short_descriptors_leave_header_and_payload_unwritten() -> None:
    for size in range(1, 8):
        short = words(word(HIGH_PFN, 1))[:size]
        assert of_seed(short).stale_bytes > 0
        inflated(short, SHORT_HEADER=1)
    short = words(word(HIGH_PFN, 1), data_len=24)
    assert of_seed(short).stale_bytes == 16
    inflated(short, SHORT_PAYLOAD=1)


def test_03_the_count_of_a_last_word_is_read_from_behind_the_buffer() -> None:
    data = words(word(HIGH_PFN, 2), word(FAR_PFN, 0))
    assert of_seed(data).read_behind_bytes == 8
    inflated(data, (HIGH_PFN, 2), NO_COUNT=1)


def test_04_ragged_and_surplus_bytes_pass_in_silence() -> None:
    data = words(word(HIGH_PFN, 1), word(FAR_PFN, 1), data_len=13)
    assert of_seed(data).advised == of_seed(words(word(HIGH_PFN, 1))).advised
    inflated(data, (HIGH_PFN, 1), RAGGED=5, TRAILING=3)


def test_05_sizes_and_addresses_wrap() -> None:
    small = words(word(HIGH_PFN, 0), (1 << 52) + 1)
    assert of_seed(small).advised == [block(HIGH_PFN, 1)]
    none = words(word(HIGH_PFN, 0), 1 << 52)
    assert of_seed(none).advised == []
    everything = (HIGH_PFN, HIGH_PAGES), (FAR_PFN, FAR_PAGES)
    left = (1 << 52) - HIGH_PFN - HIGH_PAGES - FAR_PAGES
    for data in (small, none):
        inflated(data, *everything, BEYOND_ADDRESSES=1, OUTSIDE=left)
    restarts = words(word((1 << 52) - 1, 2))
    assert of_seed(restarts).advised == [block(0, 1)]
    inflated(restarts, BEYOND_ADDRESSES=1, OUTSIDE=1)


def test_06_a_loop_over_holes_without_an_end() -> None:
    data = words(*[word(1 << 30, 0), 1 << 51] * 2048)
    told = of_seed(data)
    assert told.steps == MAX_STEPS
    assert told.lookups > 30 * told.steps
    inflated(data, OUTSIDE=2048 << 51)  # machine.MAX_SECONDS bounds the time


def test_07_what_was_asked_for_is_discarded_not_what_was_found() -> None:
    over = words(word(LAST_PFN - 1, 100))
    assert of_seed(over).advised == [block(LAST_PFN - 1, 100)]
    inflated(over, (LAST_PFN - 1, 2), OUTSIDE=98)  # the page behind is a guard
    into = words(word(FAR_PFN - 2, 3))
    assert of_seed(into).advised == [block(FAR_PFN, 3)]
    inflated(into, (FAR_PFN, 1), OUTSIDE=2)
    across = words(word(HOLE_PFN - 1, 0), FAR_PFN - HOLE_PFN + 2)
    assert of_seed(across).advised == [block(HOLE_PFN - 1, FAR_PFN - HOLE_PFN + 2)]
    inflated(across, (HOLE_PFN - 1, 1), (FAR_PFN, 1), OUTSIDE=FAR_PFN - HOLE_PFN)


def test_08_regions_are_held_and_never_let_go() -> None:
    data = words(*[word(HIGH_PFN + 2 * i, 1) for i in range(100)])
    assert of_seed(data).references == 100
    device = BalloonDevice(Context(regions()), protocol="range_words")

    def many(times: int) -> None:
        for _ in range(times):
            device.handle(Queue.INFLATE, data)
            device.handle(Queue.DEFLATE, data)

    many(10)
    referrers = len(gc.get_referrers(device.context.layout))
    tracemalloc.start()
    try:
        many(200)
        grown = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert grown < 64 << 10
    assert len(gc.get_referrers(device.context.layout)) == referrers


def test_09_host_pages_backings_and_failures_are_not_looked_at() -> None:
    part = words(word(FAR_PFN, 3))
    assert of_seed(part).advised == [block(FAR_PFN, 3)]
    with running("range_words", host_page_bytes=64 << 10) as machine:
        handled = machine.send(Queue.INFLATE, part)
        assert found(handled.runs) == []
        assert handled.rejected == {Reject.HOST_PAGE: 3}
    for backing in ("memfd", "file-private"):
        with running("range_words", backing=backing) as machine:
            before = resident(machine)
            machine.send(Queue.INFLATE, words(word(FAR_PFN, 100)))
            assert before - resident(machine) == 100  # DONTNEED would leave a memfd's pages
            assert machine.outcome is not None
            assert machine.outcome.failures == 0


def resident(machine: Machine) -> int:
    if machine.device.context.memory.shared:
        return os.fstat(machine.memory.mapping.fd).st_blocks * 512 // PAGE_BYTES
    return machine.memory.resident_pages()


ASKING = {"qemu", "range", "scatter"}
"""Strategies that give WILLNEED on what is deflated, as what they follow does; no other does."""


@pytest.mark.parametrize("error", [errno.EBADF, errno.EIO])
def test_10_deflate_asks_the_kernel_for_whole_ranges_beyond_memory(
    error: int,
    make_trace,  # noqa: F811
) -> None:
    """A kernel without swap answers EBADF, as one does here: counted, told, and nothing is lost."""
    data = words(word(LAST_PFN - 4, 0), 1 << 20)
    assert of_seed(data).advised[0] == block(LAST_PFN - 4, 1 << 20)
    with running("range_words") as machine:
        before = machine.memory.resident_pages()
        handled = machine.send(Queue.DEFLATE, data)
        assert found(handled.runs) == machine.pages((LAST_PFN - 4, 5))
        assert handled.rejected == {Reject.OUTSIDE: (1 << 20) - 5}
        assert machine.outcome is not None
        assert machine.outcome.bytes == 5 * PAGE_BYTES
        assert machine.memory.resident_pages() == before
    path, refusing = make_trace(), str(Path(__file__).with_name("refuse_calls.py"))
    options = ("-s", "all", "--runs", "1", "--warmup", "0", "--watched-runs", "0", "--no-predict")
    done = run(
        ["replay", path, *options, "--json"],
        command=[sys.executable, refusing, errno.errorcode[error], "willneed", *AEROSTAT],
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    calls = advice_calls(path, Advice.WILLNEED)
    assert {name for name, count in calls.items() if count} == ASKING
    failed = {each["name"]: each["runs"][0]["failures"] for each in document["strategies"]}
    assert failed == {name: calls[name] for name in failed}
    for each in document["strategies"]:
        (measured,) = each["runs"]
        assert measured["first_errno"] == (error if each["name"] in ASKING else 0)
        told = [line for line in document["warnings"] if line.startswith(f"{each['name']}: ")]
        said = f"{calls[each['name']]} of {each['operations']} operations failed"
        name = errno.errorcode[error]
        assert (said in "".join(told) and name in "".join(told)) == (each["name"] in ASKING)


def advice_calls(path: Path, advice: Advice) -> dict[str, int]:
    """Operations of one advice in each shipped strategy's plan."""
    trace = open_trace(path)
    requests, context = load_requests(trace), context_of(memory_map(trace))
    plans = {name: strategy.plan(requests, context) for name, strategy in STRATEGIES.items()}
    return {name: int((plan.advice == advice).sum()) for name, plan in plans.items()}


def test_11_bytes_are_read_in_the_order_of_the_host() -> None:
    data = words(word(HIGH_PFN, 3))
    assert of_seed(data, order="big").advised != of_seed(data).advised
    assert data.hex() == "0000070008000000" + "0300100000000000"
    decoded = decode_range_words(data)
    assert (decoded.start.tolist(), decoded.pages.tolist()) == ([HIGH_PFN], [3])
    for module in (wire, chain):
        text = Path(str(module.__file__)).read_text()
        assert not re.search(r'"=?[ui][248]"', text), "a number in the host's own byte order"
        assert "PAGESIZE" not in text
        assert "sysconf" not in text


@pytest.mark.parametrize("queue", [*Queue, 9])
def test_12_the_guest_is_told_that_its_buffer_was_written(queue: int) -> None:
    """The model writes nothing into guest memory; and what an inhibited device keeps, it says."""
    data = words(word(HIGH_PFN, 7))
    assert of_seed(data).used_length == 8
    assert_nothing_written(queue)
    assert of_seed(data, inhibited=True).advised == []
    with running("range_words", inhibited=True) as machine:
        before = bytes(machine.low[: 16 << 10])
        machine.send(queue, data)
        machine.send_blocks(queue, block(0, 4))
        assert bytes(machine.low[: 16 << 10]) == before
        kept = machine.device.rejected[Reject.INHIBITED]
        assert kept == {Queue.INFLATE: 7, Queue.REPORTING: 4}.get(queue, 0)


CONTENTS = {
    Queue.INFLATE: [(Wire.PFNS, le32(1, 2)), (Wire.RANGE_WORDS, words(word(1, 2)))],
    Queue.DEFLATE: [(Wire.PFNS, le32(1, 2)), (Wire.RANGE_WORDS, words(word(1, 2)))],
    Queue.REPORTING: [(Wire.SCATTERLIST, blocks((1, 2), (9, 1)))],
}
CONTENTS[Queue.INFLATE].append((Wire.SCATTERLIST, blocks((1, 2))))
CONTENTS[Queue.DEFLATE].append((Wire.SCATTERLIST, blocks((1, 2))))


def assert_nothing_written(queue: int) -> None:
    """The device of stage b says so in its used ring: a length counts written bytes alone.

    It is the sum of what the device wrote into the parts of a buffer that it may write (virtio 1.2,
    2.7.8): there are none among PFNs and words, and blocks that are discarded are not written to.
    """
    for form, content in CONTENTS.get(queue, []):
        sent = exchange(requests(*[(queue, form, content)] * 3))
        assert (sent.requests, sent.refused, sent.written_bytes) == (3, 0, 0)


def test_13_the_protocol_is_on_by_default() -> None:
    """A device that speaks ranges unasked misreads a driver that sends PFNs."""
    data = le32(0, 8, word(HIGH_PFN + 3, 1), 0)
    assert of_seed(data).advised == [block(HIGH_PFN + 3, 1)]
    with running() as machine:
        handled = machine.send(Queue.INFLATE, data)
        assert found(handled.runs) == machine.pages((0, 1), (8, 1))
        assert handled.rejected == {Reject.OUTSIDE: 1}
