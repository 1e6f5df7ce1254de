"""Measures, at attach, what system-call probes cost: the traced thread, and everybody else."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from tracer.cost.machine_code import BATCHES, SYSTEM_CALLS, MachineCode

_COUNT = 400
_NR_GETPPID = 110
_KEEP_SIZE_PUNCH_HOLE = 3
_MAP_FIXED = 0x10


class Requesting(Protocol):
    """What the probes are part of, and what can make them take this thread for a traced one."""

    def as_if_in_request(self) -> AbstractContextManager[Callable[[], int]]:
        """Enter this thread as if it were in a balloon request; yields a count of calls seen."""


class CallCost:
    """Cost of the probes on the entry and exit of one system call, from calls of this process.

    The calls are made by machine code, so that no interpreter stands between them. Make one before
    the probes attach, ask it after. It takes 1 to 3 ms each time.

    Args:
        name: The system call: madvise, fallocate, process_madvise or mmap.

    Raises:
        ProbeError: This system lets no process map code of its own.
    """

    def __init__(self, name: str = "madvise") -> None:
        self._code = MachineCode({"calls": SYSTEM_CALLS})
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory[0] = 1
        address = int(np.frombuffer(self._memory, np.uint8).ctypes.data)
        self._iovec = np.array([address, mmap.PAGESIZE], np.uint64)
        self._file = os.memfd_create("aerostat-cost")
        os.ftruncate(self._file, mmap.PAGESIZE)
        self._process = os.pidfd_open(os.getpid())
        self._call = self._call_of(name, address)
        self._bare_ns = self._pass_ns(self._call)
        self._bare_other_ns = self._pass_ns((_NR_GETPPID,))

    def _call_of(self, name: str, address: int) -> tuple[int, ...]:
        """Return number (x86-64) and arguments of a call that succeeds and changes nothing."""
        page, protection = mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
        calls = {
            "madvise": (28, address, page, mmap.MADV_NORMAL),
            "fallocate": (285, self._file, _KEEP_SIZE_PUNCH_HOLE, 0, page),
            "process_madvise": (440, self._process, self._iovec.ctypes.data, 1, mmap.MADV_WILLNEED),
            "mmap": (9, address, page, protection, private),
        }
        return calls[name]

    def __enter__(self) -> CallCost:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Free what the calls were made on."""
        self._code.close()
        self._memory.close()
        os.close(self._file)
        os.close(self._process)

    def call(self) -> int:
        """Make the system call once; returns what it returned, negative for an errno."""
        result = self._code.call("calls", 1, *self._call)
        return result - (1 << 64) if result >> 63 else result

    def traced_ns(self, engine: Requesting) -> float | None:
        """Time the same calls with this thread entered as if it were in a balloon request.

        Args:
            engine: The host's programs, the call's probes attached.

        Returns:
            Nanoseconds that the probes of one call add to it, not below 0; None where the probes
            did not know this thread (another PID namespace than the kernel's first).
        """
        with engine.as_if_in_request() as hits:
            traced_ns = self._pass_ns(self._call)
            seen = hits()
        return None if seen < BATCHES * _COUNT else max(0.0, traced_ns - self._bare_ns)

    def bystander_ns(self) -> float:
        """Time another system call of a thread that is in no request: what everybody pays.

        Returns:
            Nanoseconds that what has been attached since adds to every system call of every
            process.
        """
        return max(0.0, self._pass_ns((_NR_GETPPID,)) - self._bare_other_ns)

    def _pass_ns(self, call: tuple[int, ...]) -> float:
        return self._code.pass_ns("calls", _COUNT, *call)
