"""What both sides' recorders share: options, batches, the timed loop, loss rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tracer.engine.ring import Records, join_records
from tracer.record.flight import FlightOptions, FlightRecorder
from tracer.record.flight_dump import Dump
from tracer.record.live import VmStats
from tracer.trace.null_sink import NullSink
from tracer.trace.progress import Progress
from tracer.trace.schema import Side
from tracer.trace.sink import Sink
from tracer.trace.storage import Storage
from tracer.trace.writer import TraceWriter

DRAIN_SHORTEST_S = 0.001
DRAIN_LONGEST_S = 0.2
"""Draining seldom matters where the recorder shares two emulated CPUs with what it records."""
RING_SHARE = 1 / 4
"""How full a ring should be when it is drained: what comes of a burst twice as fast still fits."""
BATCH_BYTES = 1 << 20
BATCH_S = 1.0

Ready = Callable[[], None]


def nothing() -> None:
    """Do nothing: the default where nobody waits for the probes."""


def forget(_: object) -> None:
    """Do nothing with what is told: the default where nobody listens."""


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """What both recorders are told.

    Attributes:
        output: Bundle to write, `NAME.balloon`.
        force: Replace a bundle that is there.
        duration_s: Stop by itself after so many seconds.
        ready: Called once, when every probe is attached.
        sample_every_s: Time between two rows of the samples table, and two looks for losses.
        storage: How the trace lies on the disk.
        counts_only: Keep no trace: what is recorded is summed up, and told.
        flight: Hold the last seconds in memory in place of a trace, and keep them when something
            happens: OUTPUT-00001.balloon and so on.
        alive: Called every round of the loop: it still turns.
        closing: Called when the loop is over and traces are about to be closed.
        told: Called with the figures of every VM after each row of samples.
        kept: Called with each bundle that the flight recorder has made, and its error if it failed.
        keep: Set it, and the flight recorder keeps what it holds.
    """

    output: Path
    force: bool = False
    duration_s: float | None = None
    ready: Ready = nothing
    sample_every_s: float = 1.0
    storage: Storage = field(default_factory=Storage)
    counts_only: bool = False
    flight: FlightOptions | None = None
    alive: Ready = nothing
    closing: Ready = nothing
    told: Callable[[list[VmStats]], None] = forget
    kept: Callable[[Dump], None] = forget
    keep: threading.Event = field(default_factory=threading.Event)

    def open_sink(self, output: Path, side: Side) -> Sink:
        """Make what one side of one VM is recorded into.

        Raises:
            TraceError: The bundle exists, or cannot be made.
        """
        if self.counts_only:
            return NullSink()
        if self.flight is not None:
            return FlightRecorder(output, side, options=self.flight, storage=self.storage)
        return TraceWriter(output, side, force=self.force, storage=self.storage)

    def tend(self, sink: Sink) -> None:
        """Let a sink do what time alone asks for; called every round."""
        self.tell_dumps(sink)
        sink.tick()

    def tell_dumps(self, sink: Sink) -> None:
        """Tell of bundles that a flight recorder has made since; after its close, of the last."""
        if isinstance(sink, FlightRecorder):
            for dump in sink.dumps():
                self.kept(dump)


class Source(Protocol):
    """What a recorder gives to the loop."""

    @property
    def longest_wait_s(self) -> float:
        """How long its rings may go undrained."""

    def drain(self) -> int:
        """Move what waits in the rings into the trace; return the requests moved."""

    def used_share(self) -> float:
        """How full the fullest ring is, 0 to 1."""

    def sample(self) -> None:
        """Write a row of samples, and what was lost since the last call."""

    def ended(self) -> str | None:
        """Why there is nothing more to record, or None."""


class Gather:
    """Collects records until they are worth a batch: small batches cost more than their rows.

    Args:
        emit: Writes one batch; what waits here is all that a killed recorder loses.
    """

    def __init__(self, emit: Callable[[Records], None]) -> None:
        self._emit = emit
        self._waiting: list[Records] = []
        self._bytes = 0
        self._since_s = time.monotonic()

    def add(self, records: Records) -> int:
        """Take records; write a batch where enough wait, or where they have waited long enough."""
        if len(records):
            if not self._waiting:
                self._since_s = time.monotonic()
            self._waiting.append(records)
            self._bytes += records.nbytes
        if time.monotonic() - self._since_s >= BATCH_S:
            self.flush()
        elif self._bytes >= BATCH_BYTES:
            self._write(keep_rest=True)
        return len(records)

    def flush(self) -> None:
        """Write what waits, in batches of a size that a flood does not change."""
        self._write(keep_rest=False)

    def _write(self, *, keep_rest: bool) -> None:
        """Write whole batches; and what is left behind them, unless that is to be kept."""
        if not self._waiting:
            return
        *before, last = self._waiting
        self._waiting, self._bytes = [], 0
        step = max(1, BATCH_BYTES // last.itemsize)
        # What came before is less than a batch: only what fills it up has to be copied.
        filling = step - sum(len(records) for records in before)
        self._emit(join_records([*before, last[:filling]]))
        last = last[filling:]
        whole = len(last) - len(last) % step if keep_rest else len(last)
        for begin in range(0, whole, step):
            self._emit(last[begin : begin + step])
        if whole < len(last):
            self._waiting, self._bytes = [last[whole:]], last[whole:].nbytes
            self._since_s = time.monotonic()


class LossCounter:
    """Turns growing counts of lost records into loss rows with the span in which they were lost.

    Args:
        writer: Takes the rows.
        lost: Reads the counts, by (stream, cause).
    """

    def __init__(self, writer: Sink, lost: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        self._writer = writer
        self._lost = lost
        self._seen: dict[tuple[str, str], int] = dict.fromkeys(lost(), 0)
        self._since_ns = time.monotonic_ns()

    @property
    def by_cause(self) -> dict[str, int]:
        """Records lost so far, by cause."""
        totals: dict[str, int] = {}
        for (_, cause), count in self._seen.items():
            totals[cause] = totals.get(cause, 0) + count
        return totals

    def check(self) -> None:
        """Write a loss row for each count that has grown since the last check."""
        now_ns = time.monotonic_ns()
        for key, count in self._lost().items():
            grown = count - self._seen.get(key, 0)
            if grown > 0:
                stream, cause = key
                self._writer.loss(stream, grown, self._since_ns, now_ns, cause=cause)
                self._seen[key] = count
        self._since_ns = now_ns


def run_loop(
    source: Source, options: CaptureOptions, stop: threading.Event, progress: Progress
) -> str:
    """Drain on a timer until told to stop.

    Returns:
        Why it ended: stopped, duration, or what the source says.
    """
    try:
        return _turn(source, options, stop, progress)
    finally:
        options.closing()


def _turn(
    source: Source, options: CaptureOptions, stop: threading.Event, progress: Progress
) -> str:
    begin_s = time.monotonic()
    next_sample_s = begin_s
    requests = 0
    wait_s = DRAIN_SHORTEST_S
    # Of two samples none is late by more than a fourth of what lies between them.
    timely_s = max(options.sample_every_s / 4, DRAIN_SHORTEST_S)
    while True:
        now_s = time.monotonic()
        used_share = source.used_share()
        requests += source.drain()
        options.alive()
        if now_s >= next_sample_s:
            source.sample()
            progress("record", requests)
            next_sample_s += options.sample_every_s
            if next_sample_s <= now_s:  # what was slept through is not made up for
                next_sample_s = now_s + options.sample_every_s
        reason = source.ended()
        if reason is not None:
            return reason
        if options.duration_s is not None and now_s - begin_s >= options.duration_s:
            return "duration"
        wait_s = next_wait_s(wait_s, used_share, min(source.longest_wait_s, timely_s))
        if stop.wait(wait_s):
            return "stopped"


def next_wait_s(waited_s: float, used_share: float, longest_s: float) -> float:
    """How long to leave the rings alone, from how full the last wait has left them.

    Args:
        waited_s: That wait.
        used_share: The fullest ring at its end, 0 to 1.
        longest_s: How long they may go undrained.

    Returns:
        Seconds; 0 where a ring was more than half full.
    """
    if used_share > 2 * RING_SHARE:
        return 0.0
    wanted_s = waited_s * RING_SHARE / used_share if used_share else longest_s
    return min(max(min(wanted_s, 2 * waited_s), DRAIN_SHORTEST_S), longest_s)
