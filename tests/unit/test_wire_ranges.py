"""The seed's range protocol as bytes; what its device did wrong is in tests/hostile."""

import struct
from pathlib import Path

import numpy as np
import pytest

from replay.device import BalloonDevice
from replay.plan import Context
from replay.requests import from_pfns
from replay.strategies import STRATEGIES
from replay.wire import (
    Decoded,
    Reject,
    close_requests,
    decode_range_words,
)
from tests.unit.encoded import encode_range_words
from tracer.trace.manifest import Region
from tracer.trace.schema import Queue

MIB_PAGES = 256


def request(*words: int, data_len: int | None = None, cmd: int = 0, flag: int = 0) -> bytes:
    payload = struct.pack(f"<{len(words)}Q", *words)
    length = len(payload) if data_len is None else data_len
    return struct.pack("<BBHI", cmd, flag, 77, length) + payload


def short(pfn: int, pages: int) -> int:
    return pfn << 12 | pages


def runs(decoded: Decoded) -> list[tuple[int, int]]:
    return list(zip(decoded.start.tolist(), decoded.pages.tolist(), strict=True))


def device(host_page_bytes: int = 4096) -> BalloonDevice:
    """4 MiB of memory at 0 and 4 MiB at 16 MiB, a hole between."""
    regions = tuple(
        Region("ram", gpa=gpa, hva=None, length_bytes=4 << 20, backing="anon", page_size_bytes=4096)
        for gpa in (0, 16 << 20)
    )
    return BalloonDevice(Context(regions, host_page_bytes), protocol="range_words")


def owned(model: BalloonDevice) -> list[tuple[int, int]]:
    held = model.host_owned
    return list(zip(held.start.tolist(), held.pages.tolist(), strict=True))


def test_a_range_over_everything_takes_both_regions_and_no_gap():
    model = device()
    model.handle(Queue.INFLATE, request(short(0, 0), (1 << 64) - 1))
    assert model.host_owned.total_pages == model.context.layout.guest_pages
    assert len(owned(model)) == 2


@pytest.mark.parametrize(("backing", "advice"), [("memfd", 128), ("shmem", 9), ("hugetlb", 128)])
def test_shared_backings_get_a_call_that_frees(backing, advice):
    context = Context(device().context.regions, backing=backing)
    plan = STRATEGIES["range"].plan(from_pfns([(Queue.INFLATE, [1, 2, 3])]), context)
    assert plan.advice.tolist() == [advice]


def test_deflate_asks_only_for_what_was_named_inside_memory():
    plan = STRATEGIES["range"].plan(
        from_pfns([(Queue.DEFLATE, [5, 6, 4 * MIB_PAGES])]), device().context
    )
    assert plan.offset_bytes.tolist() == [5 * 4096]
    assert plan.length_bytes.tolist() == [2 * 4096]


def test_bytes_are_little_endian_and_pages_4_kib_on_every_host():
    data = bytes.fromhex("0000000008000000" + "0320010000000000")
    assert runs(decode_range_words(data)) == [(0x12, 3)]
    assert encode_range_words([0x12], [3]) == [data]


@pytest.mark.parametrize(("cmd", "flag"), [(1, 0), (0, 1), (255, 255)])
def test_unknown_command_or_flag_voids_the_request(cmd, flag):
    decoded = decode_range_words(request(short(1, 1), cmd=cmd, flag=flag))
    assert runs(decoded) == []
    assert decoded.rejected == {Reject.UNKNOWN_COMMAND: 1}


def test_count_of_zero_is_no_range():
    decoded = decode_range_words(request(short(9, 0), 0, short(4, 1)))
    assert runs(decoded) == [(4, 1)]
    assert decoded.rejected == {Reject.EMPTY_RANGE: 1}


def test_counts_that_look_like_extended_words_are_counts():
    decoded = decode_range_words(request(short(1, 0), 8192, short(2, 0), 4096, short(3, 1)))
    assert runs(decoded) == [(1, 8192), (2, 4096), (3, 1)]


@pytest.mark.parametrize("pages", [4095, 4096, 4097])
def test_exactly_4096_pages_survive_the_round_trip(pages):
    (data,) = encode_range_words([5], [pages])
    assert len(data) == (16 if pages == 4095 else 24)
    assert runs(decode_range_words(data)) == [(5, pages)]


def test_the_seeds_own_driver_at_4096_pages_is_the_trap_that_it_was():
    """Its short form of 4096 pages at an even PFN is an extended word of PFN + 1."""
    decoded = decode_range_words(request((4 << 12) | 4096 | (1 << 12), short(7, 2)))
    assert runs(decoded) == [(5, short(7, 2))]


def test_requests_hold_at_most_4096_words():
    parts = encode_range_words(np.arange(5000) * 2, np.ones(5000, np.int64))
    sizes = [(len(part) - 8) // 8 for part in parts]
    assert sizes == [4095, 905]
    parts = encode_range_words(np.arange(5000) * 9000, np.full(5000, 5000))
    assert [(len(part) - 8) // 8 for part in parts] == [4096, 4096, 1808]


def test_a_batch_always_ends_its_request():
    words, batch = np.array([1, 1, 2, 1, 2]), np.array([0, 0, 0, 4, 4])
    assert close_requests(words, batch, 4).tolist() == [2, 4]
    assert close_requests(words, batch, 3).tolist() == [1, 2, 4]


def test_nothing_to_send_sends_nothing():
    assert encode_range_words([], []) == []


def test_decoder_never_loops_over_pages():
    """The source holds no loop: the bound on work is visible, not only measured."""
    source = Path(__file__).parents[2] / "replay" / "wire.py"
    body = source.read_text().split("def decode_range_words")[1].split("def range_words")[0]
    assert "while " not in body
    assert "for " not in body.split('"""')[2]
