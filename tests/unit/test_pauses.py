"""Quantiles and histograms of pauses; stored histograms may have been written by anyone."""

import base64
import dataclasses
import struct
import zlib

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.native.types import Operations
from replay.pauses import DIGITS, LONGEST_NS, PausesError, encode, pauses, pauses_of

from .replay_results import make_watched

NO_NS = np.zeros(0, np.int64)


def operations(*pages: int) -> Operations:
    length_bytes = np.array(pages, np.uint64) << np.uint64(12)
    zero = np.zeros(len(pages), np.uint64)
    return Operations(zero.astype(np.uint8), zero, length_bytes, zero.astype(np.int64))


def test_quantiles_are_times_that_were_measured() -> None:
    times_ns = np.arange(1, 1001, dtype=np.int64) * 10
    found = pauses_of(times_ns, np.full(1000, 24, np.int64), operations(*range(1, 1001)))
    assert (found.calls, found.max_ns, found.worst_operation, found.worst_pages) == (
        1000,
        10_000,
        999,
        1000,
    )
    assert {found.p50_ns, found.p90_ns, found.p99_ns, found.p999_ns} <= set(times_ns.tolist())
    assert found.p50_ns == pytest.approx(5000, rel=0.01)
    assert found.harness_ns == 24


def test_a_call_that_operations_share_counts_once_with_all_its_pages() -> None:
    times_ns = np.array([5, -1, -1, 90, -1, 7], np.int64)
    found = pauses_of(times_ns, times_ns, operations(1, 2, 3, 4, 5, 6))
    assert (found.calls, found.max_ns, found.worst_operation, found.worst_pages) == (3, 90, 3, 9)


def test_no_call_has_no_pause() -> None:
    assert pauses_of(NO_NS, NO_NS, operations()) is None


@given(st.lists(st.integers(0, 1 << 50), min_size=1, max_size=50))
def test_the_histogram_is_right_to_a_part_in_a_thousand(times_ns: list[int]) -> None:
    run = make_watched([1])
    kept = dataclasses.replace(run.pauses, histogram=encode(np.array(times_ns, np.int64)))
    merged = pauses([dataclasses.replace(run, pauses=kept)] * 2)
    assert merged.get_total_count() == 2 * len(times_ns)
    worst = min(max(times_ns), LONGEST_NS)
    assert merged.get_max_value() == pytest.approx(worst, rel=0.002, abs=1)
    middle = min(sorted(times_ns)[(len(times_ns) - 1) // 2], LONGEST_NS)
    assert merged.get_value_at_percentile(50) == pytest.approx(middle, rel=0.002, abs=1)


def test_runs_without_calls_make_an_empty_histogram() -> None:
    run = dataclasses.replace(make_watched([1]), pauses=None)
    assert pauses([run]).get_total_count() == pauses([]).get_total_count() == 0


def stored(text: str):
    run = make_watched([1])
    return [dataclasses.replace(run, pauses=dataclasses.replace(run.pauses, histogram=text))]


def packed(payload: bytes) -> str:
    body = zlib.compress(payload)
    return base64.b64encode(struct.pack(">II", 0x1C849304 | 0x10, len(body)) + body).decode()


def header(digits: int = DIGITS, lowest: int = 1, highest: int = LONGEST_NS, length: int = 0):
    return struct.pack(">IIIIQQd", 0x1C849303 | 0x10, length, 0, digits, lowest, highest, 1.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", ""),
        ("no base64!", ""),
        ("é", ""),
        ("AAAA", ""),
        ("A" * (1 << 21), "characters"),
        (packed(header() + bytes(1 << 22)), "when unpacked"),
        (packed(b"short"), ""),
        (packed(header(digits=5)), "5 digits"),
        (packed(header(lowest=0)), "from 0"),
        (packed(header(highest=1 << 62)), "to 4611686018427387904"),
        (packed(b"x" + header()[1:]), ""),
        (HdrHistogram(1, 1000, 2).encode().decode(), "2 digits"),
    ],
)
def test_a_damaged_histogram_is_refused_with_a_sentence(text: str, reason: str) -> None:
    with pytest.raises(PausesError, match="cannot be read") as caught:
        pauses(stored(text))
    assert reason in caught.value.reason


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_any_counters_are_read_or_refused(counters: bytes) -> None:
    try:
        found = pauses(stored(packed(header(length=len(counters)) + counters)))
    except PausesError:
        return
    assert found.get_total_count() >= 0
