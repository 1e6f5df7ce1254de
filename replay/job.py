"""One run of one plan in this process: what `replay.worker` starts a process for."""

import os
import time
from dataclasses import dataclass

import numpy as np

from replay import native
from replay.huge_pages import huge_pages_of, machine_splits
from replay.memory import SIBLING_PAGES, GuestMemory
from replay.merging import Merging
from replay.native.exchange import exchange
from replay.native.types import Agreed, Exchange, Operations, Page, Watch, Words, new_watch
from replay.pauses import pauses_of
from replay.ranges import Runs
from replay.residency import Residency, Thp
from replay.results import RingCounts, Run
from replay.sending import Sending
from replay.watched import MemorySamples, WatchedRun
from tracer.trace.errors import AerostatError

MEMORY_SAMPLES = 128
"""Of a watched run, at most."""


class RunError(AerostatError):
    """A run left memory other than it must be."""


@dataclass(frozen=True, eq=False)
class Job:
    """Everything one run needs; the worker gets it pickled, and maps what lies in shared memory.

    Args:
        title: Trace, strategy and run, for messages.
        regions: (gpa, length_bytes, offset_bytes) of each region, for stage c and for merging.
        cpu: CPU to execute stages c and d on; None leaves it to the scheduler.
        send_cpus: CPUs of the driver's and of the device's thread in stage b; likewise.
        touched: Pages that are touched again after stage d.
        crew_cpus: CPU of each of the plan's threads; none leaves them to the scheduler.
        sibling_cpus: One thread that reads the memory on each while stage d runs.
        watched: Time each call of stage d and sample memory, and do nothing else.
        merging: What is sorted and merged beside the stages; None for a plan that merges nothing.
        resting_cpu: One thread sleeps there while stage d runs; None for none.
    """

    title: str
    order: int
    seed: int
    size_bytes: int
    backing: str
    thp: Thp
    residency: Residency
    operations: Operations
    sending: Sending
    regions: tuple[tuple[int, int, int], ...]
    cpu: int | None
    send_cpus: tuple[int, int] | None
    crew_cpus: tuple[int, ...]
    sibling_cpus: tuple[int, ...]
    touched: Runs
    watched: bool
    merging: Merging | None = None
    resting_cpu: int | None = None


@dataclass(frozen=True)
class Done:
    """A run's result and what stage c found, which must agree with the plan."""

    run: Run
    translated_entries: int
    rejected_entries: int


def run_job(job: Job) -> Done:
    """Carry out one run in this process.

    Raises:
        AerostatError: Memory could not be had, an operation was refused, or a page holds what it
            must not.
    """
    exchanged = _send(job)
    if job.cpu is not None:
        os.sched_setaffinity(0, {job.cpu})
    merge_ns, merge_cpu_ns = _merge(job)
    translation = native.translate(
        exchanged.received, exchanged.received_start, job.sending.form, job.regions
    )
    with GuestMemory(job.size_bytes, job.backing, job.seed, job.thp) as memory:
        begin_ns = time.monotonic_ns()
        huge_pages = memory.restore(job.residency)
        populate_ns = time.monotonic_ns() - begin_ns
        before_pages = memory.resident_pages()
        floor = memory.floor(job.operations)
        read = _sibling_pages(job, memory)
        with native.Siblings(job.sibling_cpus, memory.mapping, read, job.resting_cpu):
            outcome = memory.execute(job.operations, None, job.crew_cpus)
        account = memory.account()
        touch = memory.touch(job.touched) if len(job.touched.start) else None
        _refuse_wrong(job, memory)
    run = Run(
        order=job.order,
        send_ns=exchanged.wall_ns,
        send_cpu_ns=exchanged.driver_cpu_ns + exchanged.device_cpu_ns,
        ring=RingCounts(
            exchanged.kicks, exchanged.interrupts, exchanged.descriptors, exchanged.ring_bytes
        ),
        merge_ns=merge_ns,
        merge_cpu_ns=merge_cpu_ns,
        translate_ns=translation.wall_ns,
        translate_cpu_ns=translation.cpu_ns,
        discard_ns=outcome.wall_ns,
        discard_cpu_ns=outcome.cpu_ns,
        floor_ns=floor.wall_ns,
        calls=outcome.calls,
        failures=outcome.failures,
        first_errno=outcome.first_errno,
        minor_faults=outcome.minor_faults,
        populate_ns=populate_ns,
        huge_pages=huge_pages,
        resident_before_pages=before_pages,
        resident_after_pages=account.resident_pages,
        gone_pages=account.gone_pages,
        still_resident_pages=account.still_resident_pages,
        lazy_pages=int((memory.state == Page.LAZY).sum()),
        sibling_pages=len(read),
        preemptions=outcome.preemptions,
        touch_ns=None if touch is None else touch.wall_ns,
        touch_faults=None if touch is None else touch.minor_faults,
    )
    return Done(run, translation.entries, translation.rejected)


def _sibling_pages(job: Job, memory: GuestMemory) -> Words:
    """What siblings may read without changing anything; nothing where there are none."""
    return memory.kept_pages(job.operations, SIBLING_PAGES if job.sibling_cpus else 0)


def _merge(job: Job) -> tuple[int, int]:
    """Wall and CPU time of merging; what it gave is not kept."""
    if job.merging is None:
        return 0, 0
    merged = job.merging.run(job.regions)
    return merged.wall_ns, merged.cpu_ns


def _send(job: Job) -> Exchange:
    """Stage b. What the device gathered from the rings must be what was sent."""
    exchanged = exchange(job.sending, Agreed(cpus=job.send_cpus))
    if exchanged.refused or not np.array_equal(exchanged.received, job.sending.wire):
        raise RunError(
            f"requests did not come over the virtqueues as they were sent, in {job.title}",
            reason=f"{exchanged.refused} of {exchanged.requests} buffers were refused,"
            f" {len(exchanged.received)} of {len(job.sending.wire)} bytes came",
            remedy="this is a defect of aerostat: report it",
        )
    return exchanged


def watch_job(job: Job) -> WatchedRun:
    """Carry out one watched run in this process: stage d alone, every call timed.

    Raises:
        AerostatError: As for `run_job`.
    """
    if job.cpu is not None:
        os.sched_setaffinity(0, {job.cpu})
    count = len(job.operations)
    idle, watch = new_watch(count, 0), new_watch(count, MEMORY_SAMPLES)
    with GuestMemory(job.size_bytes, job.backing, job.seed, job.thp) as memory:
        memory.restore(job.residency)
        memory.floor(job.operations, idle)
        huge, splits = native.huge_units(memory.mapping), machine_splits()
        read = _sibling_pages(job, memory)
        with native.Siblings(job.sibling_cpus, memory.mapping, read, job.resting_cpu):
            outcome = memory.execute(job.operations, watch, job.crew_cpus)
        found = None
        if huge is not None and (after := native.huge_units(memory.mapping)) is not None:
            resident = native.residency(memory.mapping)
            found = huge_pages_of(huge, after, resident, (splits, machine_splits()))
        _refuse_wrong(job, memory)
    return WatchedRun(
        order=job.order,
        discard_ns=outcome.wall_ns,
        pauses=pauses_of(watch.per_call_ns, idle.per_call_ns, job.operations),
        memory=_samples(watch),
        huge=found,
    )


def _samples(watch: Watch) -> MemorySamples:
    columns = (watch.at_ns, watch.operations, watch.rss_bytes, watch.file_bytes)
    at_ns, operations, rss_bytes, file_bytes = (
        tuple(column[: watch.samples].tolist()) for column in columns
    )
    seen = min(file_bytes) >= 0
    return MemorySamples(at_ns, operations, rss_bytes, file_bytes if seen else None)


def _refuse_wrong(job: Job, memory: GuestMemory) -> None:
    findings = memory.verify().findings
    if findings.wrong:
        raise RunError(
            f"memory is not as it must be after {job.title}",
            reason=f"{findings.wrong} pages are wrong, "
            f"the first is page {findings.first_wrong_page} of the replayed memory",
            remedy="this is a defect of the strategy, of aerostat or of the kernel: report it",
        )
