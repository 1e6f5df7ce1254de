"""The shipped unit under a real systemd, process 1 of a guest: starts, pings, stops in order, and
is killed and started again where it hangs.

The guest's disk is the lab's, with systemd, the unit and a stand-in for a VMM laid over it from a
second disk; its first process is systemd in place of the lab's script, and the agent is a service.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc
import pytest

from lab import initramfs
from lab import vm as lab_vm
from lab.image import _copy, _make_disk
from lab.session import LabOptions, open_vm
from lab.vm import LabVm
from tests.standins.build import program
from tests.unit.command import ROOT
from tracer.trace.check import check_trace
from tracer.trace.findings import Severity
from tracer.trace.reader import Trace, open_trace
from tracer.trace.salvage import salvage

UNIT = ROOT / "aerostat" / "systemd" / "aerostat.service"
SYSTEMD = Path("/usr/lib/systemd")
PROGRAMS = (
    SYSTEMD / "systemd",
    SYSTEMD / "systemd-journald",
    SYSTEMD / "systemd-executor",
    Path("/usr/bin/systemctl"),
    Path("/usr/bin/journalctl"),
)
UNITS = (
    *("sysinit.target", "basic.target", "local-fs.target", "local-fs-pre.target", "swap.target"),
    *("shutdown.target", "umount.target", "final.target", "sockets.target", "paths.target"),
    *("timers.target", "slices.target", "multi-user.target", "systemd-journald.service"),
    *("systemd-journald.socket", "systemd-journald-dev-log.socket"),
)
AGENT = """\
[Unit]
Description=The lab's agent
DefaultDependencies=no
[Service]
WorkingDirectory=/opt/aerostat
Environment=PATH=/usr/local/bin:/usr/bin:/usr/sbin HOME=/tmp LC_ALL=C.UTF-8
ExecStart=/usr/lib/aerostat/python /opt/aerostat/lab/guest_agent.py
ExecStopPost=/usr/bin/poweroff -f
OOMScoreAdjust=-1000
"""
TARGET = """\
[Unit]
Description=The lab
Requires=lab-agent.service basic.target
After=basic.target
"""
PROGRAM = '#!/bin/sh\nPYTHONPATH=/opt/aerostat exec /usr/lib/aerostat/python -m aerostat "$@"\n'
VMM = """\
mkfifo /tmp/in && exec 3<>/tmp/in
exec /opt/standin/qemu-system-x86_64 -m 64M -name guest=web <&3 >/tmp/out
"""
HASTY = "[Service]\nWatchdogSec=30\n"
"""A minute, as shipped, is long to wait for; much less is too short for an emulated guest."""
TRACES = "/var/lib/private/aerostat"
START_S = 400
"""BCC's compiler takes minutes in an emulated guest on a busy machine."""


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def libraries(programs: list[Path]) -> set[Path]:
    listed = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
    return {Path(found) for found in re.findall(r"(/\S+\.so[\S]*) \(", listed)}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is laid over the lab's disk: systemd, the unit, the program, the stand-in."""
    root, image = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("disk") / "more.ext4"
    programs = [path for path in PROGRAMS if path.exists()]
    for path in (*programs, *libraries(programs), *(SYSTEMD / "system" / name for name in UNITS)):
        _copy(path, root)
    etc = root / "etc/systemd/system"
    write(etc / "lab-agent.service", AGENT)
    write(etc / "lab.target", TARGET)
    (etc / "default.target").symlink_to("lab.target")
    (etc / "sysinit.target.wants").mkdir()
    journal = etc / "sysinit.target.wants/systemd-journald.service"
    journal.symlink_to("/usr/lib/systemd/system/systemd-journald.service")
    write(etc / "aerostat.service", UNIT.read_text())
    write(root / "etc/os-release", "ID=lab\n")
    write(root / "etc/machine-id", "")
    write(root / "usr/local/bin/aerostat", PROGRAM, 0o755)
    write(root / "opt/standin/start", VMM, 0o755)
    shutil.copy2(program("qemu-system-x86_64"), root / "opt/standin")
    _make_disk(root, image)
    return image


def first_process() -> bytes:
    """The lab's init, that lays the second disk over the first and hands over to systemd."""
    text = (ROOT / "lab" / "init.sh").read_text()
    changes = {
        "$b mount -t tmpfs -o size=60%": "$b mkdir /more\n"
        '$b mount -t ext4 -o ro,noload /dev/vdb /more || fail "no second disk"\n'
        "$b mount -t tmpfs -o size=60%",
        "lowerdir=/lower,": "lowerdir=/more:/lower,",
        "/newroot /usr/lib/aerostat/start": "/newroot /usr/lib/systemd/systemd",
    }
    for before, after in changes.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    archive = initramfs.Cpio()
    archive.file("init", text.encode())
    return archive.close()


@pytest.fixture(scope="module")
def vm(disk: Path) -> Iterator[LabVm]:
    """A guest whose process 1 is systemd, with a stand-in for a VMM."""
    with pytest.MonkeyPatch.context() as patch:
        build, command = lab_vm.build_initramfs, lab_vm.qemu_command
        drive = f"if=none,id=more,format=raw,readonly=on,file={disk}"
        more = ["-drive", drive, "-device", "virtio-blk-pci,drive=more"]
        # What a later archive holds takes the place of what an earlier one does.
        patch.setattr(lab_vm, "build_initramfs", lambda *args: build(*args) + first_process())
        patch.setattr(lab_vm, "qemu_command", lambda *args: [*command(*args), *more])
        wanted = LabOptions(output=Path("not-written.balloon"), record=False)
        with open_vm(wanted) as booted:
            agent = booted.agent
            agent.spawn(["sh", "/opt/standin/start"], "/tmp/vmm.log")
            until(lambda: agent.exists("/tmp/out") and b"parts" in agent.read_file("/tmp/out"))
            yield booted


def show(vm: LabVm, name: str) -> str:
    return vm.agent.run(["systemctl", "show", "aerostat", "--value", "-p", name]).strip()


def until(true, wait_s: float = 120.0) -> None:
    deadline = time.monotonic() + wait_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def inflate(vm: LabVm, pages: int) -> None:
    """Have the stand-in take so many pages from its guest."""
    done = vm.agent.read_file("/tmp/out").count(b'"inflate"')
    vm.agent.run(["sh", "-c", f"echo inflate 1000 {pages} 1 >/tmp/in"])
    until(lambda: vm.agent.read_file("/tmp/out").count(b'"inflate"') > done)


def copied(vm: LabVm, name: str, directory: Path) -> Trace:
    """Open a copy of a trace that the service has written, whole or torn."""
    vm.agent.copy_out(f"{TRACES}/{name}", directory / name)
    return open_trace(directory / name)


def test_the_unit_lives_under_systemd(vm: LabVm, tmp_path: Path) -> None:
    agent = vm.agent
    assert agent.run(["cat", "/proc/1/comm"]).strip() == "systemd"
    # Type=notify: systemctl comes back when the probes are attached, not before.
    agent.run(["systemctl", "start", "aerostat"], START_S)
    assert (show(vm, "ActiveState"), show(vm, "Type")) == ("active", "notify")
    inflate(vm, 5000)
    until(lambda: "1 VMs, 20 requests, 0 events lost" in show(vm, "StatusText"))

    pings = {show(vm, "WatchdogTimestampMonotonic")}
    until(lambda: len(pings) > 3 or pings.add(show(vm, "WatchdogTimestampMonotonic")))
    assert show(vm, "WatchdogUSec") == "1min"
    pid = show(vm, "MainPID")
    status = agent.read_file(f"/proc/{pid}/status").decode()
    assert not re.search(r"^Uid:\s+0\s", status, re.MULTILINE), "DynamicUser"

    agent.run(["systemctl", "stop", "aerostat"], START_S)
    assert (show(vm, "Result"), show(vm, "ExecMainStatus")) == ("success", "0")
    (listed,) = agent.run(["ls", TRACES]).split()
    trace = copied(vm, listed, tmp_path)
    assert trace.is_complete
    assert trace.manifest.end_reason == "stopped"
    assert pc.sum(trace.table("requests")["pages"]).as_py() == 5000
    assert check_trace(trace) == []


def test_a_recorder_that_hangs_is_killed_by_the_watchdog_and_started_again(
    vm: LabVm, tmp_path: Path
) -> None:
    agent = vm.agent
    agent.run(["busybox", "mkdir", "-p", "/run/systemd/system/aerostat.service.d"])
    agent.run(["sh", "-c", f"printf '{HASTY}' >/run/systemd/system/aerostat.service.d/hasty.conf"])
    agent.run(["systemctl", "daemon-reload"])
    before = set(agent.run(["ls", TRACES]).split()) if agent.exists(TRACES) else set()
    agent.run(["systemctl", "start", "aerostat"], START_S)
    assert show(vm, "WatchdogUSec") == "30s"
    inflate(vm, 5000)
    until(lambda: "1 VMs, 20 requests, 0 events lost" in show(vm, "StatusText"))
    (torn,) = set(agent.run(["ls", TRACES]).split()) - before

    hung = show(vm, "MainPID")
    agent.run(["sh", "-c", f"kill -STOP {hung}"])
    until(lambda: show(vm, "NRestarts") == "1")
    until(lambda: show(vm, "ActiveState") == "active", START_S)
    log = agent.run(["journalctl", "-u", "aerostat", "--no-pager"])
    assert "Watchdog timeout" in log
    assert "Failed with result 'watchdog'" in log
    assert show(vm, "MainPID") not in {"0", hung}
    assert not agent.exists(f"/proc/{hung}")

    inflate(vm, 1000)
    until(lambda: "1 VMs, 4 requests, 0 events lost" in show(vm, "StatusText"))
    agent.run(["systemctl", "stop", "aerostat"], START_S)
    (fresh,) = set(agent.run(["ls", TRACES]).split()) - before - {torn}
    whole = copied(vm, fresh, tmp_path)
    assert whole.is_complete
    assert pc.sum(whole.table("requests")["pages"]).as_py() == 1000

    assert not copied(vm, torn, tmp_path).is_complete
    report = salvage(tmp_path / torn, tmp_path / "whole.balloon")
    assert report.rows["requests"] == 20
    kept = open_trace(report.path)
    assert kept.manifest.end_reason == "salvaged"
    assert pc.sum(kept.table("requests")["pages"]).as_py() == 5000
    found = {finding.code for finding in check_trace(kept) if finding.severity is Severity.ERROR}
    assert found == {"not-complete", "end-missing"}
