"""Machine code of our own: loops that time probes without an interpreter between two hits.

The code lies in a file in memory, so that a uprobe can be attached to it like to any program file.
x86-64, System V calling convention: arguments in rdi, rsi, rdx, rcx, r8; result in rax.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tracer.errors import ProbeError

_SLOT_BYTES = 64
_SLOTS = 4096
_TRAP = b"\xcc"
"""int3 between the routines: a jump that misses ends at once."""
BATCHES = 15

SYSTEM_CALLS = bytes.fromhex(
    "53"  # push %rbx
    "4154"  # push %r12
    "4889fb"  # mov %rdi, %rbx    how many calls
    "4989f4"  # mov %rsi, %r12    number of the system call
    "4889d7"  # mov %rdx, %rdi    its arguments
    "4889ce"  # mov %rcx, %rsi
    "4c89c2"  # mov %r8, %rdx
    "4d89ca"  # mov %r9, %r10
    "4531c0"  # xor %r8, %r8      the fifth and sixth are always 0
    "4531c9"  # xor %r9, %r9
    "4c89e0"  # 1: mov %r12, %rax
    "0f05"  # syscall
    "48ffcb"  # dec %rbx
    "75f6"  # jnz 1b
    "415c"  # pop %r12
    "5b"  # pop %rbx
    "c3"  # ret
)
"""`calls(count, number, ...)`: makes one system call with up to four arguments `count` times."""


def loop(body: bytes) -> bytes:
    """Return a routine `f(count)` that executes `body` so many times; body must keep rdi."""
    back = -(len(body) + 9)
    # dec %rdi; jnz to the body; ret
    return body + b"\x48\xff\xcf" + b"\x0f\x85" + back.to_bytes(4, "little", signed=True) + b"\xc3"


def _place(text: bytearray, code: bytes) -> int:
    """Choose a routine's file offset: by its bytes, and the next that is free."""
    room = -(-len(code) // _SLOT_BYTES) * _SLOT_BYTES
    slot = zlib.crc32(code)
    while True:
        offset = slot % _SLOTS * _SLOT_BYTES
        if text[offset : offset + room] == _TRAP * room:
            return offset
        slot += 1


class MachineCode:
    """Routines in a file in memory, mapped executable into this process.

    Where in the file a routine lies, its own bytes say. A uprobe of a process that was killed stays
    behind without its file ("failed to unregister, leaking uprobe", seen on Linux 6.18), and a
    later file that comes to lie where that one did in the kernel's memory gets it, with the
    instruction of then: it must not be another one.

    Args:
        routines: Name to code.

    Raises:
        ProbeError: This system lets no process map code of its own.
    """

    def __init__(self, routines: Mapping[str, bytes]) -> None:
        self._offsets: dict[str, int] = {}
        text = bytearray(_TRAP * (_SLOTS * _SLOT_BYTES))
        for name, code in routines.items():
            self._offsets[name] = offset = _place(text, code)
            text[offset : offset + len(code)] = code
        try:
            self._file = os.memfd_create("aerostat-code")
            os.write(self._file, text)
            self._memory = mmap.mmap(
                self._file, len(text), flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC
            )
        except OSError as error:
            raise ProbeError(
                "cannot map machine code of our own, so probes cannot be timed", reason=str(error)
            ) from error
        self._address = int(np.frombuffer(self._memory, np.uint8).ctypes.data)

    @property
    def path(self) -> Path:
        """The file, as this process sees it."""
        return Path(f"/proc/self/fd/{self._file}")

    def offset(self, name: str) -> int:
        """Return the file offset of a routine's first instruction."""
        return self._offsets[name]

    def address(self, name: str) -> int:
        """Return where a routine lies in this process."""
        return self._address + self._offsets[name]

    def call(self, name: str, *arguments: int) -> int:
        """Run a routine with integer or address arguments; returns rax."""
        kinds = [ctypes.c_uint64] * len(arguments)
        routine = ctypes.CFUNCTYPE(ctypes.c_uint64, *kinds)(self.address(name))
        return int(routine(*arguments))

    def pass_ns(self, name: str, count: int, *arguments: int) -> float:
        """Time one pass of a routine whose first argument is how many passes it makes.

        Args:
            name: The routine.
            count: Passes of one batch.
            arguments: Its other arguments.

        Returns:
            Nanoseconds a pass, of the fastest batch: whatever disturbs a batch lengthens it.
        """
        kinds = [ctypes.c_uint64] * (1 + len(arguments))
        routine = ctypes.CFUNCTYPE(ctypes.c_uint64, *kinds)(self.address(name))
        routine(1, *arguments)
        batches = []
        for _ in range(BATCHES):
            begin_ns = time.perf_counter_ns()
            routine(count, *arguments)
            batches.append(time.perf_counter_ns() - begin_ns)
        return min(batches) / count

    def close(self) -> None:
        """Unmap the code; no routine may be running or probed any more."""
        self._memory.close()
        os.close(self._file)
