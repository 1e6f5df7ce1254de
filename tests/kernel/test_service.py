"""The recorder as its unit runs it: the unit's capabilities, and a service manager listening."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.standins.build import program, started
from tests.unit.command import ROOT
from tracer.trace.check import check_trace
from tracer.trace.reader import open_trace

UNIT = (ROOT / "aerostat" / "systemd" / "aerostat.service").read_text()
GUEST = ("-m", "512M", "-device", "virtio-balloon-pci")
NOBODY = 65534
WAIT_S = 60


def capabilities() -> list[str]:
    (line,) = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT, re.MULTILINE)
    return [name.removeprefix("CAP_").lower() for name in line.split()]


class Manager:
    """A service manager's end of the socket."""

    def __init__(self, path: Path) -> None:
        self.messages: list[str] = []
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(0.1)

    def listen(self, until: str, process: subprocess.Popen[str]) -> None:
        """Collect messages until one holds a text."""
        end_s = time.monotonic() + WAIT_S
        while not any(until in message for message in self.messages):
            assert time.monotonic() < end_s, self.messages
            try:
                self.messages.append(self._socket.recv(4096).decode())
            except TimeoutError:
                assert process.poll() is None, process.communicate()

    def rest(self) -> None:
        """Collect what has come."""
        try:
            while True:
                self.messages.append(self._socket.recv(4096).decode())
        except TimeoutError:
            self._socket.close()


@pytest.fixture
def manager(tmp_path):
    return Manager(tmp_path / "notify")


def start(vm, manager, *options):
    """Run the recorder with the unit's capabilities and nothing more, though as root."""
    bounds = ",".join(["-all", *(f"+{name}" for name in capabilities())])
    command = ["setpriv", "--bounding-set", bounds, "--no-new-privs"]
    command += [sys.executable, "-m", "aerostat", "record", "--pid", str(vm.pid), "-q"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment |= {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "1000000"}
    return subprocess.Popen(
        [*command, *map(str, options)], env=environment, stderr=subprocess.PIPE, text=True
    )


def test_a_life_under_a_service_manager(manager, tmp_path):
    """The VM is another user's, as under libvirt."""
    prefix = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    vmm = tmp_path / "qemu-system-x86_64"
    shutil.copy(program(vmm.name), vmm)
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    with (
        started([str(vmm), *GUEST], prefix=prefix) as vm,
        start(vm, manager, "-o", tmp_path / "a.balloon") as process,
    ):
        manager.listen("READY=1", process)
        vm.send("inflate", 1000, 512, 1)
        manager.listen("1 VMs, 2 requests, 0 events lost", process)
        for _ in range(3):
            manager.messages.clear()
            manager.listen("WATCHDOG=1", process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=WAIT_S)
        manager.rest()
    assert process.returncode == 0, err
    assert any("STOPPING=1" in message for message in manager.messages)
    trace = open_trace(tmp_path / "a.balloon")
    assert trace.table("requests").num_rows == 2
    assert trace.table("residency").num_rows > 0
    assert check_trace(trace) == []
