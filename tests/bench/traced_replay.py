"""A replay with the recorder's own probes around its calls, as they were around the VM's.

What probes add to a call's recorded time cannot be told from a loop that times them: it is more
the more of the kernel the call goes through, the colder the caches are, and while another CPU
drains the ring. So the replay is recorded too, and recorded times are held against recorded times.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from replay.faithful import paced_job, prepare_case
from replay.lifelike import STEPS, PacedJob, run_paced, two_cpus
from replay.native.types import Memory
from replay.worker import process_context
from replay.written import written_operations
from tracer.engine.host_engine import HostEngine
from tracer.engine.pump import PumpedRing
from tracer.engine.ring import Records, join_records
from tracer.engine.vm_probes import Quota, Target
from tracer.trace.schema import Queue

RING_BYTES = 4 << 20
LONGEST_WAIT_S = 0.01
WAIT_S = 10.0
NO_QUOTA = Quota(records_per_s=1 << 62, bytes_per_s=1 << 62)
STEP = next(step for step in STEPS if step.name == "cold")


def traced_ns(path: Path, runs: int, seed: int) -> dict[str, list[float]]:
    """Record runs of the traced VMM's own strategy, of the step that has all causes but interrupts.

    Returns:
        For each queue and run the sum of its calls' recorded times, ns.
    """
    case = prepare_case(path)
    assert not case.note, case.note
    cpus = two_cpus()
    written = written_operations(case, cpus[0])
    found: dict[str, list[float]] = {Queue(q).name.lower(): [] for q in np.unique(case.queue)}
    with HostEngine(calls=True) as engine:
        for number in range(runs):
            job = paced_job(case, written, STEP, cpus, seed + number)
            took_ns = _recorded_ns(engine, job)
            for queue, values in found.items():
                values.append(float(took_ns[case.queue == Queue[queue.upper()]].sum()))
    return found


def _recorded_ns(engine: HostEngine, job: PacedJob) -> npt.NDArray[np.int64]:
    """Recorded time of each operation of one run, in a fresh process."""
    ours, theirs = process_context().Pipe()
    process = process_context().Process(target=_serve, args=(job, theirs), daemon=True)
    process.start()
    theirs.close()  # so that a process that fails ends the waiting below
    base, size_bytes = ours.recv()
    target = Target(
        process.pid, None, [(base, base + size_bytes)], (), False, RING_BYTES, RING_BYTES, NO_QUOTA
    )
    with closing(engine.add(target)) as probes:
        probes.attach()
        pumped = engine.pump.add(probes.calls, LONGEST_WAIT_S)
        ours.send("go")
        assert ours.recv() == 0
        process.join()
        records = _all_of(pumped, len(job.operations))
        engine.pump.remove(pumped)
    assert np.array_equal(records["address"] - np.uint64(base), job.operations.offset_bytes)
    assert np.array_equal(records["length_bytes"], job.operations.length_bytes)
    taken: npt.NDArray[np.int64] = (records["last_ns"] - records["first_ns"]).astype(np.int64)
    return taken


def _all_of(pumped: PumpedRing, count: int) -> Records:
    parts: list[Records] = []
    until_s = time.monotonic() + WAIT_S
    while sum(len(part) for part in parts) < count:
        parts += list(pumped.parts())
        assert time.monotonic() < until_s, "not every call was recorded"
    return join_records(parts)


def _serve(job: PacedJob, pipe: Connection) -> None:
    def mapped(memory: Memory) -> None:
        pipe.send((memory.base, memory.size_bytes))
        assert pipe.recv() == "go"

    pipe.send(run_paced(job, mapped).failures)
    os._exit(0)
