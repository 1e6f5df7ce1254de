"""`aerostat top` on stand-ins whose every page is known: exact sums, and what a terminal shows."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyte
import pytest

from tests.standins.build import StandIn, configured, firecracker_like, qemu_like
from tracer.engine.privilege import ALL_VMS
from tracer.engine.privilege_drop import reading_needs
from tracer.trace.errors import ExitCode

WAIT_S = 60
GIB = 1 << 30
PAGE = 4096
TOP = [sys.executable, "-m", "aerostat", "top"]


class Lines:
    """A running `aerostat top --json`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.updates: list[dict[str, Any]] = []

    def next(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.updates.append(json.loads(line))
        return self.updates[-1]

    def until(self, true: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        deadline = time.monotonic() + WAIT_S
        while not true(update := self.next()):
            assert time.monotonic() < deadline, update
        return update

    def moved(self, name: str, queue: str) -> float:
        """Pages, from the rates and intervals of every update."""
        rates = [vm["rates"] for u in self.updates for vm in u["vms"] if vm["name"] == name]
        return sum(r["pages_per_s"][queue] * r["interval_ns"] / 1e9 for r in rates if r)


@contextmanager
def lines(*options: object) -> Iterator[Lines]:
    argv = [*TOP, "--json", "--interval", "200ms", *map(str, options)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield Lines(process)
    finally:
        process.kill()
        process.communicate()


def capabilities(pid: int) -> set[tuple[str, ...]]:
    """What each of its threads may do, and whether an exec could bring more."""
    texts = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return {tuple(re.findall(r"^(?:Cap(?:Prm|Eff)|NoNewPrivs):\t(\w+)", t, re.M)) for t in texts}


def named(update: dict[str, Any], name: str) -> dict[str, Any]:
    (vm,) = (vm for vm in update["vms"] if vm["name"] == name)
    return vm


def test_rates_over_their_intervals_add_up_to_what_was_done():
    with qemu_like("-m", "1G", "-name", "guest=web") as vm, lines("--pid", vm.pid) as top:
        first = top.next()
        assert first["vms"][0]["actual_bytes"] is None
        vm.send("target", GIB // 2)
        inflated = [vm.send("inflate", 100_000, 7777, -1) for _ in range(5)]
        vm.send("actual", GIB * 3 // 4)
        deflated = vm.send("deflate", 1000, 3000, 1)
        pages = sum(did.pages for did in inflated)
        last = top.until(lambda u: u["vms"][0]["since_attach"]["pages"].get("deflate") == 3000)
        assert last["vms"][0]["since_attach"]["pages"] == {"inflate": pages, "deflate": 3000}
        assert top.moved("web", "inflate") == pytest.approx(pages)
        assert top.moved("web", "deflate") == pytest.approx(deflated.pages)
        web = last["vms"][0]
        assert (web["memory_bytes"], web["target_bytes"]) == (GIB, GIB // 2)
        assert (web["actual_bytes"], web["balloon_bytes"]) == (GIB * 3 // 4, GIB // 4)
        sums = web["since_attach"]
        assert sums["discard_calls"] == sum(did.calls for did in (*inflated, deflated))
        assert 0 < sums["discard_ns"] < sums["busy_ns"]
        assert 0 < web["longest_ns"] < sums["busy_ns"]
        assert sums["probe_ns"] > 0
        assert set(web["lost"].values()) == {0}
        assert top.until(lambda u: u["vms"][0]["state"] == "stalled")


@pytest.mark.parametrize("is_one", [True, False])
def test_what_attaching_does_not_take_is_given_up_and_all_is_seen_all_the_same(is_one):
    """A suspended VM is attached to anew, and one that starts later for the first time."""
    bits = f"{sum(1 << capability for capability in ALL_VMS | reading_needs()):016x}"
    with (
        qemu_like("-m", "256M", "-name", "guest=web") as vm,
        lines(*(("--pid", vm.pid) if is_one else ())) as top,
    ):
        top.until(lambda u: "web" in names(u))
        assert capabilities(top.process.pid) == {(bits, bits, "1")}
        if is_one:
            vm.send("inflate", 1000, 300, 1)
            top.until(lambda u: named(u, "web")["since_attach"]["pages"] == {"inflate": 300})
            vm.send("runstate", 4)
            top.until(lambda u: named(u, "web")["since_attach"]["pages"] == {})
            vm.send("runstate", 9)
            vm.send("inflate", 9000, 500, -1)
            top.until(lambda u: named(u, "web")["since_attach"]["pages"] == {"inflate": 500})
            return
        with qemu_like("-m", "256M", "-name", "guest=later") as later:
            top.until(lambda u: "later" in names(u))
            later.send("inflate", 9000, 500, -1)
            top.until(lambda u: named(u, "later")["since_attach"]["pages"] == {"inflate": 500})


def test_without_system_call_probes_discards_are_null():
    with (
        qemu_like("-m", "256M", "-name", "guest=web") as vm,
        lines("--vm", "web", "--detail", "requests") as top,
    ):
        top.next()
        vm.send("inflate", 9000, 500, -1)
        update = top.until(lambda u: u["vms"][0]["state"] == "inflating")
        rates = update["vms"][0]["rates"]
        assert rates["busy_share"] > 0
        assert (rates["translate_share"], rates["discard_share"]) == (None, None)
        assert rates["discarded_bytes_per_s"] is None


def test_a_vm_that_ends_ends_its_watch_and_the_reason_is_told():
    with qemu_like("-m", "256M", "-name", "guest=web") as vm, lines("--pid", vm.pid) as top:
        top.next()
        vm.end()
        err = top.process.communicate(timeout=WAIT_S)[1]
        assert top.process.returncode == ExitCode.OK
        assert f"web (pid {vm.pid}): vm-exited" in err


def test_so_many_updates_and_no_more():
    with qemu_like("-m", "256M") as vm, lines("--pid", vm.pid, "--count", "3") as top:
        out, _ = top.process.communicate(timeout=WAIT_S)
    assert top.process.returncode == ExitCode.OK
    assert [json.loads(line)["update"] for line in out.splitlines()] == [1, 2, 3]


def names(update: dict[str, Any]) -> set[str]:
    return {vm["name"] for vm in update["vms"]}


def test_all_vms_are_followed_and_one_of_system_calls_alone_is_discarding(tmp_path):
    """Other VMs may run on this machine, and are watched as well."""
    ours = {"stays", "leaves", "micro"}
    with (
        qemu_like("-m", "256M", "-name", "guest=stays") as stays,
        firecracker_like("--id", "micro", *configured(tmp_path, 128)) as micro,
        lines() as top,
    ):
        with qemu_like("-m", "256M", "-name", "guest=leaves") as leaves:
            top.until(lambda u: ours <= names(u) and all(named(u, name)["rates"] for name in ours))
            leaves.send("inflate", 5000, 300, 1)
        did = stays.send("inflate", 9000, 4000, -1)
        discarded = micro.send("inflate", 1000, 5000, 1)
        busy = top.until(lambda u: named(u, "micro")["state"] == "discarding")
        micro_rates = named(busy, "micro")["rates"]
        assert (micro_rates["pages_per_s"], micro_rates["busy_share"]) == (None, None)
        last = top.until(lambda u: names(u) & ours == {"stays", "micro"})
        gone = [each for update in top.updates for each in update["gone"]]
        assert {"name": "leaves", "pid": leaves.pid, "reason": "vm-exited"} in gone
        assert named(last, "stays")["since_attach"]["pages"] == {"inflate": did.pages}
        assert top.moved("stays", "inflate") == pytest.approx(did.pages)
        # The run that is still open in the kernel is not counted yet.
        sums = named(last, "micro")["since_attach"]
        assert discarded.calls - 1 <= sums["discard_calls"] <= discarded.calls


def test_a_reader_that_goes_away_ends_it():
    with qemu_like("-m", "256M") as vm, lines("--pid", vm.pid) as top:
        top.next()
        top.process.stdout.close()
        assert top.process.wait(WAIT_S) == 128 + signal.SIGPIPE
        top.process.stdout = None


class Terminal:
    """`aerostat top` in a terminal of this size, and what it shows."""

    def __init__(self, columns: int, rows: int, *options: str) -> None:
        self.leader, follower = pty.openpty()
        self._resize(columns, rows)
        self.before = termios.tcgetattr(follower)
        self.process = subprocess.Popen(
            [*TOP, *options],
            stdin=follower,
            stdout=follower,
            stderr=subprocess.PIPE,
            env={**os.environ, "TERM": "xterm-256color"},
        )
        self.follower = follower
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)

    def _resize(self, columns: int, rows: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self.leader, termios.TIOCSWINSZ, size)

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        self.screen.reset()
        self._resize(columns, rows)

    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    def read(self, wait_s: float = 0.1) -> None:
        while select.select([self.leader], [], [], wait_s)[0]:
            self._stream.feed(os.read(self.leader, 1 << 16))
            wait_s = 0.02

    def until(self, true: Callable[[list[str]], object]) -> list[str]:
        deadline = time.monotonic() + WAIT_S
        while not true(self.lines()):
            assert time.monotonic() < deadline, "\n".join(self.lines())
            assert self.process.poll() is None, self.process.stderr.read()
            self.read()
        return self.lines()

    def press(self, keys: bytes) -> None:
        os.write(self.leader, keys)

    def wait(self) -> int:
        deadline = time.monotonic() + WAIT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read()
        self.read()
        return self.process.wait(1)


@contextmanager
def terminal(columns: int, rows: int, *options: object) -> Iterator[Terminal]:
    shown = Terminal(columns, rows, "--interval", "400ms", *map(str, options))
    try:
        yield shown
    finally:
        shown.process.kill()
        shown.process.wait()
        shown.process.stderr.close()
        os.close(shown.leader)
        os.close(shown.follower)


def table_cell(screen: list[str], row: str, heading: str) -> str:
    """The cell below a heading, by where its last line ends; what is folded above it is not it."""
    for i, line in reversed(list(enumerate(screen))):
        match = re.search(rf"(?<!\S){re.escape(heading)}(?!\S)", line)
        if match and any(below.strip().startswith(row) for below in screen[i:]):
            cells = next(below for below in screen[i:] if below.strip().startswith(row))
            return cells[: match.end()].split()[-1]
    raise AssertionError(f"no {heading} for {row} in\n" + "\n".join(screen))


def flood(vm: StandIn, seconds: int) -> tuple[threading.Thread, list[Any]]:
    did: list[Any] = []
    thread = threading.Thread(target=lambda: did.append(vm.send("flood", seconds)))
    thread.start()
    return thread, did


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (100, 40), (160, 50)])
def test_a_terminal_shows_the_figures_and_q_gives_it_back(columns, rows):
    with (
        qemu_like("-m", "2G", "-name", "guest=web") as vm,
        terminal(columns, rows, "--pid", vm.pid) as shown,
    ):
        shown.until(lambda screen: "still" in " ".join(screen))
        vm.send("target", GIB)
        vm.send("actual", 3 * GIB // 2)
        thread, did = flood(vm, 3)
        rates = []
        while thread.is_alive():
            shown.read()
            screen = shown.lines()
            if "inflating" in " ".join(screen) or "deflating" in " ".join(screen):
                rates.append(table_cell(screen, "web", "pages/s"))
                busy = screen
        thread.join()
        assert busy[0].startswith("aerostat top  ")
        assert "1 VM  q ends" in busy[0]
        sizes = [table_cell(busy, "web", name) for name in ("memory", "actual", "target")]
        assert sizes == ["2G", "1.50G", "1G"]
        assert table_cell(busy, "web", "a run") == "256"
        for share in ("busy", "translate", "discard", "probes"):
            assert 0 < float(table_cell(busy, "web", share).rstrip("%")) < 130
        # Half of the pages are inflated; three digits and a letter; seconds begin anywhere.
        per_s = did[0].pages / 2 / 3
        seen = [float(rate[:-1]) * {"k": 1e3, "M": 1e6}[rate[-1]] for rate in rates]
        assert per_s / 3 < max(seen) < per_s * 3
        assert not any("…" in line for line in busy)
        shown.until(lambda screen: "stalled" in " ".join(screen))

        shown.press(b"q")
        assert shown.wait() == ExitCode.OK
        after = termios.tcgetattr(shown.follower)
        assert after[3] == shown.before[3]
        assert after[3] & termios.ECHO


def test_another_size_is_drawn_anew_and_control_c_ends_it():
    with (
        qemu_like("-m", "2G", "-name", "guest=web") as vm,
        terminal(160, 50, "--pid", vm.pid) as shown,
    ):
        shown.until(lambda screen: "still" in " ".join(screen))
        assert sum(line.startswith("VM") for line in shown.lines()) == 1
        shown.resize(80, 24)
        screen = shown.until(lambda screen: sum(line.startswith("VM") for line in screen) == 2)
        assert table_cell(screen, "web", "memory") == "2G"
        assert table_cell(screen, "web", "busy") == "0%"
        shown.process.send_signal(signal.SIGINT)
        assert shown.wait() == ExitCode.OK


def test_a_vm_that_cannot_be_watched_is_an_error_and_not_a_screen():
    with terminal(80, 24, "--pid", os.getpid()) as shown:
        assert shown.wait() == ExitCode.FAILURE
        assert "is not a VMM that aerostat knows" in shown.process.stderr.read().decode()
