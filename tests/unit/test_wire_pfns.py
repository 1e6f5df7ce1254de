"""Inflate, deflate, report, statistics and hint bytes, as a hostile guest would send them."""

import struct

import pytest

from replay.wire import (
    MAX_REQUEST_BYTES,
    Decoded,
    Reject,
    decode_hint_id,
    decode_pfns,
    decode_scatterlist,
    decode_stats,
)


def le32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def descriptor(addr: int, length: int, flags: int = 2) -> bytes:
    return struct.pack("<QIHH", addr, length, flags, 0)


def runs(decoded: Decoded) -> list[tuple[int, int]]:
    return list(zip(decoded.start.tolist(), decoded.pages.tolist(), strict=True))


def test_empty_chain_is_counted_and_handles_nothing():
    assert runs(decode_pfns(b"")) == []
    assert decode_pfns(b"").rejected == {Reject.EMPTY: 1}
    assert decode_scatterlist(b"").rejected == {Reject.EMPTY: 1}


@pytest.mark.parametrize("extra", [1, 2, 3])
def test_length_not_a_multiple_of_four_drops_the_ragged_end(extra):
    decoded = decode_pfns(le32(5, 6) + b"\xff" * extra)
    assert runs(decoded) == [(5, 1), (6, 1)]
    assert decoded.rejected == {Reject.RAGGED: extra}


def test_more_than_256_pfns_are_taken_and_counted():
    decoded = decode_pfns(le32(*range(300)))
    assert len(decoded.start) == 300
    assert decoded.rejected == {Reject.OVERSIZED: 44}


def test_pfns_of_2_31_and_above_stay_positive():
    """QEMU read them as signed until 4.1 (ffa207d082)."""
    assert runs(decode_pfns(le32(0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))) == [
        (0x7FFFFFFF, 1),
        (0x80000000, 1),
        (0xFFFFFFFF, 1),
    ]


def test_duplicates_and_order_are_kept():
    assert runs(decode_pfns(le32(9, 3, 9, 8))) == [(9, 1), (3, 1), (9, 1), (8, 1)]


def test_a_request_of_many_megabytes_is_cut():
    decoded = decode_pfns(bytes(MAX_REQUEST_BYTES + 8))
    assert len(decoded.start) == MAX_REQUEST_BYTES // 4
    assert decoded.rejected[Reject.TOO_LONG] == 8


def test_report_of_mixed_orders():
    decoded = decode_scatterlist(descriptor(4 << 20, 4 << 20) + descriptor(2 << 20, 2 << 20))
    assert runs(decoded) == [(1024, 1024), (512, 512)]
    assert not decoded.rejected


@pytest.mark.parametrize(
    ("addr", "length", "flags", "reason"),
    [
        (4097, 4096, 2, Reject.UNALIGNED),
        (4096, 4095, 2, Reject.UNALIGNED),
        (4096, (4 << 30) - 1, 2, Reject.UNALIGNED),
        (4096, 0, 2, Reject.EMPTY_RANGE),
        (4096, 4096, 0, Reject.NOT_WRITABLE),
        ((1 << 64) - 4096, 8192, 2, Reject.BEYOND_ADDRESSES),
    ],
)
def test_bad_report_entry_is_left_out_and_its_neighbours_are_not(addr, length, flags, reason):
    decoded = decode_scatterlist(descriptor(0, 4096) + descriptor(addr, length, flags))
    assert runs(decoded) == [(0, 1)]
    assert decoded.rejected == {reason: 1}


def test_report_of_the_last_page_of_the_address_space():
    assert runs(decode_scatterlist(descriptor((1 << 64) - 4096, 4096))) == [((1 << 52) - 1, 1)]


def test_report_of_more_than_32_entries_is_counted():
    assert decode_scatterlist(descriptor(0, 4096) * 33).rejected == {Reject.OVERSIZED: 1}


def test_statistics_known_unknown_ragged_and_many():
    item = struct.Struct("<HQ")
    data = item.pack(0, 7) + item.pack(15, 1 << 63) + item.pack(16, 9) + item.pack(65535, 9)
    stats, rejected = decode_stats(data + item.pack(0, 8) + b"123")
    assert stats == {0: 8, 15: 1 << 63}
    assert rejected == {Reject.UNKNOWN_TAG: 2, Reject.RAGGED: 3}


def test_more_than_sixteen_statistics_need_no_more_room():
    stats, _ = decode_stats(struct.pack("<HQ", 3, 1) * 10_000)
    assert stats == {3: 1}


@pytest.mark.parametrize(("data", "expected"), [(le32(0x80000000), 1 << 31), (b"", None)])
def test_hint_id_is_exactly_four_bytes(data, expected):
    assert decode_hint_id(data) == expected
    assert decode_hint_id(data + b"\0") is None
