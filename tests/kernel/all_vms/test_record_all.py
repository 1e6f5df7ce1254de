"""Every VM of a host at once: those that come and go, and those of other VMMs than QEMU."""

import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.compute as pc
import pytest

from tests.kernel.all_vms.recording_all import (
    WAIT_S,
    attached,
    pages,
    recording_all,
    trace_of,
    until,
)
from tests.kernel.recording import recording
from tests.standins.build import configured, firecracker_like, qemu_like
from tracer.engine.vm_probes import Quota
from tracer.trace.errors import ExitCode
from tracer.trace.reader import open_trace
from tracer.trace.schema import Call, Mark

PAGE = 4096


def test_vms_that_start_and_end_are_taken_up_and_closed(tmp_path):
    directory = tmp_path / "traces.d"
    one = qemu_like("-m", "256M", "-name", "guest=first")
    ready = tmp_path / "ready"
    with one as first, recording_all(directory, "--ready-file", str(ready)) as recorder:
        until(ready.exists)
        assert attached(directory, "first"), "ready means that what is there is recorded"
        did = first.send("inflate", 1000, 3000, -1)
        with qemu_like("-m", "256M", "-name", "guest=second") as second:
            until(lambda: attached(directory, "second"))
            also = second.send("inflate", 5000, 700, 1)
        until(lambda: trace_of(directory, "second").is_complete)
        more = first.send("deflate", 1000, 500, -1)
        recorder.send_signal(signal.SIGTERM)
        assert recorder.wait(WAIT_S) == ExitCode.OK
    one, two = trace_of(directory, "first"), trace_of(directory, "second")
    assert one.is_complete
    assert pages(one) == did.pages + more.pages
    assert pages(two) == also.pages
    assert two.manifest.end_reason == "vm-exited"
    assert Mark.VM_EXIT in two.table("marks")["mark"].to_pylist()


def test_what_only_has_a_vmms_name_is_told_and_not_taken(tmp_path):
    directory, named = tmp_path / "traces.d", tmp_path / "firecracker"
    shutil.copy(shutil.which("sleep"), named)
    micro = firecracker_like("--id", "micro", *configured(tmp_path, 256))
    with (
        micro as vm,
        subprocess.Popen([named, "60"]) as other,
        recording_all(directory) as recorder,
    ):
        until(lambda: attached(directory, "micro"))
        did = vm.send("inflate", 1000, 600, 1)
        said = ""
        while f"(pid {other.pid}, firecracker) is not recorded" not in said:
            said = recorder.stderr.readline()
            assert said
        recorder.send_signal(signal.SIGTERM)
        assert recorder.wait(WAIT_S) == ExitCode.OK
        other.kill()
    trace = trace_of(directory, "micro")
    assert pc.sum(trace.table("calls")["count"]).as_py() == did.calls
    assert not list(directory.glob(f"*-{other.pid}-*"))


def test_a_flooding_guest_costs_no_other_vm_an_event(tmp_path):
    directory = tmp_path / "traces.d"
    quiet = qemu_like("-m", "256M", "-name", "guest=quiet")
    noisy = qemu_like("-m", "256M", "-name", "guest=noisy")
    options = ["--detail", "calls", "--ring", "1M", "--quota-records", "20000"]
    with quiet as calm, noisy as flood, recording_all(directory, *options) as recorder:
        until(lambda: attached(directory, "quiet") and attached(directory, "noisy"))
        with ThreadPoolExecutor(1) as worker:
            flooding = worker.submit(flood.send, "flood", 3)
            done = [calm.send("inflate", 256 * number, 256, 1) for number in range(20)]
            flooded = flooding.result()
        recorder.send_signal(signal.SIGINT)
        assert recorder.wait(WAIT_S) == ExitCode.CAPTURE_INCOMPLETE
    calm_trace, flood_trace = trace_of(directory, "quiet"), trace_of(directory, "noisy")
    assert calm_trace.losses == ()
    assert pages(calm_trace) == sum(did.pages for did in done) == 20 * 256
    assert pc.sum(calm_trace.table("calls")["count"]).as_py() == 20 * 256
    lost = [loss for loss in flood_trace.losses if loss.stream == "requests"]
    recorded = flood_trace.table("requests").num_rows
    assert recorded + sum(loss.count for loss in lost) == flooded.requests
    assert {loss.cause for loss in flood_trace.losses} >= {"quota"}


def test_a_vmm_that_executes_another_in_its_place_goes_on_in_the_next_trace(tmp_path):
    directory = tmp_path / "traces.d"
    reborn = qemu_like("-m", "256M", "-name", "guest=reborn")
    other = qemu_like("-m", "256M", "-name", "guest=other")
    with reborn as vm, other as bystander, recording_all(directory) as recorder:
        until(lambda: attached(directory, "reborn") and attached(directory, "other"))
        before = vm.send("inflate", 1000, 256, 1)
        vm.replace()
        until(lambda: attached(directory, "reborn", 2))
        between = vm.send("inflate", 2000, 512, 1)
        vm.replace()  # now with the same arguments
        until(lambda: attached(directory, "reborn", 3))
        after = vm.send("inflate", 3000, 768, 1)
        also = bystander.send("inflate", 1000, 256, 1)
        recorder.send_signal(signal.SIGINT)
        assert recorder.wait(WAIT_S) == ExitCode.OK
    traces = [open_trace(path) for path in sorted(directory.glob("reborn-*.balloon"))]
    assert [trace.manifest.end_reason for trace in traces] == [*["vm-replaced"] * 2, "stopped"]
    moved = [before.pages, between.pages, after.pages]
    assert [pages(trace) for trace in traces] == moved
    assert pc.sum(traces[2].table("calls")["count"]).as_py() == after.calls
    assert all(trace.is_complete for trace in traces)
    assert Mark.VM_EXIT not in traces[0].table("marks")["mark"].to_pylist()
    assert pages(trace_of(directory, "other")) == also.pages


def test_a_vm_that_takes_long_to_end_was_not_replaced(tmp_path):
    """It has no program any more while its memory is freed, and its process is still there."""
    directory = tmp_path / "traces.d"
    large = qemu_like("-m", "256M", "-name", "guest=large")
    with large as vm, recording_all(directory) as recorder:
        until(lambda: attached(directory, "large"))
        vm.fade()
        until(lambda: trace_of(directory, "large").is_complete)
        recorder.send_signal(signal.SIGINT)
        assert recorder.wait(WAIT_S) == ExitCode.OK
    trace = trace_of(directory, "large")
    assert trace.manifest.end_reason == "vm-exited"
    assert Mark.VM_EXIT in trace.table("marks")["mark"].to_pylist()


def test_a_vm_that_was_suspended_goes_on_in_the_next_trace(tmp_path):
    directory = tmp_path / "traces.d"
    sleepy = qemu_like("-m", "256M", "-name", "guest=sleepy")
    with sleepy as vm, recording_all(directory) as recorder:
        until(lambda: attached(directory, "sleepy"))
        vm.send("inflate", 1000, 256, 1)
        vm.send("runstate", 4)
        until(lambda: list(directory.glob("sleepy-*-002.balloon/marks/*")))
        vm.send("runstate", 9)
        vm.send("inflate", 2000, 512, 1)
        recorder.send_signal(signal.SIGINT)
        assert recorder.wait(WAIT_S) == ExitCode.OK
    first, second = (open_trace(path) for path in sorted(directory.glob("sleepy-*.balloon")))
    assert (first.manifest.end_reason, pages(first)) == ("vm-suspended", 256)
    assert (second.manifest.end_reason, pages(second)) == ("stopped", 512)


def test_calls_probed_for_another_vmm_are_in_no_trace_of_requests(tmp_path):
    directory = tmp_path / "traces.d"
    micro = firecracker_like("--id", "micro", *configured(tmp_path, 256))
    with micro as other, recording_all(directory, "--detail", "requests") as recorder:
        until(lambda: attached(directory, "micro"))
        with qemu_like("-m", "256M", "-name", "guest=plain") as vm:
            until(lambda: attached(directory, "plain"))
            did = vm.send("inflate", 1000, 600, 2)
            also = other.send("inflate", 1000, 600, 2)
            recorder.send_signal(signal.SIGINT)
            assert recorder.wait(WAIT_S) == ExitCode.OK
    assert did.calls == also.calls == 600
    requests, calls = trace_of(directory, "plain"), trace_of(directory, "micro")
    assert pages(requests) == did.pages
    assert requests.table("calls").num_rows == 0
    assert requests.table("requests")["discard_calls"].null_count == did.requests
    points = {probe.point for probe in requests.manifest.sides["host"].probes}
    assert "queues-pop" in points
    assert "madvise-enter" not in points
    assert pc.sum(calls.table("calls")["count"]).as_py() == also.calls


@pytest.mark.parametrize(
    ("backing", "discard", "call"),
    [
        ("anon", "madvise", Call.MADVISE),
        ("anon", "remap", Call.MMAP),
        ("anon", "vector", Call.PROCESS_MADVISE),
        ("memfd", "punch", Call.FALLOCATE),
    ],
)
def test_a_vmm_without_known_handlers_is_recorded_by_its_calls(backing, discard, call, tmp_path):
    """Sorted, merged discards over two regions, below and above the hole; others left out."""
    output = tmp_path / "host.balloon"
    argv = ("--id", "micro", "--mem-size-mib", "6144", "--backing", backing, "--discard", discard)
    with firecracker_like(*argv) as vm, recording(vm, output):
        low = vm.send("inflate", 1000, 600, -1)
        high = vm.send("inflate", (5 << 30) // PAGE, 300, 1)
        vm.send("noise", 200)
    trace = open_trace(output)
    assert trace.manifest.vm.vmm == "firecracker"
    assert {region.gpa for region in trace.manifest.regions} == {0, 4 << 30}
    assert trace.table("requests").num_rows == 0
    assert trace.losses == ()
    calls = trace.table("calls").filter(pc.equal(trace.table("calls")["errno"], 0))
    calls = calls.filter(pc.equal(calls["call"], int(call)))
    assert pc.all(pc.is_valid(calls["gpa"])).as_py()
    spans = zip(calls["gpa"].to_numpy() // PAGE, calls["length_bytes"].to_numpy(), strict=True)
    found = np.sort(np.concatenate([np.arange(pfn, pfn + size // PAGE) for pfn, size in spans]))
    wanted = [*range(401, 1001), *range((5 << 30) // PAGE, (5 << 30) // PAGE + 300)]
    assert found.tolist() == wanted
    assert low.pages + high.pages == len(wanted)
    points = {probe.point: probe for probe in trace.manifest.sides["host"].probes}
    assert points["queues-pop"].status == "failed"
    assert "virtqueue_pop" in points["queues-pop"].reason


def test_a_quota_holds_without_requests_too(tmp_path):
    output = tmp_path / "host.balloon"
    quota = Quota(records_per_s=50, bytes_per_s=1 << 30)
    vmm = firecracker_like("--mem-size-mib", "256")
    with vmm as vm, recording(vm, output, detail="calls", quota=quota):
        did = vm.send("flood", 2)
    trace = open_trace(output)
    recorded = pc.sum(trace.table("calls")["count"]).as_py()
    refused = sum(loss.count for loss in trace.losses if loss.cause == "quota")
    assert recorded + refused == did.calls
    assert recorded <= 50 * 4
