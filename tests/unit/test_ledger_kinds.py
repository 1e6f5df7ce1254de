"""Which calls the ledger takes for discards: by what they are, and what memory they are for."""

import pytest

from tests.unit.capture_bundle import BACK, CALL_ROWS, HOST_ROWS, call, received, write_host
from tests.unit.ledger_lines import lines
from tracer.account.ledger import ledger
from tracer.trace.manifest import Region
from tracer.trace.reader import open_trace
from tracer.trace.schema import Call, Queue

GIB = 1 << 30
PAGE = 4096
DONTNEED, WILLNEED, FREE, REMOVE, LOCKED, COLD = 4, 3, 8, 9, 24, 20
PUNCH, KEEP_SIZE = 3, 1
FIXED, FIXED_ANONYMOUS = 0x12, 0x32

ADVICE = {"dontneed": DONTNEED, "free": FREE, "remove": REMOVE, "locked": LOCKED, "cold": COLD}
KINDS = {
    **{name: {"advice": advice} for name, advice in ADVICE.items()},
    **{f"{n} by vector": {"advice": a, "call": Call.PROCESS_MADVISE} for n, a in ADVICE.items()},
    "punch": {"advice": PUNCH, "call": Call.FALLOCATE},
    "reserve": {"advice": KEEP_SIZE, "call": Call.FALLOCATE},
    "over": {"advice": FIXED_ANONYMOUS, "call": Call.MMAP},
    "file over": {"advice": FIXED, "call": Call.MMAP},
}
PRIVATE = {"dontneed", "dontneed by vector", "locked", "locked by vector", "over"}
SHARED = {"remove", "remove by vector", "punch"}
EVERY = PRIVATE | SHARED | {"free", "free by vector"}
GIVES_BACK = {
    "anon": PRIVATE | {"free", "free by vector"},
    "file-private": PRIVATE,
    "memfd": SHARED,
    "shmem": SHARED,
    "hugetlb": PRIVATE | SHARED,
    "some other": EVERY,
}


def region(gpa: int, backing: str) -> Region:
    return Region("ram", gpa, None, GIB, backing, PAGE)


def discarded(tmp_path, calls, *regions, rows=HOST_ROWS):
    path = write_host(tmp_path / "h.balloon", rows=rows, calls=calls, regions=regions)
    return lines(ledger(open_trace(path)))["inflate: host discarded"]


@pytest.mark.parametrize(("backing", "kind"), [(b, k) for b in GIVES_BACK for k in KINDS])
def test_a_call_is_a_discard_where_it_gives_the_memory_back(tmp_path, backing, kind):
    calls = [call(seq, count=n, gpa=GIB // 2, **KINDS[kind]) for seq, n in ((10, 256), (11, 128))]
    gives_back = kind in GIVES_BACK[backing]
    wanted = (384, "equal") if gives_back else (0, "differs by -384")
    assert discarded(tmp_path, calls, region(0, backing)) == wanted


def test_memory_of_two_kinds_is_added_up_and_a_page_counted_once(tmp_path):
    """As QEMU does it: both calls where there is a file, one where there is none."""
    both = [call(10, count=256, gpa=0, **KINDS[kind]) for kind in ("punch", "dontneed")]
    calls = [*both, call(11, DONTNEED, 128, gpa=4 * GIB)]
    regions = (region(4 * GIB, "anon"), region(0, "memfd"))
    assert discarded(tmp_path, calls, *regions) == (384, "equal")


@pytest.mark.parametrize("gpa", [None, GIB, 5 * GIB])
def test_a_call_of_an_unknown_place_counts_where_any_of_the_memory_may_be_meant(tmp_path, gpa):
    calls = [call(10, DONTNEED, 256, gpa=gpa), call(11, REMOVE, 128, gpa=gpa)]
    regions = (region(0, "memfd"), region(4 * GIB, "shmem"))
    assert discarded(tmp_path, calls, *regions) == (128, "differs by -256")


def test_requests_whose_calls_are_missing_are_not_observed(tmp_path):
    """How many bytes they covered is known, and not what they were."""
    assert discarded(tmp_path, []) == (None, "not observed")


def test_requests_without_any_call_discarded_nothing(tmp_path):
    rows = [row | {"discard_calls": 0, "discard_bytes": 0} for row in HOST_ROWS]
    assert discarded(tmp_path, [], rows=rows) == (0, "differs by -384")


def test_a_deflate_with_other_calls_was_not_advised(tmp_path):
    rows = [*HOST_ROWS[:2], received(12, Queue.DEFLATE, BACK, (1_410_000, 1_425_000, 5), calls=1)]
    calls = [*CALL_ROWS[:2], call(12, DONTNEED, 128)]
    trace = open_trace(write_host(tmp_path / "h.balloon", rows=rows, calls=calls))
    assert lines(ledger(trace))["deflate: host advised"] == (None, "not observed")
