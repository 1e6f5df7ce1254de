"""`aerostat record` as a user runs it, on a stand-in whose every request is known."""

import os
import signal
import subprocess
import threading
import time
import urllib.request

import numpy as np
import pyarrow.compute as pc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.kernel.verb import WAIT_S, recording, refused, until
from tests.standins.build import qemu_like
from tracer.trace.check import check_trace
from tracer.trace.errors import ExitCode
from tracer.trace.reader import Trace, open_trace
from tracer.trace.schema import Mark

S = 10**9


def marks(trace: Trace, mark: Mark) -> list[dict]:
    return [row for row in trace.table("marks").to_pylist() if row["mark"] == mark]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_recording_in_order(number, tmp_path):
    output = tmp_path / "host.balloon"
    with qemu_like("-m", "256M") as vm, recording(vm, output) as recorder:
        did = vm.send("inflate", 1000, 5000, -1)
        assert recorder.end(number) == ExitCode.OK
    trace = open_trace(output)
    assert trace.is_complete
    assert pc.sum(trace.table("requests")["pages"]).as_py() == did.pages == 5000


@pytest.mark.parametrize("is_second", [False, True], ids=["other arguments", "the same"])
def test_a_vmm_that_executes_another_in_its_place_ends_the_trace(is_second, tmp_path):
    bundles = [tmp_path / name for name in ("a.balloon", "b.balloon")]
    with qemu_like("-m", "256M", "-name", "guest=reborn") as vm:
        if is_second:
            vm.replace()
        with recording(vm, bundles[0], "--sample-every", "100ms") as recorder:
            before = vm.send("inflate", 1000, 256, 1)
            vm.replace()
            assert recorder.process.wait(WAIT_S) == ExitCode.OK
            said = recorder.process.stderr.read()
        with recording(vm, bundles[1]) as again:
            after = vm.send("inflate", 2000, 512, 1)
            assert again.end() == ExitCode.OK
    assert f"reborn (pid {vm.pid}) is recorded no further" in said
    assert f"aerostat record again with --pid {vm.pid}" in said
    traces = [open_trace(bundle) for bundle in bundles]
    assert all(trace.is_complete for trace in traces)
    assert [trace.manifest.end_reason for trace in traces] == ["vm-replaced", "stopped"]
    pages = [pc.sum(trace.table("requests")["pages"]).as_py() for trace in traces]
    assert pages == [before.pages, after.pages]
    assert marks(traces[0], Mark.VM_EXIT) == []


def test_two_recorders_of_one_vm_each_see_everything(tmp_path):
    bundles = [tmp_path / name for name in ("a.balloon", "b.balloon")]
    with (
        qemu_like("-m", "256M") as vm,
        recording(vm, bundles[0]) as first,
        recording(vm, bundles[1]) as second,
    ):
        did = vm.send("inflate", 1000, 5000, -1)
        assert [first.end(), second.end()] == [ExitCode.OK, ExitCode.OK]
    tables = [open_trace(bundle).table("requests") for bundle in bundles]
    assert tables[0]["runs"] == tables[1]["runs"]
    assert tables[0].num_rows == did.requests
    assert pc.sum(tables[0]["discard_calls"]).as_py() == did.calls


def test_differences_tell_the_same_and_take_less(tmp_path):
    """Every third page, as a fragmented guest gives them: each is a call of its own."""
    bundles = [tmp_path / name for name in ("plain.balloon", "delta.balloon")]
    with (
        qemu_like("-m", "512M") as vm,
        recording(vm, bundles[0]) as plain,
        recording(vm, bundles[1], "--delta") as delta,
    ):
        did = vm.send("inflate", 1000, 30_000, 3)
        assert [plain.end(), delta.end()] == [ExitCode.OK, ExitCode.OK]
    traces = [open_trace(bundle) for bundle in bundles]
    assert traces[0].table("requests")["runs"] == traces[1].table("requests")["runs"]
    for name in ("request_seq", "tid", "hva", "gpa", "length_bytes", "count"):
        assert traces[0].table("calls")[name] == traces[1].table("calls")[name], name
    assert traces[1].table("calls").num_rows == did.calls == 30_000
    assert check_trace(traces[1]) == []
    sizes = [sum(item.stat().st_size for item in path.rglob("*.arrow")) for path in bundles]
    assert sizes[1] < sizes[0] / 2


def test_two_recorders_cannot_share_a_bundle(tmp_path):
    output = tmp_path / "host.balloon"
    with qemu_like("-m", "256M") as vm, recording(vm, output) as recorder:
        for options in ([], ["--force"]):
            code, said = refused(vm.pid, output, *options)
            assert code == ExitCode.FAILURE
            assert str(output) in said
        vm.send("inflate", 1000, 256, 1)
        assert recorder.end() == ExitCode.OK
    assert open_trace(output).table("requests").num_rows == 1


@pytest.mark.parametrize("form", [(), ("--delta",)])
def test_the_flight_recorder_keeps_what_was_before_a_signal_and_goes_on(form, tmp_path):
    output = tmp_path / "host.balloon"
    first, second = (tmp_path / f"host-0000{number}.balloon" for number in (1, 2))
    options = ["--flight", "60s", "--sample-every", "100ms", *form]
    with qemu_like("-m", "256M") as vm, recording(vm, output, *options) as recorder:
        vm.send("inflate", 1000, 256, 1)
        recorder.process.send_signal(signal.SIGUSR1)
        until((first / "manifest.json").exists)
        time.sleep(0.5)
        vm.send("inflate", 2000, 512, 1)
        recorder.process.send_signal(signal.SIGUSR1)
        until((second / "manifest.json").exists)
        time.sleep(0.5)
        assert recorder.end() == ExitCode.OK
    assert not output.exists()
    for bundle, requests in ((first, 1), (second, 3)):
        trace = open_trace(bundle)
        assert trace.is_complete
        assert trace.table("requests").num_rows == requests
        assert "SIGUSR1" in marks(trace, Mark.TRIGGER)[0]["text"]
        assert not [f for f in check_trace(trace) if f.severity == "error"]
        assert bool(trace.segments_of_form(delta=True)) is bool(form)


def test_the_flight_recorder_keeps_what_led_to_a_stuck_target(tmp_path):
    output = tmp_path / "host.balloon"
    kept = tmp_path / "host-00001.balloon"
    options = ["--flight", "60s", "--stuck", "3s", "--sample-every", "100ms"]
    with qemu_like("-m", "1G") as vm, recording(vm, output, *options) as recorder:
        vm.send("actual", 1 << 30)
        vm.send("target", 512 << 20)
        vm.send("inflate", 1000, 256, 1)
        vm.send("actual", (1 << 30) - (1 << 20))
        until((kept / "manifest.json").exists)
        time.sleep(0.5)
        assert recorder.end() == ExitCode.OK
    trace = open_trace(kept)
    assert (
        "stuck" in marks(trace, Mark.TRIGGER)[0]["text"]
        or "short" in (marks(trace, Mark.TRIGGER)[0]["text"])
    )
    assert marks(trace, Mark.TARGET)[0]["value"] == 512 << 20


def test_the_flight_recorder_keeps_what_led_to_a_request_that_does_not_end(tmp_path):
    """The VMM is stopped in the middle of one; what it does once it goes on is no second stall."""
    output = tmp_path / "host.balloon"
    kept = tmp_path / "host-00001.balloon"
    options = ["--flight", "60s", "--stall", "1s", "--sample-every", "100ms"]
    with qemu_like("-m", "256M") as vm, recording(vm, output, *options) as recorder:
        vm.send("inflate", 1000, 512, 1)
        hung = threading.Thread(target=vm.send, args=("hang", 2000, 256))
        hung.start()
        try:
            until((kept / "manifest.json").exists)
            time.sleep(2)  # it goes on to hang, and is told of once
        finally:
            os.kill(vm.pid, signal.SIGCONT)
            hung.join()
        time.sleep(2)
        assert recorder.end() == ExitCode.OK
    assert [path.name for path in tmp_path.glob("*.balloon")] == [kept.name]
    trace = open_trace(kept)
    assert trace.manifest.end_reason == "trigger: stall"
    assert trace.table("requests").num_rows == 2
    (trigger,) = marks(trace, Mark.TRIGGER)
    assert "a request of the inflate or deflate queue is with the host" in trigger["text"]
    assert 1 * S < trigger["value"] < 60 * S


@pytest.mark.parametrize("is_orderly", [False, True])
def test_the_flight_recorder_keeps_the_last_seconds_of_a_vm_that_is_killed(is_orderly, tmp_path):
    output = tmp_path / "host.balloon"
    kept = tmp_path / "host-00001.balloon"
    with qemu_like("-m", "256M") as vm, recording(vm, output, "--flight", "60s") as recorder:
        did = vm.send("inflate", 1000, 5000, -1)
        if is_orderly:
            vm.send("runstate", 11)
            vm.end()
        else:
            os.kill(vm.pid, signal.SIGKILL)
        assert recorder.process.wait(WAIT_S) == ExitCode.OK
    assert kept.exists() is not is_orderly
    if is_orderly:
        return
    trace = open_trace(kept)
    assert trace.manifest.end_reason == "trigger: vm-exit"
    assert pc.sum(trace.table("requests")["pages"]).as_py() == did.pages
    assert pc.sum(trace.table("calls")["count"]).as_py() == did.calls
    assert [row["text"] for row in marks(trace, Mark.VM_EXIT)] == [f"pid {vm.pid} ended"]
    lines = {line.name: line.status for line in trace.manifest.ledger}
    assert lines["inflate: host discarded"] == "equal"


def test_a_dump_by_itself_holds_the_calls_of_its_requests(tmp_path):
    """Requests and calls are gathered apart: what waits is taken in before a dump begins."""
    output = tmp_path / "host.balloon"
    kept = tmp_path / "host-00001.balloon"
    options = ["--flight", "60s", "--stall", "1ms", "--detail", "calls"]
    with qemu_like("-m", "1G") as vm, recording(vm, output, *options) as recorder:
        vm.send("size", 1024)
        vm.send("touch", "16m", "512m")
        vm.send("inflate", 4096, 100_000, 1)
        until((kept / "manifest.json").exists)
        vm.send("inflate", 4096, 50_000, 1)
        assert recorder.end() == ExitCode.OK
    trace = open_trace(kept)
    assert "stall" in marks(trace, Mark.TRIGGER)[0]["text"]
    requests = trace.table("requests")
    assert (
        pc.sum(trace.table("calls")["count"]).as_py() == pc.sum(requests["discard_calls"]).as_py()
    )


def test_a_full_disk_closes_the_trace_and_says_so(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(small)], check=True)
    output = small / "host.balloon"
    try:
        with (
            qemu_like("-m", "256M") as vm,
            recording(vm, output, "--detail", "calls") as recorder,
        ):
            vm.send("flood", 8)
            code = recorder.process.wait(WAIT_S)
            said = recorder.process.stderr.read()
        trace = open_trace(output)
        assert trace.is_complete
        assert trace.manifest.end_reason == "disk-full"
        assert {loss.cause for loss in trace.losses} >= {"disk"}
        assert code == ExitCode.CAPTURE_INCOMPLETE
        assert str(output) in said
        assert trace.table("requests").num_rows > 0
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_target_that_cannot_be_written_is_refused_before_anything_is_probed(tmp_path):
    fixed = tmp_path / "fixed"
    fixed.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(fixed)], check=True)
    try:
        with qemu_like("-m", "256M") as vm:
            code, said = refused(vm.pid, fixed / "host.balloon")
    finally:
        subprocess.run(["umount", str(fixed)], check=True)
    assert code == ExitCode.FAILURE
    assert "Read-only" in said


@pytest.mark.parametrize("ring", ["1000", "12K", "2K"])
def test_a_ring_that_is_no_ring_is_wrong_usage(ring, tmp_path):
    code, said = refused(os.getpid(), tmp_path / "host.balloon", "--ring", ring)
    assert code == ExitCode.USAGE
    assert "power of two" in said


def test_metrics_tell_what_the_trace_holds(tmp_path):
    output, file = tmp_path / "host.balloon", tmp_path / "aerostat.prom"
    options = ["--metrics-file", str(file), "--sample-every", "100ms"]

    def moved_bytes() -> float:
        families = text_string_to_metric_families(file.read_text())
        samples = [sample for family in families for sample in family.samples]
        named = [sample for sample in samples if sample.name == "aerostat_moved_bytes_total"]
        return sum(sample.value for sample in named if sample.labels["vm"] == "web")

    with (
        qemu_like("-m", "256M", "-name", "guest=web") as vm,
        recording(vm, output, *options) as recorder,
    ):
        did = vm.send("inflate", 1000, 5000, -1)
        until(lambda: moved_bytes() == 4096 * did.pages)
        assert recorder.end() == ExitCode.OK
    assert not file.exists()


def test_samples_come_as_often_as_they_were_asked_for(tmp_path):
    output = tmp_path / "host.balloon"
    options = ("--sample-every", "100ms", "--duration", "3s")
    with qemu_like("-m", "256M") as vm, recording(vm, output, *options) as recorder:
        assert recorder.process.wait(WAIT_S) == ExitCode.OK
    taken_ns = open_trace(output).table("samples")["ts_ns"].to_numpy()
    assert 18 <= len(taken_ns) <= 32
    assert np.diff(taken_ns).min() > 0.05 * S


def test_an_endpoint_answers_prometheus(tmp_path, unused_port):
    output = tmp_path / "host.balloon"
    options = ["--metrics-listen", f"127.0.0.1:{unused_port}"]
    with (
        qemu_like("-m", "256M", "-name", "guest=web") as vm,
        recording(vm, output, *options) as recorder,
    ):
        text = urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/metrics").read()
        assert recorder.end() == ExitCode.OK
    assert b"aerostat_build_info" in text


def test_a_suspended_vm_ends_its_trace_with_a_mark(tmp_path):
    output = tmp_path / "host.balloon"
    with qemu_like("-m", "256M") as vm, recording(vm, output) as recorder:
        vm.send("inflate", 1000, 256, 1)
        vm.send("runstate", 4)
        assert recorder.process.wait(WAIT_S) == ExitCode.OK
    trace = open_trace(output)
    assert trace.manifest.end_reason == "vm-suspended"
    assert [row["text"] for row in marks(trace, Mark.RUN_STATE)] == ["paused"]


def test_a_migrated_vm_ends_its_trace_with_a_mark(tmp_path):
    output = tmp_path / "host.balloon"
    with qemu_like("-m", "256M") as vm, recording(vm, output) as recorder:
        vm.send("runstate", 7)
        vm.send("runstate", 5)
        assert recorder.process.wait(WAIT_S) == ExitCode.OK
    trace = open_trace(output)
    assert trace.manifest.end_reason == "vm-migrated"
    assert [row["text"] for row in marks(trace, Mark.RUN_STATE)] == [
        "finish-migrate",
        "postmigrate",
    ]
