"""The one thread that writes every VM's dumps; there is none while there is none to write."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracer.record.flight_dump import Dump

_Task = tuple["Future[Dump]", Callable[[], "Dump"]]


class DumpThread:
    """Does one task after another, in a thread that ends when there are no more.

    A service has a limit on its threads, and a host may have hundreds of VMs: one each that stays
    after its first dump would reach it, and SIGUSR1 asks all of them at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[_Task] = deque()
        self._is_running = False

    def submit(self, task: Callable[[], Dump]) -> Future[Dump]:
        """Have a task done after those that wait.

        Raises:
            RuntimeError: The system lets this process have no further thread; nothing waits then.
        """
        future: Future[Dump] = Future()
        with self._lock:
            if not self._is_running:
                threading.Thread(target=self._run, name="flight-dump").start()
                self._is_running = True
            self._waiting.append((future, task))
        return future

    def finish(self, future: Future[Dump]) -> None:
        """Wait for a task; one that has not begun is done here and now, before all that wait.

        Raises:
            Exception: What the task raised.
        """
        with self._lock:
            own = next((waiting for waiting in self._waiting if waiting[0] is future), None)
            if own is not None:
                self._waiting.remove(own)
        if own is not None:
            _do(*own)
        future.result()

    def _run(self) -> None:
        while (next_task := self._next()) is not None:
            _do(*next_task)

    def _next(self) -> _Task | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._is_running = False
            return None


def _do(future: Future[Dump], task: Callable[[], Dump]) -> None:
    try:
        future.set_result(task())
    except BaseException as problem:
        future.set_exception(problem)


DUMP_THREAD = DumpThread()
"""Of this process."""
