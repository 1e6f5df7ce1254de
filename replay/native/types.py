"""What goes into the C extension and comes out of it; numbers agree with core.h."""

from collections.abc import Sequence
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
    `failed` is uint8[operations], 1 for each. `preemptions` are those of the calling thread.
    """

    wall_ns: int
    cpu_ns: int
    calls: int
    minor_faults: int
    preemptions: int
    bytes: int
    failures: int
    first_failed: int | None
    first_errno: int
    failed: Bytes


@dataclass(eq=False)
class Watch:
    """Where a watched execution writes; `new_watch` makes one.

    Args:
        per_call_ns: int64[operations], -1 where an operation shares the call before it.
        at_ns: int64[capacity], since the first sample, like those below.
        operations: Done by then.
        rss_bytes: Of this process.
        file_bytes: Of the shared file behind the memory; -1 where there is none.
        samples: How many there are.
    """

    per_call_ns: Times
    at_ns: Times
    operations: Times
    rss_bytes: Times
    file_bytes: Times
    samples: int = 0


def new_watch(operations: int, capacity: int) -> Watch:
    """Room for the times of so many operations, and for that many samples of memory."""
    at_ns, done, rss_bytes, file_bytes = (np.zeros(capacity, np.int64) for _ in range(4))
    return Watch(np.full(operations, -1, np.int64), at_ns, done, rss_bytes, file_bytes)


@dataclass(frozen=True)
class Touch:
    """What writing to pages took. The faults are of this thread."""

    wall_ns: int
    cpu_ns: int
    minor_faults: int
    pages: int


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


@dataclass(frozen=True, eq=False)
class WireRequests:
    """Requests, one after the other, in the order in which they are sent.

    Args:
        wire: uint8, the content; descriptors stand for themselves, 16 bytes as in the ring.
        start: uint64[n + 1]: request i is `wire[start[i]:start[i + 1]]`.
        form: uint8[n], `tracer.trace.schema.Wire`.
        queue: uint8[n], `tracer.trace.schema.Queue`.
        wait: uint8[n], 1 where the driver waits for its answer; 0 where it first adds the next
            one, while the ring has room, as the F_SG series does with ranges.
    """

    wire: Bytes
    start: Words
    form: Bytes
    queue: Bytes
    wait: Bytes

    def __len__(self) -> int:
        """Wire requests."""
        return len(self.form)


@dataclass(frozen=True)
class Agreed:
    """What driver and device agreed on, as Linux and QEMU do by default, and where they run.

    Args:
        event_idx: Each side says from which index on it wants to be told (VIRTIO_RING_F_EVENT_IDX).
        indirect: Requests of several descriptors lie in a table of their own
            (VIRTIO_RING_F_INDIRECT_DESC).
        cpus: CPU of the driver's and of the device's thread; None leaves them to the scheduler.
    """

    event_idx: bool = True
    indirect: bool = True
    cpus: tuple[int, int] | None = None


@dataclass(frozen=True)
class Service:
    """What the device does with each request before it gives it back.

    Args:
        memory: The mapping that operations act on.
        operations: In order; one thread's.
        rules: As for `execute`.
        regions: (gpa, length_bytes, offset_bytes) of each region of guest memory.
        op_end: int64[requests], rising: request i carries out operations
            `op_end[i - 1]:op_end[i]`.
    """

    memory: Memory
    operations: Operations
    rules: dict[int, Rule]
    regions: Sequence[tuple[int, int, int]]
    op_end: Times


@dataclass(frozen=True)
class Served:
    """What a device that serves did: stages c and d, within the wall time of the exchange.

    `translate_ns` and `discard_ns` are measured in the device's thread; `outcome.cpu_ns` is not,
    and 0: the CPU time of the exchange holds it.
    """

    translate_ns: int
    discard_ns: int
    translation: Translation
    outcome: Outcome


@dataclass(frozen=True)
class Exchange:
    """What sending requests through the queues took.

    Args:
        wall_ns: From the first request added to the last one taken back, in the driver's thread.
        driver_cpu_ns: CPU time of that thread meanwhile.
        device_cpu_ns: CPU time of the device's.
        requests: Buffers that the device took; one a wire request.
        kicks: Notifications of the device; one that still looks for more is spared its own.
        interrupts: Notifications of the driver; the same holds.
        descriptors: That the device read.
        ring_bytes: What the device read to know what a request says: descriptors and content.
        written_bytes: That the device says it wrote into the driver's buffers: the lengths in the
            used rings, which the driver reads. A balloon's buffers hold nothing that it writes.
        refused: Buffers that the device would not take as they were.
        received: uint8, what it gathered from the rings.
        received_start: uint64[requests + 1]: request i is
            `received[received_start[i]:received_start[i + 1]]`.
        served: Of a device that serves.
    """

    wall_ns: int
    driver_cpu_ns: int
    device_cpu_ns: int
    requests: int
    kicks: int
    interrupts: int
    descriptors: int
    ring_bytes: int
    written_bytes: int
    refused: int
    received: Bytes
    received_start: Words
    served: Served | None

    @property
    def send_ns(self) -> int:
        """Stage b: the wall time without what a device that serves did for c and d."""
        if self.served is None:
            return self.wall_ns
        return self.wall_ns - self.served.translate_ns - self.served.discard_ns
