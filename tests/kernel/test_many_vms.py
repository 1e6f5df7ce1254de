"""Many VMs, and threads: a program is read once for all of its VMs, and no room is a loss."""

import contextlib
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kernel.conftest import NO_SITES, RING_BYTES
from tests.standins.build import qemu_like
from tracer.engine.host_engine import HostEngine
from tracer.engine.vm_probes import Quota, Target
from tracer.errors import ProbeError
from tracer.host_side.host import VmOptions, record_host
from tracer.sites import host_probes
from tracer.trace.reader import open_trace
from tracer.vms.vmm import inspect


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(host_probes, "_kept", {})


def test_a_program_is_read_for_the_first_of_its_vms(monkeypatch):
    read = []
    really = host_probes._read_sites
    monkeypatch.setattr(
        host_probes, "_read_sites", lambda pid, exe: read.append(pid) or really(pid, exe)
    )
    first, second = (qemu_like("-m", "64M", "-name", name) for name in ("a", "b"))
    with first as one, second as two:
        sites = [host_probes.find_sites(vm.pid) for vm in (one, two, one)]
        assert read == [one.pid]
        assert [each.exe for each in sites] == [
            Path(f"/proc/{vm.pid}/exe") for vm in (one, two, one)
        ]
        assert sites[0].file_offsets == sites[1].file_offsets


def test_a_file_that_was_written_to_is_another_program(tmp_path: Path):
    program = tmp_path / "program"
    shutil.copyfile("/bin/true", program)
    before = host_probes._identity(program)
    time.sleep(0.02)
    with program.open("r+b") as file:
        file.write(b"\x7fELF")
    stamp = program.stat().st_mtime
    os.utime(program, (stamp, stamp))
    assert host_probes._identity(program) not in (None, before)
    assert host_probes._identity(tmp_path / "gone") is None


def test_programs_are_not_kept_without_end(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(host_probes, "_read_sites", lambda pid, exe: _no_sites(exe))
    numbers = iter(range(100))
    monkeypatch.setattr(host_probes, "_identity", lambda exe: _in_pairs(numbers))
    for _ in range(40):
        host_probes.find_sites(1)
    assert len(host_probes._kept) <= host_probes._KEPT_PROGRAMS


def _in_pairs(numbers) -> tuple[int, int, int, int]:
    return (0, next(numbers) // 2, 0, 0)


def _no_sites(exe: Path) -> host_probes.QemuSites:
    return host_probes.QemuSites(exe, None, None, (), {}, 0, {})


def test_a_process_that_is_recorded_is_not_taken_a_second_time():
    with HostEngine(calls=False) as engine:
        target = Target(os.getpid(), NO_SITES, (), (), True, RING_BYTES, RING_BYTES, Quota())
        probes = engine.add(target)
        with pytest.raises(ProbeError) as error:
            engine.add(target)
        assert "already" in error.value.reason
        assert sum(probes.counts()) == 0
        probes.close()
        engine.add(target).close()


def test_a_request_of_a_thread_that_there_is_no_room_for_is_a_lost_request(monkeypatch, tmp_path):
    monkeypatch.setattr(host_probes, "MAX_THREADS", 8)
    output = tmp_path / "host.balloon"
    with qemu_like("-m", "64M", "-device", "virtio-balloon-pci") as vm:
        stop, taken = threading.Event(), threading.Event()
        # Without system calls, whose cost is measured with a thread of this process.
        options = VmOptions(vmm=inspect(vm.pid), output=output, ready=taken.set, detail="requests")
        with full_of_threads(monkeypatch), ThreadPoolExecutor(1) as worker:
            recorded = worker.submit(record_host, options, stop=stop)
            assert taken.wait(60)
            vm.send("inflate", 1000, 256, 1)
            stop.set()
            recorded.result(60)
    trace = open_trace(output)
    assert trace.table("requests").num_rows == 0
    assert [(loss.stream, loss.count, loss.cause) for loss in trace.losses] == [
        ("requests", 1, "ring")
    ]


@contextlib.contextmanager
def full_of_threads(monkeypatch):
    """Have every host program begin with as many threads, of nobody's, as it can remember."""
    really = host_probes.compile_host

    def compiled():
        program = really()
        inflight = program["inflight"]
        with contextlib.suppress(ProbeError):
            for number in range(1000):
                inflight[inflight.Key(number)] = inflight.Leaf()
        return program

    monkeypatch.setattr(host_probes, "compile_host", compiled)
    yield
