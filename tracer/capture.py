"""What both sides' recorders share: options, batches, the timed loop, loss rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tracer.trace.progress import Progress
from tracer.trace.writer import TraceWriter

DRAIN_SHORTEST_S = 0.01
DRAIN_LONGEST_S = 0.2
"""A ring of 4 MiB holds 3700 requests: 950,000 pages, and in 0.2 s a driver sends fewer. Draining
seldom matters where the recorder shares two emulated CPUs with what it records."""
RING_SHARE = 1 / 16
"""Share of the ring in use at a drain above which the next one comes sooner."""
SAMPLE_S = 1.0
BATCH_RECORDS = 4096
BATCH_S = 1.0

Records = npt.NDArray[np.void]
Ready = Callable[[], None]


def nothing() -> None:
    """Do nothing: the default where nobody waits for the probes."""


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """What both recorders are told.

    Attributes:
        output: Bundle to write, `NAME.balloon`.
        force: Replace a bundle that is there.
        duration_s: Stop by itself after so many seconds.
        ready: Called once, when every probe is attached.
    """

    output: Path
    force: bool = False
    duration_s: float | None = None
    ready: Ready = nothing


@dataclass(frozen=True, slots=True)
class Source:
    """What a side gives to the loop.

    Attributes:
        drain: Moves what waits in the rings into the trace; returns the requests it moved.
        used_share: How full the fullest ring is, 0 to 1.
        sample: Appends a row to the samples table.
        lost: Reads the counts of lost records, by stream.
        is_alive: Whether what is traced still exists.
    """

    drain: Callable[[], int]
    used_share: Callable[[], float]
    sample: Callable[[], None]
    lost: Callable[[], dict[str, int]]
    is_alive: Callable[[], bool]


class Gather:
    """Collects records until they are worth a batch: small batches cost more than their rows.

    Args:
        emit: Writes one batch; what waits here is all that a killed recorder loses.
    """

    def __init__(self, emit: Callable[[Records], None]) -> None:
        self._emit = emit
        self._waiting: list[Records] = []
        self._count = 0
        self._since_s = time.monotonic()

    def add(self, records: Records) -> int:
        """Take records; write a batch where enough wait, or where they have waited long enough."""
        if len(records):
            if not self._waiting:
                self._since_s = time.monotonic()
            self._waiting.append(records)
            self._count += len(records)
        if self._count >= BATCH_RECORDS or time.monotonic() - self._since_s >= BATCH_S:
            self.flush()
        return len(records)

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            records = np.concatenate(self._waiting)
            self._waiting, self._count = [], 0
            self._emit(records)


class LossCounter:
    """Turns growing counts of lost records into loss rows with the span in which they were lost."""

    def __init__(self, writer: TraceWriter, lost: Callable[[], dict[str, int]]) -> None:
        self._writer = writer
        self._lost = lost
        self._seen: dict[str, int] = dict.fromkeys(lost(), 0)
        self._since_ns = time.monotonic_ns()

    @property
    def total(self) -> int:
        """Records lost so far."""
        return sum(self._seen.values())

    def check(self) -> None:
        """Write a loss row for each stream whose count has grown since the last check."""
        now_ns = time.monotonic_ns()
        for stream, count in self._lost().items():
            grown = count - self._seen[stream]
            if grown > 0:
                self._writer.loss(stream, grown, self._since_ns, now_ns)
                self._seen[stream] = count
        self._since_ns = now_ns


def run_loop(
    source: Source,
    losses: LossCounter,
    options: CaptureOptions,
    stop: threading.Event,
    progress: Progress,
) -> str:
    """Drain on a timer until told to stop.

    Returns:
        Why it ended: stopped, duration or vm-exited.
    """
    begin_s = time.monotonic()
    next_sample_s = begin_s
    requests = 0
    wait_s = DRAIN_SHORTEST_S
    while True:
        now_s = time.monotonic()
        is_filling = source.used_share() > RING_SHARE
        wait_s = (
            max(wait_s / 4, DRAIN_SHORTEST_S) if is_filling else min(2 * wait_s, DRAIN_LONGEST_S)
        )
        requests += source.drain()
        if now_s >= next_sample_s:
            losses.check()
            source.sample()
            progress("record", requests)
            next_sample_s = now_s + SAMPLE_S
        if not source.is_alive():
            return "vm-exited"
        if options.duration_s is not None and now_s - begin_s >= options.duration_s:
            return "duration"
        if stop.wait(wait_s):
            return "stopped"
