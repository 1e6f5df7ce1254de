"""Compiling in a process of its own: what the recorder is spared, and what ends when."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.standins.build import qemu_like

ROOT = Path(__file__).parents[2]
WAIT_S = 60
MAPPED = """
import sys
from tracer.engine.host_engine import HostEngine
with HostEngine(calls=True) as engine:
    assert engine.call_attachments
    maps = open("/proc/self/maps").read()
print([name for name in ("libLLVM", "libclang", "libbcc") if name in maps], "bcc" in sys.modules)
"""


def test_the_compiler_is_not_in_a_recorder_that_has_attached(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAPPED],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
    )
    assert done.stdout == "[] False\n"


def test_the_compiler_is_found_from_anywhere(tmp_path: Path) -> None:
    """The installed command has no checkout in its path, and the compiler's process no site."""
    program = """
from pathlib import Path
from tracer.engine.compile_process import compile_apart
import bpf
headers = Path(bpf.__path__[0]) / "headers"
made = compile_apart("x.c", "int x(void *ctx) { return 0; }", [], headers)
print(sorted(made["functions"]), made["maps"])
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.stdout == "['x'] []\n", done.stderr


def fields(pid: int) -> list[str]:
    """State, parent and what follows of /proc/PID/stat; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def children(pid: int) -> list[int]:
    others = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [other for other in others if fields(other)[1:2] == [str(pid)]]


@contextmanager
def compiling(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A recorder, in a process group of its own, whose compiler is at work."""
    with qemu_like("-m", "256M") as vm:
        command = [sys.executable, "-m", "aerostat", "record", "--pid", str(vm.pid)]
        command += ["-o", str(tmp_path / "host.balloon")]
        nothing_kept = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=nothing_kept,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        ) as recorder:
            try:
                until_s = time.monotonic() + WAIT_S
                while not (found := children(recorder.pid)):
                    assert recorder.poll() is None
                    assert time.monotonic() < until_s
                    time.sleep(0.005)
                yield recorder, found[0]
            finally:
                recorder.kill()


def ends(pid: int) -> bool:
    until_s = time.monotonic() + WAIT_S
    while time.monotonic() < until_s:
        if fields(pid)[:1] in ([], ["Z"]):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_of_them_ends_in_a_closed_trace(tmp_path: Path, number: int) -> None:
    """Ctrl-C goes to the compiler too, as a service's stop does."""
    with compiling(tmp_path) as (recorder, compiler):
        os.killpg(recorder.pid, number)
        said = recorder.communicate(timeout=WAIT_S)[1]
        assert recorder.returncode == 0, said
        assert "is complete" in said
        assert ends(compiler)


def test_a_second_signal_interrupts_the_compiler_too(tmp_path: Path) -> None:
    with compiling(tmp_path) as (recorder, compiler):
        os.killpg(recorder.pid, signal.SIGINT)
        time.sleep(0.1)  # else both may arrive as one
        os.killpg(recorder.pid, signal.SIGINT)
        said = recorder.communicate(timeout=WAIT_S)[1]
        assert recorder.returncode == 130, said
        assert ends(compiler)
        assert not (tmp_path / "host.balloon").exists()


def test_a_recorder_that_is_killed_leaves_no_compiler(tmp_path: Path) -> None:
    with compiling(tmp_path) as (recorder, compiler):
        recorder.kill()
        recorder.wait()
        assert ends(compiler)


def test_a_compiler_that_is_killed_is_told(tmp_path: Path) -> None:
    with compiling(tmp_path) as (recorder, compiler):
        os.kill(compiler, signal.SIGKILL)
        said = recorder.communicate(timeout=WAIT_S)[1]
        assert recorder.returncode == 6
        assert "killed by SIGKILL" in said
        assert not (tmp_path / "host.balloon").exists()
