"""What goes into the C extension and comes out of it; numbers agree with core.h."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from tracer.trace.errors import AerostatError

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
Times = npt.NDArray[np.int64]

MAX_THREADS = 64
"""Of one plan, a guard; AERO_MAX_THREADS of execute.h."""


class NativeError(AerostatError):
    """The C extension is missing, or one of its calls failed."""


class CallKind(IntEnum):
    """How an operation is carried out; `enum aero_call` of core.h."""

    REFUSED = 0
    NOTHING = 1
    MADVISE = 2
    FALLOCATE = 3
    REMAP = 4


class Effect(IntEnum):
    """What an operation does to a page; `enum aero_effect`."""

    KEEPS = 0
    FREES = 1
    FREES_LATER = 2
    FILLS = 3


class Page(IntEnum):
    """What a page is expected to hold; `enum aero_page`."""

    NEVER = 0
    STAMPED = 1
    GONE = 2
    LAZY = 3
    FILLED = 4


@dataclass(frozen=True)
class Memory:
    """A mapping: host virtual address, size, file behind it (-1 for none), MAP_SHARED or not."""

    base: int
    size_bytes: int
    fd: int
    shared: bool


@dataclass(frozen=True)
class Rule:
    """How one advice code is carried out on one backing, and what it does to a page there."""

    call: CallKind
    value: int
    effect: Effect


@dataclass(frozen=True)
class Operations:
    """The operations of a plan, in order.

    Args:
        advice: uint8[k].
        offset_bytes: uint64[k] from the start of the mapping.
        length_bytes: uint64[k].
        request: int64[k], ascending. Threads wait for each other where it changes.
        joined: uint8[k], 1 where it shares the system call before it; None: nowhere.
        thread: uint8[k]; None: all are one thread's.
    """

    advice: Bytes
    offset_bytes: Words
    length_bytes: Words
    request: Times
    joined: Bytes | None = None
    thread: Bytes | None = None

    def __len__(self) -> int:
        """Operations."""
        return len(self.advice)

    @property
    def threads(self) -> int:
        """Threads that are needed."""
        return 1 if self.thread is None or not len(self) else int(self.thread.max()) + 1


@dataclass(frozen=True)
class Outcome:
    """What executing operations took.

    `calls` are system calls, `failures` are operations, `first_failed` is the index of one, and
    `failed` is uint8[operations], 1 for each.
    """

    wall_ns: int
    cpu_ns: int
    calls: int
    minor_faults: int
    bytes: int
    failures: int
    first_failed: int | None
    first_errno: int
    failed: Bytes


@dataclass(frozen=True)
class Findings:
    """What reading the memory back showed. `first_wrong_page` is None when every page is right."""

    stamped_checked: int
    gone_checked: int
    lazy_checked: int
    lazy_freed: int
    wrong: int
    first_wrong_page: int | None


@dataclass(frozen=True)
class Translation:
    """What decoding requests and looking up their pages took and found."""

    wall_ns: int
    cpu_ns: int
    entries: int
    pages: int
    rejected: int
    checksum: int
