"""Has a BPF source compiled in a process of its own, which is gone when the recorder records."""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tracer.engine.bpf_programs import denial, denial_remedy
from tracer.engine.compiler import LENGTH
from tracer.errors import BccError

_ROOT = Path(__file__).parents[2]
_START = """\
import runpy, sys
sys.path[:] = {path!r}
sys.argv[1:] = [{number!r}]
runpy.run_module("tracer.engine.compiler", run_name="__main__")
"""
"""`-m` would look for the module in the current directory first, which may be anybody's."""
_MAX_MAPS = 64
_CHUNK_BYTES = 1 << 20
_REPORT = "report this with the output of `aerostat doctor --json`"


@dataclass(frozen=True, slots=True)
class MapDescription:
    """A map that the compiler has made.

    Attributes:
        fd: Its descriptor, owned by whoever asked for it.
        fd_in_text: The number by which instructions name it.
        key: C type of its keys as BCC describes it; None where there are none.
        leaf: That of its values.
    """

    fd: int
    fd_in_text: int
    key: Any
    leaf: Any


@dataclass(frozen=True, slots=True)
class Compiled:
    """What came of a source.

    Attributes:
        functions: Instructions of each program; maps are named by `fd_in_text`.
        maps: Every map, open.
    """

    functions: dict[str, bytes]
    maps: dict[str, MapDescription]


def compile_apart(name: str, text: str, flags: list[str], headers: Path) -> Compiled:
    """Compile a source and make its maps; takes a second or two, most of it in LLVM.

    Args:
        name: What to call the source in an error.
        text: The source.
        flags: For the compiler.
        headers: Directory in the place of kernel headers.

    Raises:
        BccError: BCC is missing, does not compile the source, or may not make its maps.
    """
    job = json.dumps({"text": text, "flags": flags, "headers": str(headers)}).encode()
    with tempfile.TemporaryFile() as said, _compiler(said) as (process, connection):
        answer, descriptors = _exchanged(connection, job)
        if not answer:
            process.wait()
        said.seek(0)
        words = said.read().decode(errors="replace")
    if "error" in answer:
        raise BccError(**answer["error"])
    if "failed" in answer:
        raise _not_compiled(name, words or answer["failed"])
    if not answer:
        raise BccError(
            f"the compiler of {name} ended without an answer",
            reason=_how_it_ended(process.returncode, words),
            remedy=_REPORT,
        )
    functions = {key: base64.b64decode(code) for key, code in answer["functions"].items()}
    maps = {
        each["name"]: MapDescription(fd, each["fd"], each["key"], each["leaf"])
        for each, fd in zip(answer["maps"], descriptors, strict=True)
    }
    return Compiled(functions, maps)


@contextlib.contextmanager
def _compiler(said: IO[bytes]) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """Start the process, its words going to a file; kill it if it is still there at the end."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            start = _START.format(path=[*sys.path, str(_ROOT)], number=str(theirs.fileno()))
            # Its path is ours, so nothing else need be looked for: no site, no user's variables.
            command = [sys.executable, "-I", "-S", "-c", start]
            with _signals_blocked():
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    pass_fds=[theirs.fileno()],
                )
        with process:
            try:
                yield process, ours
            finally:
                process.kill()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Start a process that Ctrl-C and a service's stop do not reach: its parent decides.

    The mask outlives an exec. A signal that comes meanwhile is delivered here at the end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _exchanged(connection: socket.socket, job: bytes) -> tuple[dict[str, Any], list[int]]:
    """Send a job and take the answer; empty where the other end closes before it has answered."""
    try:
        connection.sendall(job)
        connection.shutdown(socket.SHUT_WR)
        head, descriptors, _, _ = socket.recv_fds(
            connection, LENGTH.size, _MAX_MAPS, socket.MSG_CMSG_CLOEXEC
        )
        data = _exactly(connection, LENGTH.unpack(head)[0]) if head else b""
    except ConnectionError:
        return {}, []
    if not data:
        for fd in descriptors:
            os.close(fd)
        return {}, []
    return json.loads(data), descriptors


def _exactly(connection: socket.socket, size_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < size_bytes:
        part = connection.recv(min(_CHUNK_BYTES, size_bytes - len(data)))
        if not part:
            return b""
        data += part
    return bytes(data)


def _how_it_ended(code: int, words: str) -> str:
    if code < 0:
        return f"it was killed by {signal.Signals(-code).name}"
    lines = words.strip().splitlines()
    return lines[-1] if lines else f"exit code {code}"


def _not_compiled(name: str, words: str) -> BccError:
    text = _last_error(words)
    if os.strerror(errno.EPERM) in text:
        return BccError(
            "the kernel does not let this process make BPF maps",
            reason=denial(),
            remedy=denial_remedy(),
        )
    return BccError(f"cannot compile {name}", reason=text, remedy=_REPORT)


def _last_error(words: str) -> str:
    """Pick the line that says most of what BCC's C++ code has printed."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["no message"])[0]
