"""The host's system-call program, loaded into this kernel with this thread as if in a request."""

import contextlib
import mmap
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tracer.engine.attach import attach_all
from tracer.engine.host_engine import HostEngine
from tracer.engine.vm_probes import Count, Quota, Target
from tracer.sites import host_probes
from tracer.sites.host_probes import QemuSites
from tracer.sites.probes import HOST_CALL_POINTS, HOST_OTHER_CALL_POINTS, Kind

RING_BYTES = 4 << 20
POINTS = (*HOST_CALL_POINTS, *HOST_OTHER_CALL_POINTS)
NO_SITES = QemuSites(Path("/proc/self/exe"), None, None, (), {}, 0, {})
"""A VMM whose handlers are known, but not probed here: its threads are entered by hand."""
UNTOLD = Quota()


class CallRecorder:
    """Records this thread's discards with the real program and drains them with the real ring."""

    def __init__(self, merge: bool, kinds: tuple[Kind, ...], quota: Quota = UNTOLD) -> None:
        self.engine = HostEngine(calls=False)
        every = host_probes.host_mechanisms(None, 0)
        mechanisms = {kind: every[kind] for kind in kinds}
        self.attached = attach_all(self.engine.program, POINTS, mechanisms)
        target = Target(
            pid=os.getpid(),
            sites=NO_SITES,
            spans=(),
            descriptors=(),
            merge=merge,
            ring_bytes=RING_BYTES,
            requests_ring_bytes=RING_BYTES,
            quota=quota,
        )
        self.probes = self.engine.add(target)
        self.ring = self.probes.calls

    @contextlib.contextmanager
    def in_request(self, token: int) -> Iterator[None]:
        """Do what on_pop does for this thread; on leaving, drop the run that is still open."""
        inflight = self.engine.program["inflight"]
        key = inflight.Key(os.getpid() << 32 | threading.get_native_id())
        leaf = inflight.Leaf(token=token)
        leaf.run.tid = threading.get_native_id()
        inflight[key] = leaf
        try:
            yield
        finally:
            with contextlib.suppress(KeyError):  # taken by the test, with the run
                del inflight[key]

    def lost(self) -> int:
        return self.probes.counts()[Count.LOST_CALLS]

    def close(self) -> None:
        self.probes.close()
        self.engine.close()


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


@pytest.fixture
def unused_port() -> int:
    """A TCP port of this machine that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
