"""What one guest or its monitor says, however absurd, is its own trace's matter alone."""

import signal

from tests.kernel.all_vms.recording_all import (
    WAIT_S,
    attached,
    pages,
    recording_all,
    trace_of,
    until,
)
from tests.standins.build import qemu_like
from tracer.trace.errors import ExitCode
from tracer.trace.schema import Mark

BEYOND = 1 << 64
"""The stand-in takes a negative number as what it is less than this."""


def test_an_actual_below_zero_ends_no_recording(tmp_path):
    """A guest writes `actual`, and QEMU takes it off the memory's size unseen: here 16 TiB."""
    directory = tmp_path / "traces.d"
    nasty_vm = qemu_like("-m", "256M", "-name", "guest=nasty")
    calm_vm = qemu_like("-m", "256M", "-name", "guest=calm")
    with nasty_vm as nasty, calm_vm as calm, recording_all(directory) as recorder:
        until(lambda: attached(directory, "nasty") and attached(directory, "calm"))
        nasty.send("actual", BEYOND - (16 << 40) + (256 << 20))
        nasty.send("target", BEYOND - 1)
        nasty.send("target", 128 << 20)
        until(lambda: len(targets(trace_of(directory, "nasty"))) == 1)
        calm.send("inflate", 1000, 256, 1)
        nasty.send("inflate", 1000, 512, 1)
        recorder.send_signal(signal.SIGINT)
        assert recorder.wait(WAIT_S) == ExitCode.OK
    assert pages(trace_of(directory, "calm")) == 256
    trace = trace_of(directory, "nasty")
    assert pages(trace) == 512
    marks = trace.table("marks").to_pylist()
    said = [row["value"] for row in marks if row["mark"] == Mark.ACTUAL]
    assert said == [(256 << 20) - (16 << 40)]
    assert targets(trace) == [128 << 20]
    assert set(trace.table("samples")["balloon_actual_bytes"].to_pylist()) == {None}


def targets(trace) -> list[int]:
    rows = trace.table("marks").to_pylist()
    return [row["value"] for row in rows if row["mark"] == Mark.TARGET]
