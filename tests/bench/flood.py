"""A stand-in that floods its recorder, recorded by the real one in a thread here."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.standins.build import Did, qemu_like
from tracer.host_side.host import VmOptions, record_host
from tracer.trace.reader import Trace, open_trace
from tracer.vms.vmm import inspect

WAIT_S = 120


@dataclass(frozen=True)
class Flood:
    """What came of one flood.

    Attributes:
        did: What the stand-in did, by its own count.
        took_s: How long it flooded.
        cpu_ns: CPU time of this process from when the probes were attached to the closed trace: the
            recorder's, since everything else here waits.
        trace: The trace, until the block is left.
    """

    did: Did
    took_s: float
    cpu_ns: int
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
    ready, stop, times, failure = threading.Event(), threading.Event(), [], []

    def attached() -> None:
        times.append(time.process_time_ns())
        ready.set()

    def run(pid: int) -> None:
        try:
            record_host(VmOptions(output, vmm=inspect(pid), ready=attached, **options), stop=stop)
            times.append(time.process_time_ns())
        except BaseException as error:
            failure.append(error)
            ready.set()

    with tempfile.TemporaryDirectory(prefix="aerostat-bench-", dir="out") as work:
        output = Path(work) / "flood.balloon"
        with vmm or qemu_like("-m", "256M") as vm:
            thread = threading.Thread(target=run, args=(vm.pid,))
            thread.start()
            ready.wait(WAIT_S)
            begin_s = time.monotonic()
            did = vm.send("flood", *arguments) if not failure else None
            took_s = time.monotonic() - begin_s
            stop.set()
            thread.join(WAIT_S)
        if failure:
            raise failure[0]
        assert did is not None
        yield Flood(did, took_s, times[1] - times[0], open_trace(output))
