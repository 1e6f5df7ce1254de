"""A recorder in a process of its own, which asks of its libraries what `aerostat record` asks.

It outlives a recording: what a recorder's memory grows to at first is no part of later figures.
Each recording is a line on stdin, of JSON; the line after it ends the recording. Each is answered
by a line when its probes are attached, and by its figures when its trace is closed.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aerostat.steady_memory import stay_small


def main() -> None:
    """Record until stdin ends."""
    stay_small()
    while line := sys.stdin.readline():
        stop = threading.Event()
        waiting = threading.Thread(target=set_at_next_line, args=(stop,), daemon=True)
        waiting.start()
        try:
            answer = record(json.loads(line), stop)
        except Exception as problem:
            answer = {"problem": f"{type(problem).__name__}: {problem}"}
        say(answer)
        waiting.join()


def set_at_next_line(stop: threading.Event) -> None:
    """End a recording when a line comes."""
    sys.stdin.readline()
    stop.set()


def record(given: Mapping[str, Any], stop: threading.Event) -> dict[str, int]:
    """Record one VM; what that took from its probes being attached to the closed trace."""
    # Not before `stay_small`: these import numpy.
    from tracer.host_side.host import VmOptions, record_host
    from tracer.vms.vmm import inspect

    before: list[tuple[int, int]] = []

    def attached() -> None:
        before.append(spent())
        say({"ready": True})

    vmm, output = inspect(given["pid"]), Path(given["output"])
    record_host(VmOptions(output, vmm=vmm, ready=attached, **given["options"]), stop=stop)
    (cpu_ns, faults), ((cpu_before_ns, faults_before),) = spent(), before
    return {"cpu_ns": cpu_ns - cpu_before_ns, "faults": faults - faults_before}


def spent() -> tuple[int, int]:
    """CPU time of this process, and its page faults that read nothing from a disk."""
    return time.process_time_ns(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def say(answer: Mapping[str, Any]) -> None:
    """Answer with one line."""
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
