"""One run of one plan in one fresh process, so that no run inherits memory, caches or luck."""

import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from types import ModuleType
from typing import Protocol, TypeVar, cast

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
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(work, Packed(job), sender), daemon=True)
    answered = False
    try:
        with _bare_main():
            process.start()
        sender.close()
        if not receiver.poll(timeout_ns / 1e9):
            raise WorkerError(
                f"{job.title} did not end within {timeout_ns / 1e9:.0f} s",
                remedy="replay fewer pages: --memory-limit; from Python, raise timeout_ns",
            )
        answer = receiver.recv()
        answered = True
    except EOFError:
        process.join()
        raise _died(job.title, process.exitcode) from None
    finally:
        receiver.close()
        if process.pid is not None:
            if not answered:
                process.kill()
            process.join()
    if isinstance(answer, BaseException):
        raise answer
    return cast(Answer, answer)


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


def _serve(work: Callable[[AnyJob], Answer], job: AnyJob, sender: Connection) -> None:
    """The worker's whole life: one job, one answer."""
    # Ctrl-C reaches the parent as well, and the parent ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer: Answer | AerostatError
    try:
        answer = work(job)
    except AerostatError as error:
        answer = error
    except Exception as error:
        answer = WorkerError(
            f"{job.title} failed: {type(error).__name__}: {error}",
            reason=traceback.format_exc(limit=-3),
        )
    sender.send(answer)
    sender.close()


def _died(title: str, exit_code: int | None) -> WorkerError:
    killed_by = -exit_code if exit_code is not None and exit_code < 0 else 0
    if not killed_by:
        return WorkerError(f"the process of {title} ended early", reason=f"code {exit_code}")
    name = signal.Signals(killed_by).name
    remedy = ""
    if killed_by == signal.SIGKILL:
        remedy = "if the kernel was out of memory (see dmesg), replay with --memory-limit"
    return WorkerError(f"the process of {title} died", reason=f"killed by {name}", remedy=remedy)
