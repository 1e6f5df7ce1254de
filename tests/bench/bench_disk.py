"""Bytes on disk for each page that moved, with lz4 and with zstd, and the same as differences.

The reference traces, and one that the lab records now, are written anew by the recorder's own
writer, batch by batch as they were recorded.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow.compute as pc

from lab.session import LabOptions, run_lab
from tests.bench.measure import Report, Settings, at_most, run
from tracer.trace.reader import Trace, open_trace
from tracer.trace.schema import TABLES, Side
from tracer.trace.storage import Storage
from tracer.trace.writer import TraceWriter

TRACES = sorted(Path("traces").glob("*.balloon"))
FRESH = LabOptions(output=Path("fresh.balloon"), memory_bytes=1 << 30)


def measure(settings: Settings, report: Report) -> None:
    """Write every trace's sides with both compressions, in both forms."""
    del settings  # counts are exact: once is enough
    with tempfile.TemporaryDirectory(prefix="aerostat-bench-", dir="out") as work:
        fresh = Path(work) / "fresh.balloon"
        run_lab(LabOptions(output=fresh, memory_bytes=FRESH.memory_bytes))
        for path in (*TRACES, fresh):
            trace = open_trace(path)
            for side in trace.sides:
                _weigh(trace, side, Path(work), report)


def _weigh(trace: Trace, side: Side, work: Path, report: Report) -> None:
    what = f"bytes per page, {trace.path.stem}, {side.name.lower()}"
    pages = pc.sum(trace.table("requests", side)["pages"]).as_py()
    for form in ("", ", --delta"):
        lz4, zstd = (
            written_bytes(trace, side, Storage(compression=name, delta=bool(form)), work) / pages
            for name in ("lz4", "zstd")
        )
        report.figure(f"{what}{form}, lz4", "bytes", [lz4], at_most(2))
        report.figure(f"{what}{form}, zstd", "bytes", [zstd], at_most(lz4))
    for name in TABLES:
        if sizes := size_of(trace, name, side):
            report.keep({f"{what}, {name}, as recorded": [sum(sizes) / pages]})


def size_of(trace: Trace, table: str, side: Side) -> list[int]:
    """Bytes of the segments of one table."""
    return [(trace.path / file).stat().st_size for file in trace.segment_files(table, side)]


def written_bytes(trace: Trace, side: Side, storage: Storage, work: Path) -> int:
    """Write one side anew; return the size of its segments."""
    output = work / f"{side.name}-{storage.compression}.balloon"
    writer = TraceWriter(output, side, force=True, storage=storage)
    for table in TABLES:
        for batch in trace.batches(table, side):
            writer.append(table, batch)
    writer.close(trace.manifest)
    return sum(path.stat().st_size for path in output.rglob("*.arrow"))


if __name__ == "__main__":
    run("disk", measure)
