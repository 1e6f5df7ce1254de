"""The host's system-call program, loaded into this kernel with this thread as if in a request."""

import contextlib
import mmap
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from tracer import decode, host_probes
from tracer.attach import attach_all
from tracer.loader import Program
from tracer.probes import HOST_CALL_POINTS, Kind
from tracer.ring import Ring


class CallRecorder:
    """Records this thread's discards with the real program and drains them with the real ring."""

    def __init__(self, merge: bool, kinds: tuple[Kind, ...]) -> None:
        self.program: Program = host_probes.compile_host(None, calls=True, merge=merge)
        every = host_probes.host_mechanisms(None, 0)
        mechanisms = {kind: every[kind] for kind in kinds}
        self.attached = attach_all(self.program, HOST_CALL_POINTS, mechanisms)
        self.ring = Ring(
            self.program.map_fd("calls"), host_probes.CALL_RING_BYTES, decode.HOST_CALLS
        )

    @contextlib.contextmanager
    def in_request(self, seq: int) -> Iterator[None]:
        """Do what on_pop does for this thread; on leaving, drop the run that is still open."""
        inflight = self.program["inflight"]
        key = inflight.Key(os.getpid() << 32 | threading.get_native_id())
        inflight[key] = inflight.Leaf(seq=seq)
        try:
            yield
        finally:
            del inflight[key]

    def lost(self) -> int:
        return self.program.counter(host_probes.LOST_CALLS)

    def close(self) -> None:
        self.ring.close()
        self.program.close()


@pytest.fixture
def recorder(request) -> Iterator[CallRecorder]:
    merge, kinds = getattr(request, "param", (True, (Kind.TRACEPOINT,)))
    made = CallRecorder(merge, kinds)
    yield made
    made.close()


@pytest.fixture
def pages() -> Iterator[tuple[mmap.mmap, int]]:
    """4096 private pages and their address."""
    memory = mmap.mmap(-1, 4096 * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = np.frombuffer(memory, np.uint8)
    address = view.ctypes.data
    del view
    yield memory, address
    memory.close()
