"""A replay recorded by the real probes on this kernel: every call of every run, or an error."""

import json
import mmap
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from aerostat.cli import main
from aerostat.probed import attached, require_probes
from replay.faithful import measure_fidelity
from replay.probed import Held
from tests.kernel.as_user import failure
from tests.memory.conftest import DISCARD_NS, HOST, INFLATED_PAGES, write_trace
from tests.unit.test_cli_traces import documented_keys, keys_of
from tracer.engine.privilege import Capability
from tracer.sites.probes import Kind
from tracer.trace.errors import CaptureIncompleteError, ExitCode
from tracer.trace.manifest import ProbeRecord

BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
PAGE = mmap.PAGESIZE
DEFLATED_PAGES = INFLATED_PAGES // 4
RAW = Kind.RAW_TRACEPOINT.value


def host(detail: str | None, way: str, boot_id: str | None = BOOT_ID):
    points = ("madvise-enter", "madvise-exit", "fallocate-enter", "fallocate-exit")
    probes = tuple(ProbeRecord(point, way, "", "attached") for point in points)
    return replace(HOST, detail=detail, probes=probes, boot_id=boot_id)


@pytest.mark.parametrize("detail", ["calls", "discards"])
@pytest.mark.parametrize("backing", ["anon", "memfd"])
def test_every_call_of_every_run_is_recorded_in_the_traces_detail(tmp_path, detail, backing):
    # Of a file QEMU both gives advice and punches a hole.
    punched = INFLATED_PAGES if backing == "memfd" else 0
    path = write_trace(
        tmp_path / "t.balloon", backing=backing, extra_calls=punched, host=host(detail, RAW)
    )
    found = measure_fidelity(path, runs=2, attach=attached)
    assert (found.probed.detail, found.probed.same_boot) == (detail, True)
    inflate, deflate = found.queues
    assert (inflate.operations, deflate.operations) == (INFLATED_PAGES + punched, DEFLATED_PAGES)
    recorded_ns = (INFLATED_PAGES + DEFLATED_PAGES) * DISCARD_NS
    sums_ns = [0, 0]
    for queue in found.queues:
        probed = queue.probed
        own_ns = [
            ran - lost for ran, lost in zip(probed.recorded_ns, probed.lost_cpu_ns, strict=True)
        ]
        assert min(own_ns) > 0
        assert min(probed.lost_cpu_ns) >= 0
        beside_ns = queue.interrupts_ns + queue.lost_cpu_ns
        assert probed.counted_ns == pytest.approx(sum(own_ns) / 2 + beside_ns, abs=1)
        assert probed.ratio == probed.counted_ns / queue.recorded_ns
        sums_ns = [sum_ns + ns + beside_ns for sum_ns, ns in zip(sums_ns, own_ns, strict=True)]
    ratio = found.probed.ratio
    assert (ratio.low, ratio.high) == (min(sums_ns) / recorded_ns, max(sums_ns) / recorded_ns)
    assert ratio.median == pytest.approx(sum(sums_ns) / 2 / recorded_ns)


@pytest.mark.parametrize("way", [Kind.TRACEPOINT.value, RAW])
def test_probes_are_of_the_kinds_that_the_trace_was_recorded_with(way):
    with attached({"madvise-enter": way, "madvise-exit": way}, "calls") as recorder:
        used = {use.point: use for use in recorder.probes}
    for point in ("madvise-enter", "madvise-exit"):
        assert (used[point].way, used[point].recorded_way, used[point].reason) == (way, way, "")
    assert used["fallocate-enter"].recorded_way is None


def test_a_kind_that_does_not_work_here_is_named_with_the_reason():
    with attached({"madvise-enter": "a probe of Mars"}, "calls") as recorder:
        used = {use.point: use for use in recorder.probes}
    assert used["madvise-enter"].recorded_way == "a probe of Mars"
    assert used["madvise-enter"].way in {kind.value for kind in Kind}


def test_a_call_that_is_lost_fails_the_run(tmp_path, monkeypatch):
    # One page holds 63 calls; a request has 256.
    monkeypatch.setattr("aerostat.probed.ring_bytes", lambda _: mmap.PAGESIZE)
    path = write_trace(tmp_path / "t.balloon", host=host("calls", RAW))
    with pytest.raises(CaptureIncompleteError, match="calls of the replay were lost"):
        measure_fidelity(path, runs=1, attach=attached)


@pytest.mark.parametrize("detail", ["calls", "discards"])
def test_calls_have_their_place_in_the_memory_and_others_have_none(pages, detail):
    memory, address = pages
    begin, size = 100, 50
    held = Held(
        os.getpid(), threading.get_native_id(), address + begin * PAGE, size_bytes=size * PAGE
    )
    with attached({}, detail) as recorder:
        recorder.begin(held)
        for page in (98, 100, 102, 149, 151):
            memory.madvise(mmap.MADV_DONTNEED, page * PAGE, PAGE)
        for page in (120, 121):
            memory.madvise(mmap.MADV_DONTNEED, page * PAGE, PAGE)
        other = threading.Thread(target=memory.madvise, args=(mmap.MADV_DONTNEED, 110 * PAGE, PAGE))
        other.start()
        other.join()
        rows = recorder.end()
        memory.madvise(mmap.MADV_DONTNEED, 130 * PAGE, PAGE)
        recorder.begin(held)
        again = recorder.end()
    assert again.num_rows == 0
    apart = [None, 0, 2 * PAGE, 49 * PAGE, None]
    alone = detail == "calls"
    assert rows["gpa"].to_pylist() == [*apart, 20 * PAGE, *([21 * PAGE] if alone else [])]
    assert rows["count"].to_pylist() == [1] * 5 + ([1, 1] if alone else [2])


def test_the_command_draws_it_and_writes_it(tmp_path, capsys):
    elsewhere = write_trace(tmp_path / "far.balloon", host=host("discards", "fentry", "other"))
    untold = write_trace(tmp_path / "untold.balloon")
    arguments = ["replay", "--fidelity", "--probed", str(elsewhere), str(untold), "--runs", "1"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "recorded alike" in out
    assert "adjacent calls merged" in out
    assert "by what then is not told" in out
    assert "far.balloon was not recorded on this machine since it was started" in out
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert keys_of(document) <= documented_keys("replay")
    far, near = document["traces"]
    assert (far["probed"]["same_boot"], near["probed"]["same_boot"]) == (False, None)
    assert [probe["recorded_way"] for probe in far["probed"]["probes"]] == ["fentry"] * 4
    assert near["probed"]["detail"] == "discards"
    for queue in (*far["queues"], *near["queues"]):
        assert len(queue["probed"]["recorded_ns"]) == len(queue["probed"]["lost_cpu_ns"]) == 1
    assert far["probed"]["ratio"]["low"] is None


def test_a_trace_whose_calls_are_not_the_strategys_is_not_recorded_alike(tmp_path, capsys):
    path = write_trace(tmp_path / "t.balloon", extra_calls=1, host=host("calls", RAW))
    assert main(["replay", "--fidelity", "--probed", str(path), "--runs", "1", "--json"]) == 0
    (trace,) = json.loads(capsys.readouterr().out)["traces"]
    assert (trace["probed"], trace["queues"]) == (None, [])


BPF, PERFMON = Capability.CAP_BPF, Capability.CAP_PERFMON
TRACEFS = Capability.CAP_DAC_READ_SEARCH


def test_an_ordinary_user_is_refused_before_anything_is_run(tmp_path):
    def act() -> None:
        assert main(["replay", "--fidelity", "--probed", str(path)]) == ExitCode.MISSING_PRIVILEGE
        require_probes()

    path = write_trace(tmp_path / "t.balloon")
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    said = failure((), act)
    assert said.startswith("MissingPrivilegeError: cannot record the replay")
    assert "lacks CAP_PERFMON, CAP_BPF" in said
    assert "sudo" in said


def test_three_capabilities_are_enough():
    def act() -> None:
        with attached({}, "discards") as recorder:
            recorder.begin(Held(os.getpid(), threading.get_native_id(), 0, 0))
            assert recorder.end().num_rows == 0

    assert failure((BPF, PERFMON, TRACEFS), act) == ""
    assert "CAP_" in failure((PERFMON, TRACEFS), require_probes)
