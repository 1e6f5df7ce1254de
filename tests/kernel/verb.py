"""Runs `aerostat record` as a user does, on a VM or a stand-in for one."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

WAIT_S = 60


class Traced(Protocol):
    """What is recorded: a stand-in, or a VM of the lab."""

    @property
    def pid(self) -> int: ...


class Recorder:
    """A running `aerostat record`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def end(self, number: int = signal.SIGINT) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)


@contextmanager
def recording(
    vm: Traced,
    output: Path,
    *options: str,
    prefix: Sequence[str] = (),
    code: Sequence[str] = ("-m", "aerostat"),
) -> Iterator[Recorder]:
    """Run the verb until the block is left; it is attached when the block begins.

    Args:
        vm: What is recorded.
        output: The bundle.
        options: Of the verb.
        prefix: Command that runs it, such as `setpriv ...`.
        code: What Python runs.
    """
    ready = output.with_suffix(".ready")
    ready.unlink(missing_ok=True)
    argv = [*prefix, sys.executable, *code, "record", "--pid", str(vm.pid), "-o", str(output)]
    argv += ["--ready-file", str(ready), "--quiet", *options]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + WAIT_S
    try:
        while not ready.exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "the recorder was not ready in time"
            time.sleep(0.02)
        yield Recorder(process)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def refused(vm_pid: int, output: Path, *options: str) -> tuple[int, str]:
    """Run the verb where it is to end by itself; its exit code and what it said."""
    argv = [sys.executable, "-m", "aerostat", "record", "--pid", str(vm_pid), "-o", str(output)]
    run = subprocess.run(
        [*argv, *options], check=False, capture_output=True, text=True, timeout=WAIT_S
    )
    return run.returncode, run.stderr


def until(true: Callable[[], bool], wait_s: float = 20) -> None:
    """Wait until a callable returns something true."""
    deadline = time.monotonic() + wait_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
