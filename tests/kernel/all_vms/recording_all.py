"""A recorder of every VM of this host, and what its traces hold.

What is tested here sees the VMs of all other tests too, which may come, go and lose events at any
moment: so it runs before there are others (Makefile), and looks at its own by name.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.compute as pc

from tracer.trace.reader import Trace, open_trace

WAIT_S = 60


@contextmanager
def recording_all(directory: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", "aerostat", "record", "--all", "-o", str(directory)]
    argv += ["--sample-every", "200ms", *options]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def attached(directory: Path, name: str, traces: int = 1) -> bool:
    """Whether a VM of this name has so many traces whose probes are, or were, attached."""
    bundles = directory.glob(f"{name}-*.balloon")
    return sum(bool(list(bundle.glob("marks/*"))) for bundle in bundles) >= traces


def trace_of(directory: Path, name: str) -> Trace:
    (bundle,) = directory.glob(f"{name}-*.balloon")
    return open_trace(bundle)


def pages(trace: Trace) -> int:
    return pc.sum(trace.table("requests")["pages"]).as_py() or 0
