"""Runs in a guest: discards of one thread, recorded by each way to the system calls in turn.

Prints one JSON object: for each mechanism how every point was reached, and the runs that were seen.
"""

import contextlib
import json
import mmap
import os
import sys
import threading
from pathlib import Path

from tracer.engine.attach import attach_all
from tracer.engine.host_engine import HostEngine
from tracer.engine.vm_probes import Quota, Target, VmProbes
from tracer.sites import host_probes
from tracer.sites.host_probes import QemuSites
from tracer.sites.probes import HOST_CALL_POINTS, HOST_OTHER_CALL_POINTS, Kind

PAGES = 1000
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


def seen_by(engine: HostEngine, probes: VmProbes, kinds: tuple[Kind, ...]) -> dict[str, object]:
    every = host_probes.host_mechanisms(None, 0)
    points = (*HOST_CALL_POINTS, *HOST_OTHER_CALL_POINTS)
    attached = attach_all(engine.program, points, {kind: every[kind] for kind in kinds})
    inflight = engine.program["inflight"]
    thread = inflight.Key(os.getpid() << 32 | threading.get_native_id())
    before = probes.calls_seen()
    inflight[thread] = inflight.Leaf(token=7)
    discard_pages()
    del inflight[thread]
    engine.program.detach()
    return {
        "ways": {a.point.name: a.way.kind.value if a.way else a.reason for a in attached},
        "runs": [
            [int(run[name]) for name in ("count", "step", "advice")] for run in probes.calls.read()
        ],
        "calls": probes.calls_seen() - before,
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
