"""Compiles and attaches our BPF programs. The only module that imports BCC."""

from __future__ import annotations

import contextlib
import importlib.resources
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tracer.errors import BccError, ProbeError
from tracer.libbpf import BPF_TRACE_FENTRY, BPF_TRACE_FEXIT, Btf, attach_tracing

_TRACEFS = Path("/sys/kernel/tracing")
_INSTALL_BCC = (
    "apt-get install python3-bpfcc, and make the environment with "
    "/usr/bin/python3 -m venv --system-site-packages"
)


def import_bcc() -> Any:
    """Import BCC's `bcc` module.

    Raises:
        BccError: It is missing, or it is the unrelated `bcc` of the Python package index.
    """
    try:
        import bcc
    except ImportError as error:
        raise BccError("cannot import BCC", reason=str(error), remedy=_INSTALL_BCC) from error
    if not hasattr(bcc, "BPF"):
        raise BccError(
            "the installed package `bcc` is not BCC",
            reason=f"{getattr(bcc, '__file__', 'it')} has no class BPF",
            remedy=f"pip uninstall bcc; {_INSTALL_BCC}",
        )
    return bcc


@contextlib.contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """Collect what libbcc's C++ code writes to descriptor 2: its exceptions say nothing."""
    text: list[str] = []
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield text
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            text.append(sink.read().decode(errors="replace"))


def _last_error(text: list[str]) -> str:
    lines = [line.strip() for line in "".join(text).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["no message"])[0]


def _joined(root: Path, sources: tuple[str, ...]) -> bytes:
    """Join the parts of a program; BCC rewrites map accesses in one file alone, not in headers."""
    parts = [f'#line 1 "{name}"\n{(root / name).read_text()}' for name in sources]
    return "\n".join(parts).encode()


class Program:
    """One compiled BPF source with its attachments.

    Args:
        sources: File names in bpf/ that make one source together, in this order.
        defines: Macros: constants come in this way, the text is never edited.

    Raises:
        BccError: BCC is missing or does not compile the source.
    """

    def __init__(self, sources: tuple[str, ...], defines: dict[str, int]) -> None:
        self._bcc = import_bcc()
        self._closers: list[Any] = []
        root = Path(str(importlib.resources.files("bpf")))
        # BCC looks for kernel headers here; ours are enough, so none need be installed.
        os.environ["BCC_KERNEL_SOURCE"] = str(root / "headers")
        flags = [f"-I{root}", *(f"-D{name}={value:#x}" for name, value in defines.items())]
        with _captured_stderr() as text:
            try:
                self._bpf = self._bcc.BPF(text=_joined(root, sources), cflags=flags)
            except Exception as error:
                failure: Exception | None = error
            else:
                failure = None
        if failure is not None:
            raise BccError(
                f"cannot compile {', '.join(sources)}",
                reason=_last_error(text),
                remedy="run with sudo on a kernel with BPF; `aerostat doctor` says what is missing",
            ) from failure

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Detach every probe that was not claimed, and free the maps."""
        self.detach()
        self._bpf.cleanup()

    def detach(self) -> None:
        """Detach every probe that was not claimed; the maps stay readable."""
        self.claim()()

    def claim(self) -> Callable[[], None]:
        """Hand over what was attached since the last claim.

        Returns:
            Detaches it; until then it stays attached, even when this object detaches the rest.
        """
        closers, self._closers = self._closers, []

        def detach() -> None:
            while closers:
                closers.pop()()

        return detach

    def map_fd(self, name: str) -> int:
        """Return the descriptor of a map; it stays ours."""
        return int(self._bpf[name.encode()].map_fd)

    def counter(self, index: int) -> int:
        """Sum one entry of the per-CPU array `counters` over all CPUs."""
        table = self._bpf[b"counters"]
        return int(sum(table[table.Key(index)]))

    def _load(self, function: str, kind: int) -> int:
        with _captured_stderr() as text:
            try:
                return int(self._bpf.load_func(function.encode(), kind).fd)
            except Exception as error:
                failure = error
        raise ProbeError(
            f"the kernel refuses the BPF program {function}",
            reason=f"{failure}: {_last_error(text)}",
        ) from failure

    def _keep(self, fd: int, what: str) -> None:
        if fd < 0:
            raise ProbeError(f"cannot attach {what}", reason="perf_event_open or BPF refused it")
        self._closers.append(lambda: os.close(fd))

    def attach_uprobe(self, function: str, path: Path, file_offset: int, pid: int) -> None:
        """Attach to an instruction of a program file, in one process's memory only.

        Raises:
            ProbeError: The kernel refuses it.
        """
        program = self._load(function, self._bcc.BPF.KPROBE)
        name = f"aerostat_{pid}_{file_offset:x}"
        with _captured_stderr() as text:
            fd = self._bcc.libbcc.lib.bpf_attach_uprobe(
                program, 0, name.encode(), str(path).encode(), file_offset, pid, 0
            )
        if fd < 0:
            raise ProbeError(
                f"cannot attach a uprobe at {path}+{file_offset:#x}", reason=_last_error(text)
            )
        self._keep(fd, name)

    def attach_kprobe(
        self, function: str, symbol: str, *, at_return: bool, address: int | None = None
    ) -> None:
        """Attach to the entry or the return of a kernel function.

        Args:
            function: BPF program.
            symbol: The kernel's function.
            at_return: At its return.
            address: Its address, where the kernel has others of that name.

        Raises:
            ProbeError: The kernel has no kprobes or no such function.
        """
        program = self._load(function, self._bcc.BPF.KPROBE)
        plain = re.sub(r"\W", "_", symbol)
        name = f"aerostat_{'r' if at_return else 'p'}_{plain}_{os.getpid()}"
        # Without a name the offset is an address (perf_event_open(2): config2, kprobe_addr).
        place = (symbol.encode(), 0) if address is None else (b"", address)
        with _captured_stderr() as text:
            fd = self._bcc.libbcc.lib.bpf_attach_kprobe(
                program, 1 if at_return else 0, name.encode(), *place, 0
            )
        if fd < 0:
            raise ProbeError(f"cannot attach a kprobe to {symbol}", reason=_last_error(text))
        self._keep(fd, symbol)

    def attach_fentry(self, function: str, btf: Btf, symbol: str, *, at_return: bool) -> None:
        """Attach to the entry or the return of a kernel or module function by trampoline.

        Raises:
            ProbeError: The kernel lists no such function or loads no such program.
        """
        kind = BPF_TRACE_FEXIT if at_return else BPF_TRACE_FENTRY
        text = self._bpf.dump_func(function.encode())
        self._keep(attach_tracing(bytes(text), btf, symbol, kind), symbol)

    def attach_tracepoint(self, function: str, category: str, event: str) -> None:
        """Attach to a classic tracepoint; mounts tracefs where nobody has.

        Raises:
            ProbeError: There is no tracefs or no such event.
        """
        mount_tracefs()
        program = self._load(function, self._bcc.BPF.TRACEPOINT)
        with _captured_stderr() as text:
            fd = self._bcc.libbcc.lib.bpf_attach_tracepoint(
                program, category.encode(), event.encode()
            )
        if fd < 0:
            raise ProbeError(
                f"cannot attach to tracepoint {category}:{event}", reason=_last_error(text)
            )
        self._keep(fd, event)

    def attach_raw_tracepoint(self, function: str, event: str) -> None:
        """Attach to a raw tracepoint.

        Raises:
            ProbeError: There is no such event.
        """
        program = self._load(function, self._bcc.BPF.RAW_TRACEPOINT)
        with _captured_stderr() as text:
            fd = self._bcc.libbcc.lib.bpf_attach_raw_tracepoint(program, event.encode())
        if fd < 0:
            raise ProbeError(f"cannot attach to raw tracepoint {event}", reason=_last_error(text))
        self._keep(fd, event)

    def __getitem__(self, name: str) -> Any:
        """Return a map as BCC's table object."""
        return self._bpf[name.encode()]


def mount_tracefs() -> None:
    """Mount tracefs where nobody has: classic tracepoints are found through it.

    Raises:
        ProbeError: It is not there and cannot be mounted.
    """
    if _has_events():
        return
    subprocess.run(
        ["mount", "-t", "tracefs", "tracefs", str(_TRACEFS)], check=False, capture_output=True
    )
    if not _has_events():
        raise ProbeError("tracefs is not mounted", remedy=f"mount -t tracefs tracefs {_TRACEFS}")


def _has_events() -> bool:
    try:
        return (_TRACEFS / "events").exists()
    except PermissionError as error:
        raise ProbeError(
            "tracefs may not be read", reason=str(error), remedy="run with sudo"
        ) from error
