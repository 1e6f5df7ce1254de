"""Fuzz target: one file of a trace's bundle, replaced; then read, checked, salvaged and planned.

Run alone: python -m tests.fuzz.trace [CORPUS_OR_INPUT...] [libFuzzer options].
"""

import shutil
import tempfile
from pathlib import Path

from tests.fuzz.engine import explore, instrumented

with instrumented("tracer.trace", "replay.requests", "replay.layout", "replay.residency"):
    from replay.plan import context_of
    from replay.rejections import rejections
    from replay.requests import load_requests, memory_map
    from replay.residency import load_residency
    from tests.unit.trace_samples import write_trace
    from tracer.trace.check import check_trace
    from tracer.trace.errors import AerostatError, TraceError
    from tracer.trace.reader import open_trace
    from tracer.trace.salvage import salvage
    from tracer.trace.schema import TABLES

PARTS = (
    "manifest.json",
    "requests/host-00001.arrow",
    "requests/_host-00002.arrow.part",
    "calls/host-00001.arrow",
    "marks/host-00001.arrow",
    "residency/host-00001.arrow",
)
"""What an input replaces: its first byte says which."""


class Bundle:
    """A whole small trace, of which a copy is spoilt for every input."""

    def __init__(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="aerostat-fuzz-"))
        self.whole = write_trace(self.place / "whole.balloon", batches=1, rows=3)
        self.copy = self.place / "copy.balloon"

    def with_part(self, part: str, content: bytes) -> Path:
        """A fresh copy with one file replaced."""
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.whole, self.copy)
        path = self.copy / part
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return self.copy


_bundle: list[Bundle] = []


def bundle() -> Bundle:
    if not _bundle:
        _bundle.append(Bundle())
    return _bundle[0]


def one(data: bytes) -> None:
    """Do to a spoilt trace what verbs do: only an error with a sentence may come out."""
    if not data:
        return
    path = bundle().with_part(PARTS[data[0] % len(PARTS)], data[1:])
    use(path)
    try:
        salvage(path)
    except TraceError as problem:
        assert str(problem)
    else:
        use(path)


def use(path: Path) -> None:
    """Read every table, check the trace, and count what a device would reject in it."""
    try:
        trace = open_trace(path)
    except TraceError as problem:
        assert str(problem)
        return
    for name in TABLES:
        try:
            assert trace.table(name).num_rows >= 0
        except TraceError as problem:
            assert str(problem)
    check_trace(trace)
    try:
        context = context_of(memory_map(trace))
        requests = load_requests(trace)
        load_residency(trace, context.layout, "trace", "madvise")
        rejections(requests, context)
    except AerostatError as problem:
        assert str(problem)


if __name__ == "__main__":
    explore(one)
