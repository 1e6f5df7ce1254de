"""Empties rings into memory in a thread of its own.

Whatever keeps a recorder from its rings for a while, such as a disk that is slow to sync or a VM
whose memory is scanned, then costs memory and no events.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator

from tracer.engine.ring import Records, Ring, join_records
from tracer.errors import ProbeError
from tracer.record.capture import next_wait_s

HELD_BYTES = 64 << 20
"""What may wait in memory, shared evenly by all rings, so that one guest cannot take what another
needs. What comes then stays in the ring, and is lost and counted when that is full too."""
PART_BYTES = 4 << 20
"""At most so much of it is taken at a time: what is made of it must not stand beside all of it."""
_NICE = -10
"""Of the thread, where this process may ask for it (CAP_SYS_NICE)."""
_SWITCH_S = 0.001
"""How long Python lets one thread compute while another waits. Its default is 5 ms, in which a
small ring overflows."""


class PumpedRing:
    """A ring, and what the pump has taken out of it: `read` and `used_share` as a Ring has them.

    One thread reads it, beside the pump's.

    Args:
        ring: Stays the caller's to close, after it was taken from the pump.
        longest_wait_s: How long it may go without being emptied.
    """

    def __init__(self, ring: Ring, longest_wait_s: float) -> None:
        self.longest_wait_s = longest_wait_s
        self._ring: Ring | None = ring
        self._lock = threading.Lock()
        self._held: deque[Records] = deque()
        self._held_bytes = 0
        self._room_bytes = HELD_BYTES

    def read(self) -> Records:
        """Take every whole record there is, from memory and then from the ring.

        Raises:
            ProbeError: The ring is not ours, or no longer pumped.
        """
        return join_records([*self.parts()])

    def parts(self) -> Iterator[Records]:
        """Take the same part by part, in order; one part at least, which may be empty.

        What is taken frees room for what comes meanwhile.

        Raises:
            ProbeError: As `read`.
        """
        with self._lock:
            if self._ring is None:
                raise ProbeError("the ring is closed")
            self._hold(self._ring.read())
            count = len(self._held)
        for _ in range(count):
            with self._lock:
                records = self._held.popleft()
                self._held_bytes -= records.nbytes
            step = max(1, PART_BYTES // records.itemsize)
            for begin in range(0, max(1, len(records)), step):
                yield records[begin : begin + step]

    def _hold(self, records: Records) -> None:
        self._held.append(records)
        self._held_bytes += records.nbytes

    @property
    def used_share(self) -> float:
        """How much of its room in memory is used, 0 to 1."""
        return min(self._held_bytes / self._room_bytes, 1.0)

    def pump(self, room_bytes: int) -> float:
        """Empty the ring into memory; how full it was, 0 to 1, or 0 where memory has no room.

        Args:
            room_bytes: What it may hold there.
        """
        with self._lock:
            self._room_bytes = room_bytes
            if self._ring is None or self._held_bytes >= room_bytes:
                return 0.0
            used_share = self._ring.used_share
            try:
                records = self._ring.read()
            except ProbeError:
                return 0.0  # `read` raises it too, where somebody listens
            if len(records):
                self._hold(records)
            return used_share

    def release(self) -> None:
        """Touch the ring no more."""
        with self._lock:
            self._ring = None


class Pump:
    """The thread; it runs while there is a ring to empty. Its methods are for one other thread."""

    def __init__(self) -> None:
        self._rings: tuple[PumpedRing, ...] = ()
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, ring: Ring, longest_wait_s: float) -> PumpedRing:
        """Empty a ring from now on.

        Args:
            ring: From now on to be read through what is returned.
            longest_wait_s: How long it may go without being emptied.
        """
        pumped = PumpedRing(ring, longest_wait_s)
        self._rings = (*self._rings, pumped)
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="aerostat-pump", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # There may be no further thread now; another VM may find one.
                self._rings = ()
                raise
            self._thread = thread
        self._changed.set()
        return pumped

    def remove(self, pumped: PumpedRing) -> None:
        """Leave a ring alone from now on; what was not read of it is lost."""
        self._rings = tuple(other for other in self._rings if other is not pumped)
        pumped.release()
        if not self._rings and self._thread is not None:
            self._changed.set()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        # Little work, and none that can wait: where others keep every CPU busy, it goes first.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        before_s = sys.getswitchinterval()
        sys.setswitchinterval(min(before_s, _SWITCH_S))
        # A full collection looks at each of the 70,000 objects that imports have left, and holds
        # every thread meanwhile: 40 ms on a busy machine, and 10 fill a ring of 1 MiB.
        gc.freeze()
        wait_s = 0.0
        while rings := self._rings:
            room_bytes = HELD_BYTES // len(rings)
            fullest = max(ring.pump(room_bytes) for ring in rings)
            wait_s = next_wait_s(wait_s, fullest, min(ring.longest_wait_s for ring in rings))
            if self._changed.wait(wait_s):
                self._changed.clear()
        gc.unfreeze()
        sys.setswitchinterval(before_s)
