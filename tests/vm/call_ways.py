"""Runs in a guest: discards of one thread, recorded by each way to the system calls in turn.

Prints one JSON object: for each mechanism how every point was reached, and the runs that were seen.
"""

import contextlib
import ctypes
import json
import mmap
import os
import sys
import threading
from pathlib import Path

from tracer.engine.attach import attach_all
from tracer.engine.host_engine import HostEngine
from tracer.engine.vm_probes import Count, Quota, Target, VmProbes
from tracer.sites import host_probes
from tracer.sites.host_probes import QemuSites
from tracer.sites.probes import HOST_CALL_POINTS, HOST_OTHER_CALL_POINTS, Kind
from tracer.trace.schema import Call

PAGES = 1000
NR_PROCESS_MADVISE = 440
MADV_COLD = 20
WAYS = {
    "fentry": (Kind.FENTRY, Kind.FEXIT),
    "kprobe": (Kind.KPROBE, Kind.KRETPROBE),
    "tracepoint": (Kind.TRACEPOINT,),
    "raw tracepoint": (Kind.RAW_TRACEPOINT,),
}


def discard_pages() -> None:
    memory = mmap.mmap(-1, (PAGES + 8) * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(PAGES - 1, -1, -1):
        memory.madvise(mmap.MADV_DONTNEED, page * mmap.PAGESIZE, mmap.PAGESIZE)
    memory.madvise(mmap.MADV_WILLNEED, PAGES * mmap.PAGESIZE, 2 * mmap.PAGESIZE)
    memory.madvise(mmap.MADV_DONTNEED, PAGES * mmap.PAGESIZE, 3 * mmap.PAGESIZE)
    memory.close()


def discard_vector() -> None:
    """One process_madvise of every second page: more pieces than one run of a program looks at."""
    memory = mmap.mmap(-1, 2 * PAGES * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page = ctypes.c_char.from_buffer(memory)
    begin = ctypes.addressof(page)
    words = [w for i in range(PAGES) for w in (begin + 2 * i * mmap.PAGESIZE, mmap.PAGESIZE)]
    vector = (ctypes.c_uint64 * len(words))(*words)
    pidfd = os.pidfd_open(os.getpid())
    # Cold pages: the one advice that kernels before 6.14 take as well, of one's own memory or not.
    arguments = (pidfd, ctypes.byref(vector), PAGES, MADV_COLD, 0)
    done = ctypes.CDLL(None, use_errno=True).syscall(NR_PROCESS_MADVISE, *arguments)
    assert done == PAGES * mmap.PAGESIZE, os.strerror(ctypes.get_errno())
    os.close(pidfd)
    del page
    memory.close()


def seen_by(engine: HostEngine, probes: VmProbes, kinds: tuple[Kind, ...]) -> dict[str, object]:
    every = host_probes.host_mechanisms(None, 0)
    points = (*HOST_CALL_POINTS, *HOST_OTHER_CALL_POINTS)
    attached = attach_all(engine.program, points, {kind: every[kind] for kind in kinds})
    inflight = engine.program["inflight"]
    thread = inflight.Key(os.getpid() << 32 | threading.get_native_id())
    before, lost = probes.calls_seen(), probes.counts()[Count.LOST_PIECES]
    inflight[thread] = inflight.Leaf(token=7)
    discard_pages()
    calls, runs = probes.calls_seen() - before, probes.calls.read()
    discard_vector()
    discard_pages()  # ends the run of the last piece
    del inflight[thread]
    engine.program.detach()
    after = probes.calls.read()
    return {
        "ways": {a.point.name: a.way.kind.value if a.way else a.reason for a in attached},
        "runs": [[int(run[name]) for name in ("count", "step", "advice")] for run in runs],
        "calls": calls,
        "pieces": sum(int(run["count"]) for run in after if run["call"] == Call.PROCESS_MADVISE),
        "lost_pieces": probes.counts()[Count.LOST_PIECES] - lost,
    }


own = Target(
    pid=os.getpid(),
    sites=QemuSites(
        exe=Path(),
        build_id=None,
        version=None,
        handlers=(),
        missing={},
        queue_index_offset_bytes=0,
        file_offsets={},
    ),
    spans=(),
    descriptors=(),
    merge=True,
    ring_bytes=1 << 20,
    requests_ring_bytes=1 << 20,
    quota=Quota(),
)
with HostEngine(calls=False) as engine, contextlib.closing(engine.add(own)) as probes:
    found = {name: seen_by(engine, probes, kinds) for name, kinds in WAYS.items()}
json.dump(found, sys.stdout)
