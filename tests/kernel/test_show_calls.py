"""What `aerostat show` says of a VMM whose handlers are unknown, against what that VMM counted."""

import json
from pathlib import Path

import pytest

from aerostat.cli import main
from tests.kernel.recording import recording
from tests.standins.build import firecracker_like
from tracer.trace.errors import ExitCode

CALLS = {"madvise": "DONTNEED", "fallocate": "PUNCH_HOLE", "mmap": "FIXED|ANONYMOUS"}
WAYS = {"madvise": "madvise", "punch": "fallocate", "remap": "mmap"}


@pytest.mark.parametrize("detail", ["discards", "calls"])
@pytest.mark.parametrize("way", WAYS)
def test_every_call_byte_and_run_of_a_stranger_is_summed(way, detail, tmp_path: Path, capsys):
    output = tmp_path / "micro.balloon"
    backing = "memfd" if way == "punch" else "anon"
    options = ("--mem-size-mib", "256", "--discard", way, "--backing", backing)
    with firecracker_like("--id", "micro", *options) as vm, recording(vm, output, detail=detail):
        whole = vm.send("inflate", 10_000, 4096, 1)
        single = vm.send("inflate", 30_000, 500, 3)
        blocks = vm.send("report", "64m", "2m", "128m", "4m")
        vm.send("noise", 50)
    did = [whole, single, blocks]
    assert main(["show", str(output), "--json"]) == ExitCode.OK
    document = json.loads(capsys.readouterr().out)
    (item,) = document["discards"]
    assert (item["call"], item["advice"]) == (WAYS[way], CALLS[WAYS[way]])
    assert item["on_guest_memory"] is True
    assert (item["calls"], item["failed"]) == (sum(each.calls for each in did), 0)
    assert item["bytes"] == sum(each.call_bytes for each in did)
    # 4096 pages in two batches without a gap, 500 single pages, two blocks.
    assert item["runs"] == 1 + 500 + 2
    assert 0 < item["worst_ns"] <= item["total_ns"]
    host = document["scope"][0]
    assert (host["side"], host["detail"]) == ("host", detail)
    assert "virtqueue" in host["lacks"]
    assert document["stages"] == document["runs"] == []
    assert document["ledger"]["balanced"] is None
    assert "system calls alone" in document["ledger"]["why_open"]


def test_without_requests_whatif_and_replay_say_what_is_missing_and_what_to_do(tmp_path, capsys):
    output = tmp_path / "micro.balloon"
    with firecracker_like("--mem-size-mib", "128") as vm, recording(vm, output):
        vm.send("inflate", 1000, 600, 1)
    for verb in ("whatif", "replay"):
        assert main([verb, str(output)]) == ExitCode.FAILURE
        err = capsys.readouterr().err
        assert "holds no requests, only system calls" in err
        assert "record in the guest" in err
