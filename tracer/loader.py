"""Compiles and loads our BPF programs. The only module that imports BCC."""

from __future__ import annotations

import ctypes
import errno
import importlib.resources
import os
import re
from pathlib import Path
from typing import Any

from tracer.attachments import Attachments, captured_stderr, last_error
from tracer.bpf_programs import EMPTY, denial, denial_remedy, load_program, refusal
from tracer.errors import BccError, ProbeError

_INSTALL_BCC = (
    "apt-get install python3-bpfcc, and make the environment with "
    "/usr/bin/python3 -m venv --system-site-packages"
)


def import_bcc() -> Any:
    """Import BCC's `bcc` module.

    Raises:
        BccError: It is missing, its library is, or it is the unrelated `bcc` of the Python package
            index.
    """
    try:
        import bcc
    except ImportError as error:
        raise BccError("cannot import BCC", reason=str(error), remedy=_INSTALL_BCC) from error
    except OSError as error:
        raise BccError(
            "BCC's own library cannot be loaded",
            reason=str(error),
            remedy="apt-get install --reinstall libbpfcc python3-bpfcc",
        ) from error
    if not hasattr(bcc, "BPF"):
        raise BccError(
            "the installed package `bcc` is not BCC",
            reason=f"{getattr(bcc, '__file__', 'it')} has no class BPF",
            remedy="pip uninstall --yes bcc; apt-get install python3-bpfcc",
        )
    return bcc


def _joined(root: Path, sources: tuple[str, ...]) -> bytes:
    """Join the parts of a program; BCC rewrites map accesses in one file alone, not in headers."""
    parts = [f'#line 1 "{name}"\n{(root / name).read_text()}' for name in sources]
    return "\n".join(parts).encode()


class Program(Attachments):
    """One compiled BPF source with its attachments.

    Args:
        sources: File names in bpf/ that make one source together, in this order.
        defines: Macros: constants come in this way, the text is never edited.

    Raises:
        BccError: BCC is missing, does not compile the source, or may not make its maps.
    """

    def __init__(self, sources: tuple[str, ...], defines: dict[str, int]) -> None:
        bcc = import_bcc()
        super().__init__(bcc.libbcc.lib)
        root = Path(str(importlib.resources.files("bpf")))
        # BCC looks for kernel headers here; ours are enough, so none need be installed.
        os.environ["BCC_KERNEL_SOURCE"] = str(root / "headers")
        flags = [f"-I{root}", *(f"-D{name}={value:#x}" for name, value in defines.items())]
        with captured_stderr() as text:
            try:
                self._bpf = bcc.BPF(text=_joined(root, sources), cflags=flags)
            except Exception as error:
                failure: Exception | None = error
            else:
                failure = None
        if failure is not None:
            raise _not_compiled(", ".join(sources), text) from failure
        _give_back_memory()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Detach every probe that was not claimed, and free the maps."""
        self.detach()
        self._bpf.cleanup()

    def map_fd(self, name: str) -> int:
        """Return the descriptor of a map; it stays ours."""
        return int(self._bpf[name.encode()].map_fd)

    def counter(self, index: int) -> int:
        """Sum one entry of the per-CPU array `counters` over all CPUs."""
        table = self._bpf[b"counters"]
        return int(sum(table[table.Key(index)]))

    def __getitem__(self, name: str) -> Any:
        """Return a map as BCC's table object."""
        return self._bpf[name.encode()]

    def _load(self, function: str, kind: int) -> int:
        with captured_stderr() as text:
            try:
                return int(self._bpf.load_func(function.encode(), kind).fd)
            except Exception as error:
                failure = error
        raise refused(function, "".join(text)) from failure

    def _text(self, function: str) -> bytes:
        return bytes(self._bpf.dump_func(function.encode()))


class EmptyPrograms(Attachments):
    """Programs that do nothing, to time what leads to a program; made without a compiler.

    Raises:
        BccError: BCC is missing.
    """

    def __init__(self) -> None:
        super().__init__(import_bcc().libbcc.lib)
        self._loaded: dict[tuple[str, int], int] = {}

    def __enter__(self) -> EmptyPrograms:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Detach and unload."""
        self.detach()
        for program in self._loaded.values():
            os.close(program)
        self._loaded.clear()

    def _load(self, function: str, kind: int) -> int:
        if (function, kind) not in self._loaded:
            self._loaded[function, kind] = load_program(kind, EMPTY, function)
        return self._loaded[function, kind]

    def _text(self, function: str) -> bytes:
        return EMPTY


def _give_back_memory() -> None:
    """Return what the compiler has freed to the system: tens of MiB that a recorder never needs."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def _not_compiled(source: str, text: list[str]) -> BccError:
    words = last_error(text)
    if os.strerror(errno.EPERM) in words:
        return BccError(
            "the kernel does not let this process make BPF maps",
            reason=denial(),
            remedy=denial_remedy(),
        )
    return BccError(
        f"cannot compile {source}",
        reason=words,
        remedy="report this with the output of `aerostat doctor --json`",
    )


def refused(function: str, printed: str) -> ProbeError:
    """Turn what libbcc printed about a load that failed into an error.

    Args:
        function: The program.
        printed: `bpf: Failed to load program: WHY`, then the verifier's log, then hints.
    """
    found = re.search(r"Failed to load program: ([^\n]*)\n(.*)", printed, re.DOTALL)
    why, log = found.groups() if found else (os.strerror(errno.EINVAL), printed)
    numbers = {os.strerror(number): number for number in (errno.EPERM, errno.EACCES, errno.E2BIG)}
    return refusal(function, numbers.get(why.strip(), errno.EINVAL), log.partition("HINT")[0])
