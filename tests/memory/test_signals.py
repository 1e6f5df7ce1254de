"""A replay that is interrupted, terminated or killed: no traceback, and no process left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.memory.conftest import MakeTrace
from tests.unit.command import AEROSTAT, ROOT, run

WAIT_S = 120
ENDLESS = ("-s", "request", "--no-predict", "--runs", "10000", "--siblings", "2", "--verbose")


def begin(trace: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*AEROSTAT, "replay", str(trace), *ENDLESS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def told(process: "subprocess.Popen[str]") -> list[str]:
    """What it says before its end; ends when no process holds its stderr any more."""
    out, err = process.communicate(timeout=WAIT_S)
    assert out == ""
    return [line for line in err.splitlines() if line]


def await_fork_server(pid: int) -> None:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for _ in range(100 * WAIT_S):
        for child in children.read_text().split():
            if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes():
                return
        time.sleep(0.01)
    raise AssertionError("no fork server")


def test_ctrl_c_while_the_fork_server_imports(make_trace: MakeTrace) -> None:
    process = begin(make_trace())
    await_fork_server(process.pid)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    assert told(process) == ["aerostat: plan", "aerostat: replay", "aerostat: interrupted"]
    assert process.returncode == 130


def test_sigterm_ends_it_like_ctrl_c(make_trace: MakeTrace, tmp_path: Path) -> None:
    process = begin(make_trace())
    assert process.stderr is not None
    while process.stderr.readline() != "aerostat: replay\n":
        assert process.poll() is None
    process.terminate()
    assert told(process) == ["aerostat: terminated"]
    assert process.returncode == 143


def test_a_worker_whose_parent_was_killed_says_nothing() -> None:
    script = (
        "import os, time\n"
        "from replay.worker import _serve, process_context\n"
        "context = process_context()\n"
        "ours, theirs = context.Pipe()\n"
        "context.Process(target=_serve, args=(time.sleep, 1.0, False, theirs)).start()\n"
        "os._exit(9)\n"
    )
    done = run([], command=[sys.executable, "-c", script])  # as long as any holds its stderr
    assert (done.returncode, done.stderr) == (9, "")
