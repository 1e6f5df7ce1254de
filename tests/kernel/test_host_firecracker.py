"""A VMM without a known symbol that sorts and merges as Firecracker does: all it shows is calls."""

from pathlib import Path

import pytest

from tests.kernel.recording import recording
from tests.standins.build import firecracker_like
from tracer.trace.reader import open_trace
from tracer.trace.schema import Call, Side

PAGE = 4096
HIGH = 1 << 20
"""First PFN above 4 GiB."""


def ranges(first: int, count: int, step: int) -> list[tuple[int, int]]:
    """(gpa, length) of what a sorted and merged inflate discards, at most 2048 PFNs at a time."""
    pfns = [first + step * number for number in range(count)]
    found: list[tuple[int, int]] = []
    for begin in range(0, count, 2048):
        batch: list[tuple[int, int]] = []
        for pfn in sorted(pfns[begin : begin + 2048]):
            if batch and sum(batch[-1]) == pfn:
                batch[-1] = (batch[-1][0], batch[-1][1] + 1)
            else:
                batch.append((pfn, 1))
        found += batch
    return [(pfn * PAGE, pages * PAGE) for pfn, pages in found]


@pytest.mark.parametrize(
    ("discard", "backing", "call"),
    [
        ("madvise", "anon", Call.MADVISE),
        ("remap", "anon", Call.MMAP),
        ("remap", "memfd", Call.MMAP),
        ("punch", "memfd", Call.FALLOCATE),
    ],
)
def test_every_range_over_both_sides_of_the_hole_is_recorded(
    tmp_path: Path, discard, backing, call
):
    output = tmp_path / "host.balloon"
    moves = [(100_000, 5000, -1), (200_000, 500, 3), (HIGH + 7, 3000, 1), (HIGH + 90_000, 300, -2)]
    options = ("--id", "micro", "--mem-size-mib", "5000", "--discard", discard)
    with firecracker_like(*options, "--backing", backing) as vm:
        assert vm.send("noise", 50).noise == 100
        with recording(vm, output, detail="calls"):
            did = [vm.send("inflate", *move) for move in moves]
            assert vm.send("noise", 50).noise == 100
            vm.send("deflate", 1000, 1000)
    trace = open_trace(output)
    assert trace.losses == ()
    rows = trace.table("calls", Side.HOST).to_pylist()
    expected = [one for move in moves for one in ranges(*move)]
    assert [(row["gpa"], row["length_bytes"]) for row in rows] == expected
    assert len(rows) == sum(one.calls for one in did)
    assert {(row["call"], row["errno"], row["request_seq"]) for row in rows} == {(call, 0, None)}
    assert trace.table("requests", Side.HOST).num_rows == 0
    info = trace.manifest.vm
    assert (info.name, info.vmm, info.memory_bytes) == ("micro", "firecracker", None)


def test_ranges_of_one_vector_are_recorded_each(tmp_path: Path):
    output = tmp_path / "host.balloon"
    options = ("--mem-size-mib", "5000", "--discard", "vector")
    with firecracker_like(*options) as vm, recording(vm, output, detail="calls"):
        did = vm.send("inflate", 100_000, 60, 2)
    assert did.calls == 1
    rows = open_trace(output).table("calls", Side.HOST).to_pylist()
    assert [(row["gpa"], row["length_bytes"]) for row in rows] == ranges(100_000, 60, 2)
    assert {row["call"] for row in rows} == {Call.PROCESS_MADVISE}
