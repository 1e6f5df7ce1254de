"""Holds a trace against its own rules: files, order, times, pages, memory map, losses and end."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tracer.trace.columns import flat_runs
from tracer.trace.errors import TraceError
from tracer.trace.findings import Finding, Severity, error, warning
from tracer.trace.layout import sha256_of
from tracer.trace.manifest import Region
from tracer.trace.missing import lost_events
from tracer.trace.numbers import Numbers
from tracer.trace.reader import Trace
from tracer.trace.schema import PFN_SHIFT, Call, Caller, Mark, Queue, Side, Wire

__all__ = ["Finding", "Severity", "check_trace"]

Bools = npt.NDArray[np.bool_]
UInt64s = npt.NDArray[np.uint64]

_ORDER = (
    ("begin_ns", "send_ns"),
    ("send_ns", "kick_ns"),
    ("kick_ns", "wake_ns"),
    ("send_ns", "ack_ns"),
    ("send_ns", "wake_ns"),
    ("wake_ns", "free_ns"),
    ("wake_ns", "end_ns"),
    ("pop_ns", "push_ns"),
)
"""Times of one row that cannot be the other way round: cause before effect, on one clock."""
_CODES = (
    ("requests", "queue", Queue),
    ("requests", "wire", Wire),
    ("requests", "caller", Caller),
    ("calls", "call", Call),
    ("marks", "mark", Mark),
)


def check_trace(trace: Trace) -> list[Finding]:
    """Check everything that a trace's rows and manifest say about each other.

    Args:
        trace: An opened trace, whole or torn.

    Returns:
        What is wrong, worst first; empty for a trace without fault. The codes are listed in
        docs/trace-format.md.
    """
    found: list[Finding] = []
    try:
        for step in _STEPS:
            found += step(trace)
    except TraceError as problem:
        found.append(error("unreadable", f"{problem.what}: {problem.reason}"))
    found = [*trace.findings, *found]
    return sorted(found, key=lambda finding: finding.severity is not Severity.ERROR)


def _files(trace: Trace) -> list[Finding]:
    """Hold every listed segment against its row count, size and hash."""
    found = []
    for segment in trace.manifest.segments:
        path = trace.path / segment.file
        if not path.is_file() or path.is_symlink():
            if trace.manifest.complete:
                found.append(error("segment-missing", f"{segment.file} is not on disk"))
            continue
        size = path.stat().st_size
        if size != segment.bytes:
            text = f"{segment.file} has {size} bytes; the manifest says {segment.bytes}"
            found.append(error("segment-bytes", text))
        elif sha256_of(path) != segment.sha256:
            text = f"{segment.file} is not the file that was recorded: its SHA-256 differs"
            found.append(error("segment-hash", text))
        rows = sum(batch.num_rows for batch in trace.segment_batches(segment.file))
        if rows != segment.rows:
            text = f"{segment.file} has {rows} rows; the manifest says {segment.rows}"
            found.append(error("segment-rows", text))
    return found


def _codes(trace: Trace) -> list[Finding]:
    unknown: Counter[tuple[str, str]] = Counter()
    for table in dict.fromkeys(table for table, _, _ in _CODES):
        kinds = [(column, [*kind]) for name, column, kind in _CODES if name == table]
        for batch in trace.batches(table):
            for column, codes in kinds:
                values = batch[column].drop_null().to_numpy()
                unknown[table, column] += int(np.count_nonzero(~np.isin(values, codes)))
    return [
        warning(
            "code-unknown", f"{count} rows of {table} have a {column} this aerostat does not know"
        )
        for (table, column), count in unknown.items()
        if count
    ]


def _sequence(trace: Trace) -> list[Finding]:
    """Each side numbers its requests upwards."""
    found = []
    for side in trace.sides:
        parts = [batch["seq"].to_numpy() for batch in trace.batches("requests", side)]
        seq = np.concatenate([np.empty(0, np.uint64), *parts])
        twice = len(seq) - len(np.unique(seq))
        if twice:
            text = f"{twice} rows of the {side.name.lower()} repeat a request's seq"
            found.append(error("seq-repeated", text))
        back = int(np.count_nonzero(seq[1:] < seq[:-1]))
        if back:
            text = f"seq of the {side.name.lower()}'s requests falls {back} times"
            found.append(error("seq-order", text))
    return found


def _times(trace: Trace) -> list[Finding]:
    wrong = dict.fromkeys(_ORDER, 0)
    for batch in trace.batches("requests"):
        for first, second in _ORDER:
            later = pc.sum(pc.greater(batch[first], batch[second])).as_py()
            wrong[first, second] += later or 0
    return [
        error("time-order", f"{count} requests have {first} after {second}")
        for (first, second), count in wrong.items()
        if count
    ]


def _pages(trace: Trace) -> list[Finding]:
    """`pages` counts the pages of the runs, and no run is empty."""
    wrong = empty = 0
    for batch in trace.batches("requests"):
        runs = flat_runs(pa.chunked_array([batch["runs"]]))
        lengths = np.abs(runs.pages.astype(np.int64))
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        total = sums[runs.offsets[1:]] - sums[runs.offsets[:-1]]
        seen = batch["runs"].is_valid().to_numpy(zero_copy_only=False)
        wrong += int(np.count_nonzero(seen & (total != batch["pages"].to_numpy())))
        empty += int(np.count_nonzero(lengths == 0))
    found = []
    if wrong:
        text = f"{wrong} requests have other pages than their runs add up to"
        found.append(error("pages-sum", text))
    if empty:
        found.append(error("run-empty", f"{empty} runs have no pages"))
    return found


def _bounds(trace: Trace) -> list[Finding]:
    """Every page named lies in guest memory, where the memory map is known."""
    spans = _spans(trace.manifest.regions)
    if not spans:
        return []
    found = []
    outside = sum(_runs_outside(batch, spans) for batch in trace.batches("requests"))
    if outside:
        found.append(error("pfn-bounds", f"{outside} runs leave the guest's memory"))
    outside = sum(_calls_outside(batch, spans) for batch in trace.batches("calls", Side.HOST))
    if outside:
        found.append(error("gpa-bounds", f"{outside} rows of calls leave the guest's memory"))
    return found


def _runs_outside(batch: pa.RecordBatch, spans: list[tuple[int, int]]) -> int:
    """Count the runs of some requests that leave memory."""
    runs = flat_runs(pa.chunked_array([batch["runs"]]))
    pages = np.abs(runs.pages.astype(np.int64)).astype(np.uint64)
    inside = _within(runs.pfn, pages, np.ones_like(pages), runs.pages < 0, spans)
    return int(np.count_nonzero(~inside))


def _calls_outside(batch: pa.RecordBatch, spans: list[tuple[int, int]]) -> int:
    """Count the calls on guest memory that leave it."""
    calls = batch.select(["gpa", "errno", "count", "length_bytes", "step"])
    calls = calls.filter(pc.and_(calls["gpa"].is_valid(), pc.equal(calls["errno"], 0)))
    first, count = calls["gpa"].to_numpy() >> np.uint64(PFN_SHIFT), calls["count"].to_numpy()
    # Bounded, so that count times pages stays within 64 bits: 2**31 pages are 8 TiB in one call.
    pages = np.minimum(calls["length_bytes"].to_numpy() >> np.uint64(PFN_SHIFT), np.uint64(1 << 31))
    inside = _within(
        first, pages * count.astype(np.uint64), pages, calls["step"].to_numpy() < 0, spans
    )
    return int(np.count_nonzero(~inside))


def _spans(regions: tuple[Region, ...]) -> list[tuple[int, int]]:
    """First and end PFN of memory without holes, in order."""
    spans: list[tuple[int, int]] = []
    for region in sorted(regions, key=lambda region: region.gpa):
        first = region.gpa >> PFN_SHIFT
        end = (region.gpa + region.length_bytes) >> PFN_SHIFT
        if spans and spans[-1][1] == first:
            first = spans.pop()[0]
        spans.append((first, end))
    return spans


def _within(
    first: UInt64s, pages: UInt64s, step: UInt64s, falling: Bools, spans: list[tuple[int, int]]
) -> Bools:
    """Say which ranges lie in one span; written so that no sum can leave 64 bits.

    Args:
        first: PFN at which each range begins.
        pages: Its length.
        step: Pages that its first part takes, upwards from `first` even where the range falls.
        falling: Where the further parts follow downwards.
        spans: First and end PFN of memory.
    """
    starts = np.array([span[0] for span in spans], np.uint64)
    ends = np.array([span[1] for span in spans], np.uint64)
    back = np.where(falling, pages - np.minimum(pages, step), np.uint64(0))
    low = first - np.minimum(first, back)
    place = np.searchsorted(starts, low, side="right") - 1
    inside = (place >= 0) & (low < ends[place]) & (back <= first)
    room = ends[place] - np.minimum(low, ends[place])
    return np.asarray(inside & (pages <= room))


def _parents(trace: Trace) -> list[Finding]:
    """Each call that names a request names one of the host's; a lost request explains an orphan."""
    known, orphans = Numbers(), 0
    for batch in trace.batches("requests", Side.HOST):
        known.add(batch["seq"].to_numpy())
    for batch in trace.batches("calls", Side.HOST):
        named = batch["request_seq"].drop_null().to_numpy()
        orphans += int(np.count_nonzero(~known.hold(named)))
    if not orphans:
        return []
    text = f"{orphans} rows of calls name a request that is not in the trace"
    lossy = bool(trace.losses) or not trace.is_complete
    return [warning("call-orphan", text) if lossy else error("call-orphan", text)]


def _losses(trace: Trace) -> list[Finding]:
    """Losses are told twice, in the marks and in the manifest, and are errors in themselves.

    Of a trace that was cut short, neither has to know all that the other does.
    """
    rows, listed = lost_events(trace.marked_losses()), lost_events(trace.losses)
    found = []
    if trace.manifest.complete and rows != listed:
        text = f"the marks tell of losses {rows}, the manifest of {listed}"
        found.append(error("loss-rows", text))
    for (side, stream, cause), count in sorted(listed.items()):
        why = f" ({cause})" if cause else ""
        found.append(error("loss", f"{count} {stream} of the {side} were lost{why}"))
    return found


def _end(trace: Trace) -> list[Finding]:
    found = []
    if not trace.manifest.complete:
        reason = trace.manifest.end_reason or "the recorder did not close it"
        found.append(error("not-complete", f"the trace is not complete: {reason}"))
    for side in trace.sides_without_end():
        found.append(error("end-missing", f"the {side.name.lower()}'s rows have no END mark"))
    for side in trace.sides:
        if side.name.lower() not in trace.manifest.sides:
            text = f"the manifest does not describe the {side.name.lower()}'s side"
            found.append(warning("side-unknown", text))
    return found


def _marks(trace: Trace) -> list[Finding]:
    """Nothing of a side happens after its END."""
    found = []
    for side in trace.sides:
        marks = (
            code for batch in trace.batches("marks", side) for code in batch["mark"].to_pylist()
        )
        if any(first == Mark.END for first, _ in pairwise(marks)):
            text = f"the {side.name.lower()}'s marks go on after END"
            found.append(error("end-early", text))
    return found


_STEPS: tuple[Callable[[Trace], list[Finding]], ...] = (
    _end,
    _files,
    _codes,
    _sequence,
    _times,
    _pages,
    _bounds,
    _parents,
    _losses,
    _marks,
)
