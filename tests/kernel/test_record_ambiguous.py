"""`aerostat record` on a QEMU in which two functions fit a handler: refused, and named."""

import re

from tests.kernel.verb import recording
from tests.standins.build import program, qemu_like
from tracer.trace.errors import ExitCode
from tracer.trace.reader import open_trace
from tracer.trace.schema import Queue, Side

QEMU = "qemu-system-x86_64"
DEVICE = ("-device", "virtio-balloon-pci,free-page-reporting=on")
PAGE = 4096


def recorded(output, macro):
    """Record an inflate and a report; the trace, its probes, and what was really done."""
    options = ("-m", "256M", *DEVICE)
    with (
        qemu_like(*options, path=program(QEMU, macro)) as vm,
        recording(vm, output) as recorder,
    ):
        did = [vm.send("inflate", 1000, 600, -1), vm.send("report", "64m", "2m")]
        assert recorder.end() == ExitCode.OK
    trace = open_trace(output)
    assert trace.losses == ()
    return trace, {probe.point: probe for probe in trace.manifest.sides["host"].probes}, did


def assert_refused(probe, name):
    """Two different functions are named, and nothing was attached to either."""
    assert probe.status != "attached"
    found = re.search(rf"cannot find {name} in .*2 functions fit: (0x\w+), (0x\w+)", probe.reason)
    assert found is not None, probe.reason
    assert found[1] != found[2]


def test_two_report_handlers_are_both_left_alone_and_inflates_recorded(tmp_path):
    trace, probes, did = recorded(tmp_path / "host.balloon", "TWO_REPORTS")
    for name in ("reporting-pop", "reporting-push"):
        assert_refused(probes[name], "virtio_balloon_handle_report")
    assert (probes["queues-pop"].status, probes["queues-push"].status) == ("attached", "attached")
    requests = trace.table("requests", Side.HOST).to_pylist()
    assert {row["queue"] for row in requests} == {Queue.INFLATE}
    assert sum(row["pages"] for row in requests) == did[0].pages


def test_two_output_handlers_leave_the_system_calls(tmp_path):
    trace, probes, did = recorded(tmp_path / "host.balloon", "TWO_OUTPUTS")
    for name in ("queues-pop", "queues-push", "reporting-pop"):
        assert_refused(probes[name], "virtio_balloon_handle_output")
    assert trace.table("requests", Side.HOST).num_rows == 0
    calls = trace.table("calls", Side.HOST).to_pylist()
    assert sum(row["count"] for row in calls) == sum(each.calls for each in did) == 601
    assert {row["request_seq"] for row in calls} == {None}
    assert sum(row["count"] * row["length_bytes"] for row in calls) == 600 * PAGE + (2 << 20)
