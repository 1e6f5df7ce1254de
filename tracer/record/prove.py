"""Kills a writer in mid-batch, again and again, and counts what is left: no trust needed.

A child process writes a known stream of requests through the real writer. It says through a pipe
which batch it begins and which is done. The parent sends SIGKILL when the file has begun to grow,
salvages the trace, and holds every row that is left against the stream.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tracer.record.prove_stream import BATCH_ROWS, batch_of
from tracer.trace.errors import AerostatError
from tracer.trace.progress import Progress, silent
from tracer.trace.reader import open_trace
from tracer.trace.replace_bundle import remove_bundle
from tracer.trace.salvage import salvage

KILLS = 5
MOST_KILLS = 25
"""A kill that comes too late falls between two batches; more are tried until one falls into one."""
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Kill:
    """One writer that was killed.

    Attributes:
        written_rows: Rows of the batches that the writer had done.
        in_hand_rows: Rows of the batch that it was writing; 0 if it was between two.
        kept_rows: Rows in the salvaged trace.
        torn_bytes: Bytes behind the last whole batch.
        sound: The rows kept are the first ones of the stream, each as it was written, and the trace
            says itself that it is not complete.
    """

    written_rows: int
    in_hand_rows: int
    kept_rows: int
    torn_bytes: int
    sound: bool

    @property
    def lost_rows(self) -> int:
        """Rows of the batch in hand that are not in the trace."""
        return self.written_rows + self.in_hand_rows - self.kept_rows

    @property
    def holds(self) -> bool:
        """Whether nothing is missing but, at most, the batch in hand."""
        return self.sound and 0 <= self.lost_rows <= self.in_hand_rows


@dataclass(frozen=True, slots=True)
class Proof:
    """All the kills.

    Attributes:
        kills: In order.
        batch_rows: Rows of a batch.
    """

    kills: tuple[Kill, ...]
    batch_rows: int = BATCH_ROWS

    @property
    def inside(self) -> int:
        """Kills that tore a batch."""
        return sum(kill.torn_bytes > 0 for kill in self.kills)

    @property
    def holds(self) -> bool:
        """Whether every kill held, and at least one tore a batch."""
        return self.inside > 0 and all(kill.holds for kill in self.kills)


def prove(directory: Path, progress: Progress = silent) -> Proof:
    """Kill `KILLS` writers, and more until one of them dies within a batch.

    Args:
        directory: Where the bundles are made; on the file system that is to be proven.
        progress: Told how many were killed.

    Returns:
        What was left each time. The bundles are gone.

    Raises:
        AerostatError: The writer does not start, or ends by itself.
        TraceError: The disk is full, or fails.
    """
    kills: list[Kill] = []
    while len(kills) < KILLS or (
        len(kills) < MOST_KILLS and not any(kill.torn_bytes for kill in kills)
    ):
        bundle = directory / f"prove-{os.getpid()}-{len(kills)}.balloon"
        # The later ones meet closed segments beside the open one.
        kills.append(_kill_one(bundle, after_batches=2 + 2 * min(len(kills), 5)))
        progress("kill", len(kills))
    return Proof(tuple(kills))


def _kill_one(bundle: Path, after_batches: int) -> Kill:
    command = [sys.executable, "-m", "tracer.record.prove_stream", str(bundle)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        try:
            done = _await_batch(child, after_batches, bundle)
        finally:
            child.kill()
        assert child.stdout is not None
        begun, finished = _last_words(done + child.stdout.read())
    if child.returncode != -signal.SIGKILL:
        raise AerostatError(
            "the writer that was to be killed ended by itself",
            reason=f"exit code {child.returncode}",
            remedy="see its error above",
        )
    report = salvage(bundle)
    kept = report.rows["requests"]
    kill = Kill(
        written_rows=finished * BATCH_ROWS,
        in_hand_rows=(begun - finished) * BATCH_ROWS,
        kept_rows=kept,
        torn_bytes=report.dropped_bytes,
        sound=_is_sound(bundle, kept),
    )
    remove_bundle(bundle)
    return kill


def _await_batch(child: subprocess.Popen[bytes], number: int, bundle: Path) -> bytes:
    """Return once the file of a batch that the child has begun grows; what it said until then."""
    assert child.stdout is not None
    said = b""
    while _last_words(said)[0] < number:
        line = child.stdout.readline()
        if not line:
            return said  # it has ended by itself
        said += line
    os.set_blocking(child.stdout.fileno(), False)
    before = _size(bundle)
    while _size(bundle) == before and child.poll() is None:
        pass  # the time in which a batch is written is short: only a busy look meets it
    os.set_blocking(child.stdout.fileno(), True)
    return said


def _size(bundle: Path) -> int:
    """Bytes of the requests, closed and open."""
    try:
        return sum(entry.stat().st_size for entry in os.scandir(bundle / "requests"))
    except FileNotFoundError:
        return 0


def _last_words(said: bytes) -> tuple[int, int]:
    """How many batches were begun and done; a line that was cut short is none."""
    whole = said.split(b"\n")[:-1]
    return sum(line == b"begin" for line in whole), sum(line == b"done" for line in whole)


def _is_sound(bundle: Path, kept: int) -> bool:
    """Hold what is left against the stream, row by row and column by column."""
    trace = open_trace(bundle)
    if trace.is_complete or kept % BATCH_ROWS:
        return False
    rows = trace.table("requests")
    expected = [batch_of(number) for number in range(kept // BATCH_ROWS)]
    return bool(rows.equals(pa.Table.from_batches(expected, rows.schema)))


@dataclass(frozen=True, slots=True)
class CaptureKill:
    """One recorder of a running VM that was killed.

    Attributes:
        kept_rows: Requests in the salvaged trace.
        torn_bytes: Bytes behind the last whole batches.
        gap_free: The requests that are left are the first ones, with none missing between.
        unseen_ns: From the end of the last request that is left to the kill: what was in the rings
            and in the batch in hand, or simply a time without requests. None without any request.
    """

    kept_rows: int
    torn_bytes: int
    gap_free: bool
    unseen_ns: int | None


def prove_capture(command: Sequence[str], bundle: Path, ready: Path, after_s: float) -> CaptureKill:
    """Run a recorder, kill it some time after its probes are attached, and look at what is left.

    Args:
        command: The recorder, which writes to `bundle` and then makes `ready`.
        bundle: Removed afterwards.
        ready: The file that says so.
        after_s: How long it records.

    Returns:
        What was left.

    Raises:
        AerostatError: The recorder ended by itself, or was not ready in time.
        TraceError: Nothing of the trace can be read.
    """
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            _await_ready(child, ready)
            time.sleep(after_s)
        finally:
            killed_ns = time.monotonic_ns()
            child.kill()
        assert child.stderr is not None
        said = child.stderr.read()
    if child.returncode != -signal.SIGKILL:
        raise AerostatError(
            "the recorder that was to be killed ended by itself",
            reason=said.strip() or f"exit code {child.returncode}",
            remedy="record the VM without --prove, and see why that ends",
        )
    report = salvage(bundle)
    trace = open_trace(bundle)
    seq = trace.table("requests")["seq"].to_numpy()
    last_ns = pc.max(trace.table("requests")["push_ns"]).as_py()
    kill = CaptureKill(
        kept_rows=len(seq),
        torn_bytes=report.dropped_bytes,
        gap_free=bool((seq == np.arange(len(seq))).all()) and not trace.is_complete,
        unseen_ns=None if last_ns is None else killed_ns - last_ns,
    )
    remove_bundle(bundle)
    return kill


def _await_ready(child: subprocess.Popen[str], ready: Path) -> None:
    end_s = time.monotonic() + _PATIENCE_S
    while not ready.exists() and child.poll() is None:
        if time.monotonic() > end_s:
            raise AerostatError(
                "the recorder that was to be killed is not ready",
                reason=f"no probe was attached within {_PATIENCE_S:.0f} s",
                remedy="see what aerostat doctor says of this machine",
            )
        time.sleep(0.05)
