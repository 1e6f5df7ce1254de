"""One run of one plan in one fresh process, so that no run inherits memory, caches or luck."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from types import ModuleType
from typing import cast

import numpy as np

from replay import native
from replay.memory import GuestMemory
from replay.native.exchange import exchange
from replay.native.types import Exchange, Operations, Times
from replay.residency import Residency, Thp
from replay.results import OperationTimes, RingCounts, Run
from replay.sending import Sending
from tracer.trace.errors import AerostatError

ProcessContext = ForkServerContext | SpawnContext


class WorkerError(AerostatError):
    """The process of one run died, hung, or found memory other than it must be."""


@dataclass(frozen=True, eq=False)
class Job:
    """Everything one run needs; it is pickled into the worker.

    Args:
        title: Trace, strategy and run, for messages.
        regions: (gpa, length_bytes, offset_bytes) of each region, for stage c.
        cpu: CPU to execute stages c and d on; None leaves it to the scheduler.
        crew_cpus: CPU of each of the plan's threads; none leaves them to the scheduler.
        sibling_cpus: One spinning thread on each while stage d runs.
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
    crew_cpus: tuple[int, ...]
    sibling_cpus: tuple[int, ...]
    per_operation: bool


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
    # Driver and device are two threads on two CPUs, so this comes before pinning.
    exchanged = _send(job)
    if job.cpu is not None:
        os.sched_setaffinity(0, {job.cpu})
    translation = native.translate(
        exchanged.received, exchanged.received_start, job.sending.form, job.regions
    )
    with GuestMemory(job.size_bytes, job.backing, job.seed, job.thp) as memory:
        begin_ns = time.monotonic_ns()
        huge_pages = memory.restore(job.residency)
        populate_ns = time.monotonic_ns() - begin_ns
        before_pages = memory.resident_pages()
        floor = memory.floor(job.operations)
        per_call_ns: Times | None = None
        if job.per_operation:
            per_call_ns = np.full(len(job.operations), -1, np.int64)
        with native.Siblings(job.sibling_cpus):
            outcome = memory.execute(job.operations, per_call_ns, job.crew_cpus)
        check = memory.verify()
    if check.findings.wrong:
        raise WorkerError(
            f"memory is not as it must be after {job.title}",
            reason=f"{check.findings.wrong} pages are wrong, "
            f"the first is page {check.findings.first_wrong_page} of the replayed memory",
            remedy="this is a defect of the strategy, of aerostat or of the kernel: report it",
        )
    run = Run(
        order=job.order,
        send_ns=exchanged.wall_ns,
        send_cpu_ns=exchanged.driver_cpu_ns + exchanged.device_cpu_ns,
        ring=RingCounts(
            exchanged.kicks, exchanged.interrupts, exchanged.descriptors, exchanged.ring_bytes
        ),
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
        resident_after_pages=check.resident_pages,
        gone_pages=check.gone_pages,
        still_resident_pages=check.still_resident_pages,
        lazy_pages=check.findings.lazy_checked,
        per_operation=_quantiles(per_call_ns),
    )
    return Done(run, translation.entries, translation.rejected)


def _send(job: Job) -> Exchange:
    """Stage b. What the device gathered from the rings must be what was sent."""
    exchanged = exchange(job.sending)
    if exchanged.refused or not np.array_equal(exchanged.received, job.sending.wire):
        raise WorkerError(
            f"requests did not come over the virtqueues as they were sent, in {job.title}",
            reason=f"{exchanged.refused} of {exchanged.requests} buffers were refused,"
            f" {len(exchanged.received)} of {len(job.sending.wire)} bytes came",
            remedy="this is a defect of aerostat: report it",
        )
    return exchanged


def _quantiles(per_call_ns: Times | None) -> OperationTimes | None:
    """Of the calls' times; -1 stands where an operation shares the call of another."""
    if per_call_ns is None or len(per_call_ns) == 0:
        return None
    times_ns = per_call_ns[per_call_ns >= 0]
    p50, p90, p99 = (int(value) for value in np.percentile(times_ns, (50, 90, 99)))
    return OperationTimes(p50, p90, p99, int(times_ns.max()))


def process_context() -> ProcessContext:
    """Ask for processes forked from a clean server that has done the imports once.

    Where the platform has no fork server, each process starts from nothing.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["replay.worker"])
    return context


def run_in_fresh_process(context: ProcessContext, job: Job, timeout_ns: int) -> Done:
    """Start a process for one job, wait for its result, and leave no process behind.

    Raises:
        WorkerError: The process died or took longer than `timeout_ns`.
        AerostatError: What `run_job` raised in the worker.
    """
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(job, sender), daemon=True)
    answered = False
    try:
        with _bare_main():
            process.start()
        sender.close()
        if not receiver.poll(timeout_ns / 1e9):
            raise WorkerError(
                f"{job.title} did not end within {timeout_ns / 1e9:.0f} s",
                remedy="replay fewer pages (--memory-limit), or allow more time",
            )
        answer = receiver.recv()
        answered = True
    except EOFError:
        process.join()
        raise _died(job, process.exitcode) from None
    finally:
        receiver.close()
        if process.pid is not None:
            if not answered:
                process.kill()
            process.join()
    if isinstance(answer, BaseException):
        raise answer
    return cast(Done, answer)


@contextmanager
def _bare_main() -> Iterator[None]:
    """Hide the caller's script while a process starts.

    multiprocessing would import it again in every worker: slow, and a script without the usual
    guard would run itself. A job needs nothing of it.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _serve(job: Job, sender: Connection) -> None:
    """The worker's whole life: one job, one answer."""
    # Ctrl-C reaches the parent as well, and the parent ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer: Done | AerostatError
    try:
        answer = run_job(job)
    except AerostatError as error:
        answer = error
    except Exception as error:
        answer = WorkerError(
            f"{job.title} failed: {type(error).__name__}: {error}",
            reason=traceback.format_exc(limit=-3),
        )
    sender.send(answer)
    sender.close()


def _died(job: Job, exit_code: int | None) -> WorkerError:
    killed_by = -exit_code if exit_code is not None and exit_code < 0 else 0
    if not killed_by:
        return WorkerError(f"the process of {job.title} ended early", reason=f"code {exit_code}")
    name = signal.Signals(killed_by).name
    remedy = ""
    if killed_by == signal.SIGKILL:
        remedy = "if the kernel was out of memory (see dmesg), replay with --memory-limit"
    return WorkerError(
        f"the process of {job.title} died", reason=f"killed by {name}", remedy=remedy
    )
