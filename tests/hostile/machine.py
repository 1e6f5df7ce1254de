"""A device model over real memory: a hostile guest's bytes go in, and real discards come out.

Memory as a PC's guest has it, with a driver's ring and buffers in the low part, ROM above it, more
memory, a hole for devices, and memory again. Pages right before and behind the mapping belong to
somebody else; they are stamped, and every request is followed by a look at them.
"""

import ctypes
import mmap
import struct
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import numpy as np

from replay.backings import BACKINGS, Advice
from replay.chain import GuestRam
from replay.device import BalloonDevice, Handled
from replay.memory import GuestMemory
from replay.native.types import Operations, Outcome
from replay.plan import Context, Protocol
from replay.ranges import Runs, empty, subtract
from replay.residency import Residency
from tests.hostile.both_readers import assert_agreed
from tracer.trace.manifest import Region
from tracer.trace.schema import PAGE_BYTES, Queue

LOW_PFN, LOW_PAGES = 0, 0xA0
ROM_PFN = 0xC0
HIGH_PFN, HIGH_PAGES = 0x100, 0xF00
HOLE_PFN = 0x1000
FAR_PFN, FAR_PAGES = 0x2000, 0x1000
LAST_PFN = FAR_PFN + FAR_PAGES - 1
NEXT, WRITE, INDIRECT = 1, 2, 4
TABLE_ENTRIES = 128
"""The balloon's ring in QEMU."""
BUFFER_GPA = 0x4000
MAX_SECONDS = 1.0
MAX_BYTES = 128 << 20
GUARD = bytes([0xA5]) * PAGE_BYTES
MAP_FIXED_NOREPLACE = 0x100000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


def regions(backing: str = "anon") -> tuple[Region, ...]:
    parts = ((LOW_PFN, LOW_PAGES), (HIGH_PFN, HIGH_PAGES), (FAR_PFN, FAR_PAGES))
    return tuple(
        Region("ram", pfn * PAGE_BYTES, None, pages * PAGE_BYTES, backing, PAGE_BYTES)
        for pfn, pages in parts
    )


def le32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def descriptor(addr: int, length: int, flags: int = 0, follower: int = 0) -> bytes:
    return struct.pack("<QIHH", addr & (1 << 64) - 1, length, flags, follower)


def block(pfn: int, pages: int) -> tuple[int, int]:
    """A reported or hinted block: address and length in bytes."""
    return pfn * PAGE_BYTES, pages * PAGE_BYTES


def words(*values: int, data_len: int | None = None, cmd: int = 0, flag: int = 0) -> bytes:
    """A request of the seed's protocol, with a header that may lie."""
    payload = struct.pack(f"<{len(values)}Q", *values)
    length = len(payload) if data_len is None else data_len
    return struct.pack("<BBHI", cmd, flag, 7, length) + payload


def word(pfn: int, pages: int) -> int:
    return pfn << 12 | pages


class NoRoomError(Exception):
    """A guard cannot be put where it must be."""


class Guards:
    """A page of somebody else's on either side of a mapping.

    Raises:
        NoRoomError: Another mapping lies right beside it.
    """

    def __init__(self, base: int, size_bytes: int) -> None:
        self.places: tuple[int, ...] = ()
        for place in (base - PAGE_BYTES, base + size_bytes):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
            got = _libc.mmap(place, PAGE_BYTES, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
            if got != place:
                self.unmap()
                raise NoRoomError("no room for a page beside the model's memory")
            self.places += (place,)
            ctypes.memmove(place, GUARD, PAGE_BYTES)

    def intact(self) -> bool:
        return all(ctypes.string_at(place, PAGE_BYTES) == GUARD for place in self.places)

    def unmap(self) -> None:
        for place in self.places:
            _libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(PAGE_BYTES))


class Machine:
    """A guest's memory, the host's mapping of it, and the device between them; see `running`."""

    def __init__(self, device: BalloonDevice, memory: GuestMemory, guards: Guards) -> None:
        self.device, self.memory, self.guards = device, memory, guards
        self.low = bytearray(LOW_PAGES * PAGE_BYTES)
        self.ram = GuestRam([(0, self.low)])
        self.gone = empty()
        self.outcome: Outcome | None = None

    def send(self, queue: int, *parts: bytes) -> Handled:
        """Send a buffer of device-readable parts, one descriptor each."""
        entries, at = [], BUFFER_GPA
        for part in parts:
            self.low[at : at + len(part)] = part
            entries.append((at, len(part), 0))
            at += len(part)
        return self.send_table(queue, chained(entries))

    def send_blocks(self, queue: int, *blocks: tuple[int, int], command: int | None = None):
        """Send device-writable descriptors, behind a hint's command if there is one."""
        entries = [(gpa, length, WRITE) for gpa, length in blocks]
        if command is not None:
            self.low[BUFFER_GPA : BUFFER_GPA + 4] = le32(command)
            entries.insert(0, (BUFFER_GPA, 4, 0))
        return self.send_table(queue, chained(entries))

    def send_table(self, queue: int, table: bytes, head: int = 0) -> Handled:
        """Have the device take a chain of a raw table, within bounds, and do its work.

        The C device of stage b reads the same table, and must agree.
        """
        if table:
            assert_agreed(table, head, bytes(self.low))
        tracemalloc.start()
        begin = time.process_time()
        try:
            handled = self.device.take(queue, table, head, self.ram)
            seconds, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert seconds < MAX_SECONDS
        assert peak < MAX_BYTES
        self.carry_out(handled)
        return handled

    def carry_out(self, handled: Handled) -> None:
        """Discard, or ask for, what a handled request says, with this memory's own calls."""
        runs = self.device.owed(handled)
        advice = self.device.context.discard
        if handled.queue == Queue.DEFLATE:
            advice = Advice.WILLNEED
        elif handled.queue not in (Queue.INFLATE, Queue.REPORTING):
            return
        if not runs.total_pages:
            return
        self.outcome = self.memory.execute(operations(advice, runs))
        assert self.guards.intact()

    def pages(self, *spans: tuple[int, int]) -> list[tuple[int, int]]:
        """Spans of PFNs as first page and pages of the replayed memory."""
        starts = self.device.context.layout.pages_of(np.array([pfn for pfn, _ in spans], np.int64))
        return [(int(at), pages) for at, (_, pages) in zip(starts, spans, strict=True)]

    def check(self) -> None:
        """Every page of the memory and of its neighbours holds what it must."""
        found = self.memory.verify()
        assert found.findings.wrong == 0
        assert found.appeared_pages == 0
        assert found.lost_pages == 0
        assert self.guards.intact()


def operations(advice: Advice, runs: Runs) -> Operations:
    count = len(runs.start)
    return Operations(
        np.full(count, int(advice), np.uint8),
        runs.start.astype(np.uint64) * np.uint64(PAGE_BYTES),
        runs.pages.astype(np.uint64) * np.uint64(PAGE_BYTES),
        np.zeros(count, np.int64),
    )


def chained(entries: list[tuple[int, int, int]]) -> bytes:
    """A descriptor table that chains address, length and flags in order from index 0."""
    last = len(entries) - 1
    raw = [
        descriptor(addr, length, flags | (NEXT if i < last else 0), i + 1 if i < last else 0)
        for i, (addr, length, flags) in enumerate(entries)
    ]
    return b"".join(raw).ljust(16 * max(TABLE_ENTRIES, len(entries)), b"\0")


@contextmanager
def running(
    protocol: Protocol = "pfns",
    *,
    backing: str = "anon",
    host_page_bytes: int | None = None,
    where: tuple[Region, ...] | None = None,
    inhibited: bool = False,
    poison_val: int = 0,
    populated_pages: int = 1 << 20,
) -> Iterator[Machine]:
    """Run a machine whose memory above ROM is resident and stamped; check all of it at the end."""
    unit = host_page_bytes or BACKINGS[backing].host_page_bytes
    context = Context(where or regions(backing), unit, backing)
    device = BalloonDevice(context, protocol=protocol, inhibited=inhibited, poison_val=poison_val)
    low = Runs(context.layout.base_page[:1], np.array([LOW_PAGES], np.int64))
    resident = subtract(context.layout.runs, low)
    resident = Runs(resident.start, np.minimum(resident.pages, populated_pages))
    with guarded(context.layout.memory_bytes, backing) as (memory, guards):
        memory.restore(Residency(resident, empty(), "all but low memory"))
        machine = Machine(device, memory, guards)
        yield machine
        machine.check()


@contextmanager
def guarded(size_bytes: int, backing: str) -> Iterator[tuple[GuestMemory, Guards]]:
    """Map memory that has room for a guard on either side.

    The kernel may choose a place right beside another mapping: that is kept while more are tried.
    """
    guards = None
    with ExitStack() as held:
        for _ in range(8):
            memory = held.enter_context(GuestMemory(size_bytes, backing, seed=3))
            with suppress(NoRoomError):
                guards = Guards(memory.mapping.base, memory.size_bytes)
                break
        assert guards is not None, "no room for a page beside the model's memory"
        held.callback(guards.unmap)
        yield memory, guards


def found(runs: Runs) -> list[tuple[int, int]]:
    return list(zip(runs.start.tolist(), runs.pages.tolist(), strict=True))
