"""A stand-in that floods its recorder, which has a process of its own (recorder_process.py)."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.standins.build import Did, qemu_like
from tracer.trace.reader import Trace, open_trace


@dataclass(frozen=True)
class Flood:
    """What came of one flood.

    Attributes:
        did: What the stand-in did, by its own count.
        took_s: How long it flooded.
        cpu_ns: CPU time of the recorder from when its probes were attached to the closed trace.
        faults: Its page faults in that time, of those that read nothing from a disk.
        trace: The trace, until the block is left.
    """

    did: Did
    took_s: float
    cpu_ns: int
    faults: int
    trace: Trace

    @property
    def recorded_calls(self) -> int:
        """Discard calls on disk."""
        return sum(batch["count"].to_numpy().sum() for batch in self.trace.batches("calls"))

    def lost(self, stream: str) -> int:
        """Events of a stream that are not on disk."""
        return sum(loss.count for loss in self.trace.losses if loss.stream == stream)


@contextmanager
def flooded(*arguments: int, vmm: Any = None, **options: Any) -> Iterator[Flood]:
    """Record while a stand-in floods.

    Args:
        arguments: Of its command `flood`: SECONDS [PAGES_PER_S], and what else it takes.
        vmm: The stand-in; one for QEMU where None.
        options: Of the recorder.
    """
    recorder = _recorder()
    with tempfile.TemporaryDirectory(prefix="aerostat-bench-", dir="out") as work:
        output = Path(work).resolve() / "flood.balloon"
        with vmm or qemu_like("-m", "256M") as vm:
            ready = recorder.ask({"pid": vm.pid, "output": str(output), "options": options})
            assert ready == {"ready": True}, ready
            begin_s = time.monotonic()
            did = vm.send("flood", *arguments)
            took_s = time.monotonic() - begin_s
            figures = recorder.ask("stop")
        assert "problem" not in figures, figures
        yield Flood(did, took_s, trace=open_trace(output), **figures)


class _Recorder:
    """The recorder's process; it ends when this one does, whose end of its stdin closes then."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.bench.recorder_process"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, question: object) -> dict[str, Any]:
        """Send one line and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return dict(json.loads(self._process.stdout.readline()))


@cache
def _recorder() -> _Recorder:
    return _Recorder()
