"""One run of one plan in one fresh process, so that no run inherits memory, caches or luck."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any, Protocol, TypeVar, cast

from replay.job import Done, Job, run_job, watch_job
from replay.shared import Packed
from replay.watched import WatchedRun
from tracer.trace.errors import AerostatError

ProcessContext = ForkServerContext | SpawnContext


class Titled(Protocol):
    """What a fresh process can be asked to do."""

    @property
    def title(self) -> str:
        """What it is, for messages."""


Pause = Callable[[object], None]
"""Shows something to whoever started this process, and waits until it is told to go on."""
AnyJob = TypeVar("AnyJob", bound=Titled)
Answer = TypeVar("Answer")


class WorkerError(AerostatError):
    """The process of one run died or hung."""


def process_context() -> ProcessContext:
    """Ask for processes forked from a clean server that has done the imports once.

    Where the platform has no fork server, each process starts from nothing.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["replay.worker"])
    return context


def run_in_fresh_process(context: ProcessContext, job: Job, timeout_ns: int) -> Done | WatchedRun:
    """Carry out one run of a plan in a process of its own; raises as `call_in_fresh_process`."""
    return call_in_fresh_process(context, _run, job, timeout_ns)


def _run(job: Job) -> Done | WatchedRun:
    return watch_job(job) if job.watched else run_job(job)


def call_in_fresh_process(
    context: ProcessContext, work: Callable[[AnyJob], Answer], job: AnyJob, timeout_ns: int
) -> Answer:
    """Start a process for one job, wait for its result, and leave no process behind.

    Args:
        context: `process_context()`.
        work: A function of a module; it is named to the process, not sent.
        job: Its argument; is pickled, as the answer is, but for arrays in shared memory.
        timeout_ns: Longest time the process may take.

    Raises:
        WorkerError: The process died or took longer than `timeout_ns`.
        AerostatError: What `work` raised.
    """
    with _started(context, (work, Packed(job), False), job.title, timeout_ns) as worker:
        return cast(Answer, worker.answer())


@contextmanager
def pausing_process(
    context: ProcessContext,
    work: Callable[[AnyJob, Pause], object],
    job: AnyJob,
    timeout_ns: int,
) -> Iterator[Worker]:
    """Start a process for one job that stops on its way, for what is to be done with it then.

    Args:
        context: `process_context()`.
        work: As for `call_in_fresh_process`; it calls its second argument where it stops.
        job: As there.
        timeout_ns: As there.

    Yields:
        The process, which is ended where its answer was not waited for.
    """
    with _started(context, (work, Packed(job), True), job.title, timeout_ns) as worker:
        yield worker


class Worker:
    """A process at work.

    Args:
        process: The process.
        pipe: What it says, and is told, comes through.
        title: Of its job.
        timeout_ns: Longest time it may take, from now on.
    """

    def __init__(self, process: BaseProcess, pipe: Connection, title: str, timeout_ns: int) -> None:
        self._process, self._pipe = process, pipe
        self._title, self._timeout_s = title, timeout_ns / 1e9
        self._until_s = time.monotonic() + self._timeout_s
        self.has_answered = False

    def stopped(self) -> Any:
        """Wait until it stops on its way; what it shows then. Raises as `answer`."""
        return self._hear()

    def go_on(self) -> None:
        """Let it go on."""
        self._pipe.send(None)

    def is_done(self, wait_s: float) -> bool:
        """Wait for its answer no longer than this; also true where its time is over."""
        return self._pipe.poll(wait_s) or self._left_s() <= 0

    def answer(self) -> Any:
        """Wait for its answer.

        Raises:
            WorkerError: It died, or its time is over.
            AerostatError: What its work raised.
        """
        answer = self._hear()
        self.has_answered = True
        return answer

    def _hear(self) -> Any:
        try:
            if not self._pipe.poll(self._left_s()):
                raise WorkerError(
                    f"{self._title} did not end within {self._timeout_s:.0f} s",
                    remedy="replay fewer pages: --memory-limit; from Python, raise timeout_ns",
                )
            word = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise _died(self._title, self._process.exitcode) from None
        if isinstance(word, BaseException):
            self.has_answered = True
            raise word
        return word

    def _left_s(self) -> float:
        return max(self._until_s - time.monotonic(), 0.0)


@contextmanager
def _started(
    context: ProcessContext, given: tuple[Any, ...], title: str, timeout_ns: int
) -> Iterator[Worker]:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(*given, theirs), daemon=True)
    worker = Worker(process, ours, title, timeout_ns)
    try:
        with _bare_main(), _uninterrupted():
            process.start()
        theirs.close()
        yield worker
    finally:
        ours.close()
        if process.pid is not None:
            if not worker.has_answered:
                process.kill()
            process.join()


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


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keep Ctrl-C, which a terminal sends to all of them, from a process that starts.

    The fork server inherits what is blocked and hands it on. Without this it would be interrupted
    in the midst of its imports, and a worker before it has begun, with a traceback each.
    """
    resource_tracker.ensure_running()  # it unblocks when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(work: Callable[..., Answer], job: Titled, pauses: bool, pipe: Connection) -> None:
    """The worker's whole life: one job, one answer."""
    # Ctrl-C reaches the parent as well, and the parent ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer: Answer | AerostatError
    try:
        answer = work(job, partial(_pause, pipe)) if pauses else work(job)
    except AerostatError as error:
        answer = error
    except Exception as error:
        answer = WorkerError(
            f"{job.title} failed: {type(error).__name__}: {error}",
            reason=traceback.format_exc(limit=-3),
        )
    # The parent may have been killed: then nobody is left to tell.
    with suppress(BrokenPipeError, ConnectionResetError):
        pipe.send(answer)
    pipe.close()


def _pause(pipe: Connection, shown: object) -> None:
    pipe.send(shown)
    pipe.recv()


def _died(title: str, exit_code: int | None) -> WorkerError:
    killed_by = -exit_code if exit_code is not None and exit_code < 0 else 0
    if not killed_by:
        return WorkerError(f"the process of {title} ended early", reason=f"code {exit_code}")
    name = signal.Signals(killed_by).name
    remedy = ""
    if killed_by == signal.SIGKILL:
        remedy = "if the kernel was out of memory (see dmesg), replay with --memory-limit"
    return WorkerError(f"the process of {title} died", reason=f"killed by {name}", remedy=remedy)
