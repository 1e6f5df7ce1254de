"""Runs inside the guest and obeys the host: one JSON object a line, each way, over a virtio port.

Only the standard library is used. A request is `{"id": n, "op": name, ...}`; the answer carries the
same id and either `"result"` or `"error"`. The first line the agent writes is
`{"event": "ready", ...}`. When the host goes away the agent ends, and the guest powers off.
"""

import base64
import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

PORT_NAME = "aerostat.agent"
OUTPUT_LIMIT_BYTES = 256 * 1024
"""At most this much of a command's output is returned, the last part of it."""
READ_LIMIT_BYTES = 4 << 20
PF_KTHREAD = 0x200000
"""Of a task's flags (include/linux/sched.h)."""
TASKS, STACK_FRAMES = 40, 12
"""At most so many tasks, and frames of each, are told of when a command does not end."""
_MCL_CURRENT_AND_FUTURE = 3
_PROJECT = "/opt/aerostat"

Request = dict[str, Any]


class Agent:
    """The operations, one method each; what a method returns is the answer's `result`."""

    def __init__(self) -> None:
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def handle(self, request: Request) -> Any:
        """Carry out one request.

        Raises:
            ValueError: No such operation.
        """
        operations: dict[str, Callable[[Request], Any]] = {
            "run": self.run,
            "spawn": self.spawn,
            "signal": self.signal,
            "wait": self.wait,
            "exists": lambda r: Path(r["path"]).exists(),
            "list": lambda r: list_files(Path(r["path"])),
            "read": lambda r: read_part(Path(r["path"]), r["offset"], r["length"]),
            "counters": lambda r: counters(),
        }
        if request["op"] not in operations:
            raise ValueError(f"no operation {request['op']!r}")
        return operations[request["op"]](request)

    def run(self, request: Request) -> dict[str, Any]:
        """Run a command to its end: its status and the last part of its output.

        Raises:
            TimeoutError: It did not end in time; what it wrote, and where in the kernel everybody
                was, is in the words. It is killed, but not waited for: it may not be able to die.
        """
        with tempfile.TemporaryFile() as output:
            child = start(request["argv"], output)
            try:
                status = child.wait(request["timeout_s"])
            except subprocess.TimeoutExpired:
                raise TimeoutError(
                    f"{request['argv']} ran for more than {request['timeout_s']} s; it wrote: "
                    f"{last_part(output, 2000)!r}; tasks:\n{waiting_tasks()}"
                ) from None
            finally:
                child.kill()
            return {"status": status, "output": last_part(output, OUTPUT_LIMIT_BYTES)}

    def spawn(self, request: Request) -> int:
        """Start a command in the background with its output in a file; returns its pid."""
        with Path(request["log"]).open("wb") as log:
            child = start(request["argv"], log)
        self._children[child.pid] = child
        return child.pid

    def signal(self, request: Request) -> bool:
        """Signal a spawned command; false if it had ended already."""
        child = self._children[request["pid"]]
        if child.poll() is not None:
            return False
        child.send_signal(signal.Signals[request["signal"]])
        return True

    def wait(self, request: Request) -> int | None:
        """Wait for a spawned command: its status, or None when the time is over."""
        try:
            return self._children[request["pid"]].wait(request["timeout_s"])
        except subprocess.TimeoutExpired:
            return None


def start(argv: list[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a command with all its output in one file."""
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    # The agent must outlive an out-of-memory kill; what it starts need not.
    with contextlib.suppress(OSError):
        Path(f"/proc/{child.pid}/oom_score_adj").write_text("0")
    return child


def last_part(output: IO[bytes], limit_bytes: int) -> str:
    """Return the last bytes of a file as text."""
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - limit_bytes))
    return output.read().decode(errors="replace")


def waiting_tasks() -> str:
    """Say of each task of a program, ours left out, what it is and where in the kernel it waits.

    Those that cannot be woken come first, then the youngest. Nothing is read that waits for a task.
    """
    found = []
    for task in Path("/proc").glob("[0-9]*/task/[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (task / "stat").read_text(errors="replace")
            name, _, rest = stat.partition(" ")[2].rpartition(")")
            fields = rest.split()
            if int(fields[6]) & PF_KTHREAD or task.parts[2] == str(os.getpid()):
                continue
            stack = (task / "stack").read_text().splitlines()[:STACK_FRAMES]
            line = f"{task.name} {name}) {fields[0]}: {' < '.join(stack)}"
            found.append((fields[0] != "D", -int(task.name), line))
    return "\n".join(line for *_, line in sorted(found)[:TASKS])


def list_files(root: Path) -> dict[str, int]:
    """Return the size in bytes of each file below a directory, by relative path."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a directory")
    return {str(p.relative_to(root)): p.stat().st_size for p in root.rglob("*") if p.is_file()}


def read_part(path: Path, offset: int, length: int) -> str:
    """Return up to `length` bytes of a file from `offset`, as base64."""
    with path.open("rb") as handle:
        handle.seek(offset)
        return base64.b64encode(handle.read(min(length, READ_LIMIT_BYTES))).decode()


def counters() -> dict[str, int]:
    """Return the kernel's balloon page counters (4 KiB pages here) and memory sizes in bytes."""
    values = {"boottime_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME)}
    for line in Path("/proc/vmstat").read_text().splitlines():
        name, value = line.split()
        if name.startswith("balloon_"):
            values[f"{name}_pages"] = int(value)
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, rest = line.split(":", 1)
        if name in ("MemTotal", "MemFree", "MemAvailable"):
            values[f"{name}_bytes"] = int(rest.split()[0]) * 1024
    return values


def find_port(name: str) -> Path:
    """Return the device of the virtio port with this name.

    Raises:
        FileNotFoundError: The kernel shows no such port within a few seconds.
    """
    for _ in range(200):
        for entry in Path("/sys/class/virtio-ports").glob("*/name"):
            if entry.read_text().strip() == name:
                return Path("/dev") / entry.parent.name
        time.sleep(0.02)
    raise FileNotFoundError(f"no virtio port is named {name}")


def answer(agent: Agent, line: bytes) -> Request:
    """Carry out one request line; every failure becomes an answer, never the agent's end."""
    number = None
    try:
        request = json.loads(line)
        number = request["id"]
        return {"id": number, "result": agent.handle(request)}
    except Exception as error:
        return {"id": number, "error": f"{type(error).__name__}: {error}"}


def write_line(port: int, message: Request) -> None:
    """Write one message whole; the port may take it in parts."""
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(port, data) :]


def serve(port: int, agent: Agent) -> None:
    """Answer requests until the host closes its end."""
    pending = b""
    while True:
        poll = select.poll()
        poll.register(port, select.POLLIN)
        for _, events in poll.poll():
            if events & select.POLLHUP and not events & select.POLLIN:
                return
        data = os.read(port, 65536)
        if not data:
            return
        pending += data
        *lines, pending = pending.split(b"\n")
        for line in lines:
            write_line(port, answer(agent, line))


def main() -> None:
    """Open the port, say ready, serve."""
    # Scenarios take nearly all memory away; the agent must still answer.
    ctypes.CDLL(None).mlockall(_MCL_CURRENT_AND_FUTURE)
    Path("/proc/self/oom_score_adj").write_text("-1000")
    port = os.open(find_port(PORT_NAME), os.O_RDWR)
    ready = {
        "event": "ready",
        "release": os.uname().release,
        "python": sys.executable,
        "project": _PROJECT,
        "uptime_s": float(Path("/proc/uptime").read_text().split()[0]),
    }
    write_line(port, ready)
    serve(port, Agent())


if __name__ == "__main__":
    main()
