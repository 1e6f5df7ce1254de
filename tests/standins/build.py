"""Stand-ins for VMMs that cannot run here, or not with a guest: built when first asked for.

    with qemu_like("-m", "2G", "-name", "guest=web") as vm:
        vm.pid                                    # runs the file `qemu-system-x86_64`, stripped
        vm.parts                                  # where its guest memory truly lies
        did = vm.send("inflate", 4096, 1000, -1)  # 4 requests, 1000 PFNs, 1000 madvise calls
        did.requests, did.pages, did.calls

`qemu_like` has the exported symbols, static handlers and struct layouts of QEMU, and takes its
options for memory; `firecracker_like` has no known symbol, sorts and merges PFNs, and discards by
madvise, by mapping over, by hole punch or by vector. Their commands are listed at the top of
qemu_like.c and firecracker_like.c. Every reply counts what was really done. Both end when the block
is left, and also when the test process dies, since their stdin closes.

`program(NAME)` is the path of the built file, for tests that run it elsewhere: in a container of
their own (`prefix=`), or from a copy that they delete (`path=`).
"""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent
PROGRAMS = {
    "qemu-system-x86_64": ("qemu_like.c", "qemu_balloon.c", "qemu_memory.c"),
    "firecracker": ("firecracker_like.c",),
}
# -rdynamic exports what is not static, as QEMU's build does for its modules.
FLAGS = ("-O2", "-fPIE", "-pie", "-rdynamic", "-Wl,--build-id", "-Wall", "-Wextra", "-Werror")


@cache
def _directory() -> Path:
    made = Path(tempfile.mkdtemp(prefix="aerostat-standins-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@cache
def program(name: str, *macros: str, cet: bool = False) -> Path:
    """Build one stand-in, stripped like a distribution's program; return its path.

    Args:
        name: A key of PROGRAMS; the file has this name.
        macros: What spoils it, as the top of its sources says.
        cet: Whether its functions begin with an endbr64, as those of many distributions do.
    """
    path = _directory() / "-".join(("program", *macros, *(["cet"] if cet else []))) / name
    path.parent.mkdir(exist_ok=True)
    sources = [str(SOURCES / source) for source in (*PROGRAMS[name], "control.c")]
    more = [f"-D{macro}" for macro in macros] + ["-fcf-protection"] * cet
    subprocess.run(["gcc", *FLAGS, *more, "-o", str(path), *sources], check=True)
    subprocess.run(["strip", str(path)], check=True)
    return path


@dataclass(frozen=True)
class Did:
    """What one command did, counted by the stand-in itself (struct counts of control.h)."""

    requests: int
    pages: int
    rejected: int
    calls: int
    failed: int
    call_bytes: int
    noise: int


class StandIn:
    """A running stand-in.

    Attributes:
        pid: Its process id in this namespace, also where it runs in another.
        parts: Guest memory as it truly lies: name, gpa, hva, length_bytes, backing,
            page_size_bytes, file_offset_bytes.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        ready = self._read()
        self.parts: list[dict[str, Any]] = ready["parts"]
        self.pid = _last_child(process.pid)

    def send(self, command: str, *arguments: int | str) -> Did:
        """Carry out one command and wait for it."""
        assert self._process.stdin is not None
        print(command, *arguments, file=self._process.stdin, flush=True)
        reply = self._read()
        assert reply.pop("command", None) == command, reply
        return Did(**reply)

    def replace(self) -> None:
        """Let it run another program of its kind in its place, in the same process."""
        assert self._process.stdin is not None
        print("exec", file=self._process.stdin, flush=True)
        self.parts = self._read()["parts"]

    def fade(self) -> None:
        """Let it lose its program before its process is gone, which it is when the block ends."""
        assert self._process.stdin is not None
        print("fade", file=self._process.stdin, flush=True)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the stand-in ended with {self._process.wait()}"
        return dict(json.loads(line))

    def end(self) -> None:
        """Let it end, as a VM that shuts down, and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)


@contextmanager
def started(
    argv: list[str], *, path: Path | None = None, prefix: tuple[str, ...] = ()
) -> Iterator[StandIn]:
    """Run a stand-in until the block is left.

    Args:
        argv: Its whole argument vector; argv[0] too is only what the process shows.
        path: The file to run, argv[0] where None.
        prefix: Command that runs it, such as `unshare ...`; path is not used then.
    """
    with subprocess.Popen(
        [*prefix, *argv],
        executable=None if prefix else path or argv[0],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            standin = StandIn(process)
            yield standin
            if process.poll() is None:
                standin.end()
        finally:
            process.kill()


def _last_child(pid: int) -> int:
    """Follow first children down: what a command that runs another one in the end runs."""
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])
    return pid


def qemu_like(*arguments: str, path: Path | None = None) -> Any:
    """Run the stand-in for QEMU with these options; a context manager of StandIn."""
    name = "qemu-system-x86_64"
    return started([name, *arguments], path=path or program(name))


def firecracker_like(*arguments: str, path: Path | None = None) -> Any:
    """Run the stand-in for Firecracker with these options; a context manager of StandIn."""
    return started(["firecracker", *arguments], path=path or program("firecracker"))


def configured(directory: Path, mem_size_mib: int) -> tuple[str, str]:
    """Write a configuration for `firecracker_like` that states its memory; the options for it."""
    path = directory / "vm.json"
    path.write_text(json.dumps({"machine-config": {"mem_size_mib": mem_size_mib}}))
    return "--config-file", str(path)
