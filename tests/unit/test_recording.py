"""What a recorder tells: to a reader that is gone, of VMs that end, and of traces that are bad."""

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from aerostat.progress import progress_on_stderr
from aerostat.recording import Ended, Listeners, listeners
from tests.unit.capture_bundle import write_host
from tracer.host_side.host_session import Ended as HostEnded
from tracer.record.flight_dump import Dump
from tracer.trace.errors import AerostatError, CaptureIncompleteError, TraceError
from tracer.trace.layout import lock, read_manifest
from tracer.vms.vmm import Vmm


def vmm(name: str, pid: int = 7) -> Vmm:
    return Vmm(
        pid=pid,
        exe=Path("/usr/bin/qemu-system-x86_64"),
        arguments=(),
        name=name,
        uuid=None,
        memory_bytes=None,
        vcpus=None,
        machine="",
        accel=None,
        kind="qemu",
        manager=None,
        start_ticks=1,
    )


@pytest.fixture
def told(tmp_path: Path) -> Listeners:
    return Listeners(tmp_path, None, None, quiet=False)


@pytest.fixture
def nobody_reads(monkeypatch):
    """Make standard error a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        yield
        monkeypatch.undo()


def test_quiet_leaves_out_what_goes_well_and_nothing_else(tmp_path: Path, capsys) -> None:
    """A service's journal has what it says and no exit code, for as long as it runs."""
    bundle = write_host(tmp_path / "a.balloon")
    problem = TraceError("cannot write it", reason="No space left on device")
    said = {}
    for quiet in (False, True):
        told = Listeners(tmp_path, tmp_path / "gone" / "ready", None, quiet=quiet)
        ended = Ended(told)
        told.ready()
        for reason in ("vm-exited", "disk-full", "budget"):
            ended.take(HostEnded(vmm(reason), bundle, reason))
        ended.take(HostEnded(vmm("refused"), None, "", AerostatError("no probe attaches")))
        told.dumped(Dump(bundle, "stall", 0, None))
        told.dumped(Dump(bundle, "stuck", 0, problem))
        told.doubt(vmm("sleep"))
        with pytest.raises(CaptureIncompleteError):
            ended.judge([])
        said[quiet] = capsys.readouterr().err.splitlines()
    dropped = [line for line in said[False] if line not in said[True]]
    assert dropped == [
        f"aerostat: recording to {tmp_path}; Ctrl-C ends it",
        f"aerostat: vm-exited (pid 7): vm-exited; see: aerostat show {bundle}",
    ]
    kept = "\n".join(said[True])
    for words in ("cannot make", "7): disk-full", "7): budget", "is not recorded: no probe"):
        assert words in kept
    for words in ("kept ", "stall", "No space left", "sleep (pid 7, qemu) is not recorded"):
        assert words in kept


def test_no_trace_is_named_that_was_never_made(told: Listeners, capsys) -> None:
    """A flight recorder makes others, and says so when it does."""
    ended = Ended(told)
    ended.take(HostEnded(vmm("web"), None, "vm-exited"))
    ended.judge([])
    assert capsys.readouterr().err == "aerostat: web (pid 7): vm-exited\n"


@pytest.mark.usefixtures("nobody_reads")
def test_a_reader_that_is_gone_ends_no_recording(told: Listeners) -> None:
    told.ready()
    told.say("still here")
    with progress_on_stderr(verbose=True) as progress:
        progress("record")


def test_a_ready_file_that_cannot_be_made_ends_no_recording(tmp_path: Path, capsys) -> None:
    gone = tmp_path / "gone" / "ready"
    Listeners(tmp_path, gone, None, quiet=False).ready()
    assert f"cannot make {gone}: No such file or directory" in capsys.readouterr().err


def test_a_ready_file_without_a_directory_is_refused_first(tmp_path: Path) -> None:
    given = {
        "ready_file": tmp_path / "gone" / "ready",
        "metrics_file": None,
        "metrics_listen": None,
        "output": tmp_path,
        "quiet": True,
    }
    with pytest.raises(AerostatError, match="no directory"), listeners(given):
        pass


def test_what_a_vm_calls_itself_cannot_write_to_the_terminal(told: Listeners, capsys) -> None:
    ended = Ended(told)
    ended.take(HostEnded(vmm("\x1b]0;owned\x07"), None, "vm-exited"))
    told.say("\x1b[2J")
    assert "\x1b" not in capsys.readouterr().err
    ended.judge([])


def test_ledgers_are_closed_while_the_others_are_recorded(told: Listeners, tmp_path: Path) -> None:
    bundle = write_host(tmp_path / "a.balloon")
    assert read_manifest(bundle).ledger is None
    held = threading.Event()
    ended = Ended(told)
    ended._settling.submit(held.wait)  # as long as a large trace takes
    begin_s = time.monotonic()
    ended.take(HostEnded(vmm("a"), bundle, "vm-exited"))
    assert time.monotonic() - begin_s < 1
    assert read_manifest(bundle).ledger is None
    held.set()
    ended.judge([])
    assert read_manifest(bundle).ledger


def test_one_trace_that_cannot_be_settled_ends_no_other(told: Listeners, tmp_path: Path) -> None:
    gone, busy = tmp_path / "gone.balloon", write_host(tmp_path / "busy.balloon")
    descriptor = lock(busy)
    ended = Ended(told)
    for bundle in (gone, busy):
        ended.take(HostEnded(vmm(bundle.name), bundle, "vm-exited"))
    with pytest.raises(CaptureIncompleteError, match="2 recordings are not whole") as raised:
        ended.judge([])
    os.close(descriptor)
    assert f"{gone}: " in raised.value.reason
    assert "being written" in raised.value.reason


def test_what_is_told_of_thousands_of_vms_is_bounded(told: Listeners, tmp_path: Path) -> None:
    error = AerostatError("cannot record it")
    quiet = Listeners(tmp_path, None, None, quiet=True)
    ended = Ended(quiet)
    for number in range(3000):
        ended.take(HostEnded(vmm(f"vm-{number}"), None, "failed", error))
    with pytest.raises(CaptureIncompleteError, match="3000 recordings") as raised:
        ended.judge([])
    assert raised.value.reason.count("cannot record it") == 5
    for number in range(40):
        bundle = tmp_path / f"x-{number:05}.balloon"
        bundle.mkdir()
        quiet.dumped(Dump(bundle, "signal", 0, None))
        if number >= 16:
            (tmp_path / f"x-{number - 16:05}.balloon").rmdir()
    assert len(quiet._kept) <= 17
