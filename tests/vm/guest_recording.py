"""Runs `aerostat record --guest` in the lab's guest, with any options and as any user."""

import json
import time
from collections.abc import Iterable
from pathlib import Path

from tests.kernel import as_user
from tracer.engine.privilege import Capability
from tracer.trace.reader import Trace, open_trace

READY_S, END_S = 240, 120
BECOME = "\nimport json, os, sys\nbecome_nobody(json.loads(sys.argv[1]))\n"
EXECUTE = "os.execv(sys.argv[2], sys.argv[2:])\n"


def as_nobody(vm, argv: list[str], held: Iterable[Capability]) -> list[str]:
    """Have a command run by an ordinary user with exactly these capabilities."""
    source = Path(as_user.__file__).read_text() + BECOME + EXECUTE
    return [vm.agent.python, "-c", source, json.dumps(sorted(held)), *argv]


def command(vm, bundle: str, *more: str) -> list[str]:
    """`record --guest`; its ready file lies beside the bundle."""
    options = ["--guest", "-o", bundle, "--ready-file", f"{bundle}.ready", *more]
    return [vm.agent.python, "-m", "aerostat", "record", *options]


def start(vm, bundle: str, *more: str, held: Iterable[Capability] | None = None) -> int:
    """Start a recorder and wait until its probes are attached; returns its pid in the guest.

    Args:
        vm: A booted VM.
        bundle: In the guest.
        more: Options.
        held: Capabilities of the ordinary user that it is to be; root where None.
    """
    agent, log = vm.agent, f"{bundle}.log"
    agent.run(["sh", "-c", f"rm -rf {bundle} {bundle}.ready"])
    argv = command(vm, bundle, *more)
    pid = agent.spawn(argv if held is None else as_nobody(vm, argv, held), log)
    deadline_s = time.monotonic() + READY_S
    while not agent.exists(f"{bundle}.ready"):
        assert agent.wait(pid, 0.1) is None, agent.read_file(log).decode()
        assert time.monotonic() < deadline_s, "the recorder was not ready in time"
    return pid


def end(vm, pid: int, bundle: str) -> int | None:
    """Interrupt a recorder; returns its exit code."""
    vm.agent.signal(pid, "SIGINT")
    code = vm.agent.wait(pid, END_S)
    assert code is not None, vm.agent.read_file(f"{bundle}.log").decode()
    return code


def copied(vm, bundle: str, home: Path) -> Trace:
    """Copy a guest's bundle out and open it."""
    target = home / Path(bundle).name
    vm.agent.copy_out(bundle, target)
    return open_trace(target)


def refused(vm, argv: list[str]) -> tuple[int, str]:
    """Run a command in the guest to its end: its exit code and what it said."""
    script = '"$@" 2>&1; echo "exit code $?"'
    said, _, code = vm.agent.run(["sh", "-c", script, "sh", *argv], READY_S).rpartition("exit code")
    return int(code), said
