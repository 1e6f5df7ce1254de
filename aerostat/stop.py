"""Turn SIGINT, SIGTERM and a terminal that hangs up into an orderly end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM came: everything ends as after Ctrl-C."""


@contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """Raise Terminated on SIGTERM, so that what is open is closed, and no process stays behind."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # somebody decided otherwise
        yield
        return
    signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def stop_on_signal(*, keep: bool = False) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Hand out an event that the first SIGINT or SIGTERM sets; a second one interrupts at once.

    SIGHUP sets it too, as when an ssh session ends, unless it is ignored (nohup). It may come
    twice, from the terminal and from the shell, and interrupts nothing.

    Args:
        keep: Take SIGUSR1 too, which else ends the process.

    Yields:
        The event; the capture watches it and closes its trace when it is set. And one that SIGUSR1
        sets: a flight recorder keeps what it holds, and clears it.
    """
    stop, kept = threading.Event(), threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number != signal.SIGHUP:
            raise KeyboardInterrupt
        stop.set()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    if keep:
        before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, lambda *_: kept.set())
    try:
        yield stop, kept
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
