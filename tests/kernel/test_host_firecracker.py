"""A VMM without a known symbol that sorts and merges as Firecracker does: all it shows is calls."""

from pathlib import Path

import pytest

from tests.kernel import verb
from tests.kernel.recording import recording
from tests.standins.build import firecracker_like
from tracer.trace.errors import ExitCode
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


@pytest.mark.parametrize("detail", ["discards", "calls"])
@pytest.mark.parametrize("pieces", [60, 64, 65, 1000, 1024])
def test_every_piece_of_a_vector_is_recorded(tmp_path: Path, pieces, detail):
    """A run of the program looks at 64, and the kernel takes 1024 at most (UIO_MAXIOV)."""
    output = tmp_path / "host.balloon"
    options = ("--mem-size-mib", "5000", "--discard", "vector")
    with (
        firecracker_like(*options) as vm,
        verb.recording(vm, output, "--detail", detail) as recorder,
    ):
        did = vm.send("inflate", 100_000, pieces, 2)
        again = vm.send("inflate", 200_000, 3, 2)
        assert recorder.end() == ExitCode.OK
    assert (did.calls, again.calls) == (1, 1)
    trace = open_trace(output)
    assert trace.losses == ()
    rows = trace.table("calls", Side.HOST).to_pylist()
    found = [(row["gpa"], row["length_bytes"]) for row in rows]
    assert found == ranges(100_000, pieces, 2) + ranges(200_000, 3, 2)
    assert {row["call"] for row in rows} == {Call.PROCESS_MADVISE}
    heads = [(index, row["pieces"]) for index, row in enumerate(rows) if row["pieces"]]
    assert heads == [(0, pieces), (pieces, 3)]
    assert [index for index, row in enumerate(rows) if row["total_ns"]] == [0, pieces]
    probes = {probe.point: probe for probe in trace.manifest.sides["host"].probes}
    assert probes["process_madvise-exit"].hits == 2
