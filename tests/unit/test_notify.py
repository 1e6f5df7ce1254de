"""What a service manager hears, on real sockets."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tracer.record.notify import Notifier

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A listening socket and its NOTIFY_SOCKET."""
    name = f"aerostat-test-{os.getpid()}"
    address = str(tmp_path / "notify") if request.param == "path" else f"@{name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address if request.param == "path" else f"\0{name}")
        listener.settimeout(5)
        yield listener, address


def heard(listener):
    listener.setblocking(False)
    found = []
    try:
        while True:
            found.append(listener.recv(4096).decode().splitlines())
    except BlockingIOError:
        return found


def test_a_life_from_ready_to_stopping(manager):
    listener, address = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    notifier.ready("recording vm0")
    notifier.status("recording vm0")
    notifier.status("recording vm0, 5 requests")
    notifier.alive()
    notifier.stopping("closing")
    assert heard(listener) == [
        ["READY=1", "STATUS=recording vm0", f"MAINPID={os.getpid()}"],
        ["STATUS=recording vm0, 5 requests"],
        ["STOPPING=1", "STATUS=closing"],
    ]


def test_a_sign_of_life_at_half_the_interval(manager):
    listener, address = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"})
    assert notifier.watchdog_ns == 100_000_000
    notifier.alive()
    notifier.alive()
    assert heard(listener) == [["WATCHDOG=1"]]
    time.sleep(0.06)
    notifier.alive()
    notifier.alive()
    assert heard(listener) == [["WATCHDOG=1"]]


def test_a_hostile_name_sends_no_key(manager):
    listener, address = manager
    Notifier(address).status("vm\nREADY=1\nMAINPID=1 \ud800")
    (message,) = heard(listener)
    assert message == ["STATUS=vm READY=1 MAINPID=1 ?"]


@pytest.mark.parametrize(
    ("environment", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 3 * 10**9),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3 * 10**9),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
    ],
)
def test_whether_the_watchdog_waits(environment, interval):
    assert Notifier.from_environment(environment).watchdog_ns == interval


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative", "/nobody/listens/here", "@x"])
def test_nobody_listens(address):
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1"})
    notifier.ready("x")
    notifier.alive()
    notifier.stopping("x")


def test_a_manager_that_does_not_read_holds_nothing_up(manager):
    _, address = manager
    notifier = Notifier(address)
    begin = time.monotonic()
    for number in range(2000):
        notifier.status(f"{number}")
    assert time.monotonic() - begin < 5


def test_another_process_is_heard(manager):
    listener, address = manager
    code = "from tracer.record.notify import Notifier; Notifier.from_environment().ready('up')"
    environment = {**os.environ, "NOTIFY_SOCKET": address}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    (message,) = heard(listener)
    assert message[0] == "READY=1"
