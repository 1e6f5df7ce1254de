"""Has a BPF source compiled in a process of its own, which is gone when the recorder records."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tracer.engine.compiled import Answer
from tracer.engine.map_creation import not_allowed
from tracer.errors import REPORT, BccError

_ROOT = Path(__file__).parents[2]
_START = """\
import runpy, sys
sys.path[:] = {path!r}
runpy.run_module("tracer.engine.compiler", run_name="__main__")
"""
"""`-m` would look for the module in the current directory first, which may be anybody's."""


def compile_apart(name: str, text: str, flags: list[str], headers: Path) -> Answer:
    """Compile a source; takes a second or two, most of it in LLVM.

    Args:
        name: What to call the source in an error.
        text: The source.
        flags: For the compiler.
        headers: Directory in the place of kernel headers.

    Returns:
        `functions` and `maps` as `Compiled.of` reads them.

    Raises:
        BccError: BCC is missing, does not compile the source, or may not make its maps.
    """
    job = json.dumps({"text": text, "flags": flags, "headers": str(headers)}).encode()
    with tempfile.TemporaryFile() as said:
        with _compiler(said) as process:
            data, _ = process.communicate(job)
        said.seek(0)
        words = said.read().decode(errors="replace")
    try:
        answer: Answer = json.loads(data)
    except ValueError:
        raise BccError(
            f"the compiler of {name} ended without an answer",
            reason=_how_it_ended(process.returncode, words),
            remedy=REPORT,
        ) from None
    if "error" in answer:
        raise BccError(**answer["error"])
    if "failed" in answer:
        raise _not_compiled(name, words or answer["failed"])
    return answer


@contextlib.contextmanager
def _compiler(said: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Start the process, its words going to a file; kill it if it is still there at the end."""
    # Its path is ours, so nothing else need be looked for: no site, no user's variables.
    start = _START.format(path=[*sys.path, str(_ROOT)])
    command = [sys.executable, "-I", "-S", "-c", start]
    with _signals_blocked():
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said
        )
    with process:
        try:
            yield process
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


def _how_it_ended(code: int, words: str) -> str:
    if code < 0:
        return f"it was killed by {signal.Signals(-code).name}"
    lines = words.strip().splitlines()
    return lines[-1] if lines else f"exit code {code}"


def _not_compiled(name: str, words: str) -> BccError:
    text = _last_error(words)
    if os.strerror(errno.EPERM) in text:
        return not_allowed()
    return BccError(f"cannot compile {name}", reason=text, remedy=REPORT)


def _last_error(words: str) -> str:
    """Pick the line that says most of what BCC's C++ code has printed."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["no message"])[0]
