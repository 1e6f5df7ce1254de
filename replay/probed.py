"""Runs of the traced strategy that are recorded as the trace was, by somebody else's probes.

What probes add to a call cannot be told from a loop that times them: it is more the more of the
kernel the call goes through, the colder the caches are, and while another CPU drains the ring. So
the replay is recorded too, and recorded times are held against recorded times. Nothing here knows
of probes: who calls brings a recorder.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from replay.lifelike import Paced, PacedJob, run_paced
from replay.native.types import Memory
from replay.recorded import APART, LOST_CPU_NS, Calls, replayed_calls
from replay.worker import Pause, pausing_process, process_context
from tracer.trace.errors import AerostatError

if TYPE_CHECKING:
    from tracer.trace.reader import Trace

Flags = npt.NDArray[np.bool_]
READ_S = 0.02
"""What is recorded is taken over so often: a ring of a million calls is more than memory holds."""


@dataclass(frozen=True)
class Held:
    """A thread that is about to make its calls, on memory of its own, and waits to be let go."""

    pid: int
    tid: int
    address: int
    size_bytes: int


@dataclass(frozen=True)
class ProbeUse:
    """One probe point of a recorded replay.

    Args:
        point: Its name, as in a trace's manifest.
        way: How it was reached here.
        recorded_way: How it was when the trace was recorded; None where the trace does not say.
        reason: Why that way does not work here; empty where it does.
    """

    point: str
    way: str
    recorded_way: str | None
    reason: str


class Recorder(Protocol):
    """Attached probes, which record one thread at a time."""

    @property
    def probes(self) -> tuple[ProbeUse, ...]:
        """What is attached."""

    @property
    def probe_ns(self) -> float | None:
        """What the probes of one call cost, as measured when they attached; None if not."""

    def begin(self, held: Held) -> None:
        """Record a thread's calls from now on."""

    def read(self) -> pa.Table:
        """Take what was recorded since: rows of `calls`.

        `gpa` is the offset in the thread's memory, null elsewhere.
        """

    def end(self) -> pa.Table:
        """Take the rest, and record no more; raises AerostatError where any call was lost."""


Attach = Callable[[Mapping[str, str], str], AbstractContextManager[Recorder]]
"""Attaches probes for as long as the context is open.

It is given the way to each point that the trace was recorded with, and the trace's detail."""


def recorded_ways(trace: Trace) -> dict[str, str]:
    """Name the points that a trace's host was probed at, and how each was reached."""
    host = trace.manifest.sides.get("host")
    probes = host.probes if host is not None else ()
    return {probe.point: probe.way for probe in probes if probe.status == "attached"}


def run_recorded(job: PacedJob, recorder: Recorder, timeout_ns: int) -> Calls:
    """Carry out a run in a fresh process while it is recorded.

    Args:
        job: What to do.
        recorder: With what.
        timeout_ns: Longest time the run may take.

    Raises:
        WorkerError: The process died or hung.
        AerostatError: Calls failed or were lost, or are not those of the job.
    """
    tables: list[pa.Table] = []
    with pausing_process(process_context(), _run_held, job, timeout_ns) as worker:
        recorder.begin(cast(Held, worker.stopped()))
        worker.go_on()
        while not worker.is_done(READ_S):
            tables.append(recorder.read())
        done = cast(Paced, worker.answer())
        tables.append(recorder.end())
    if done.failures:
        raise AerostatError(f"{done.failures} calls failed in {job.title}")
    calls = replayed_calls(pa.concat_tables(tables), job.operations)
    if calls is None:
        raise AerostatError(
            f"what was recorded of {job.title} is not what it did",
            reason=f"{len(job.operations)} calls were made",
            remedy="report this with the output of `aerostat doctor --json`",
        )
    return calls


def _run_held(job: PacedJob, pause: Pause) -> Paced:
    def mapped(memory: Memory) -> None:
        pause(Held(os.getpid(), threading.get_native_id(), memory.base, memory.size_bytes))

    return run_paced(job, mapped)


def lost_cpu_ns(runs: Sequence[Calls], of_queue: Flags, alike: Flags) -> list[float]:
    """What single calls of each run waited for something else, such as another process.

    A trace's are counted apart, so these are taken off what is held against it. A call waited that
    took over 50 us, and three times what it takes usually: in the quickest of the runs, or as those
    that it compares with.

    Args:
        runs: Of one plan.
        of_queue: The operations to look at.
        alike: Of those, which compare with each other.
    """
    usual_ns = np.min([run.mean_ns for run in runs], axis=0)
    if alike.any():
        middle_ns = np.median([run.mean_ns[alike] for run in runs])
        usual_ns[alike] = np.minimum(usual_ns[alike], middle_ns)
    return [_waited_ns(run, of_queue, usual_ns) for run in runs]


def _waited_ns(run: Calls, of_queue: Flags, usual_ns: npt.NDArray[np.float64]) -> float:
    operations = np.flatnonzero(of_queue)
    rows, first = np.unique(run.row[operations], return_index=True)
    worst_ns, usual_ns = run.worst_ns[rows], usual_ns[operations[first]]
    waited = worst_ns > np.maximum(LOST_CPU_NS, APART * usual_ns)
    return float((worst_ns - usual_ns)[waited].sum())
