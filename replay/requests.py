"""A trace's requests as columns: what every strategy plans from."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from replay.layout import Layout
from replay.native.selecting import RequestColumns, check_runs, request_pages
from replay.ranges import Int64s, pfns_from_runs, runs_from_wire
from tracer.trace.columns import flat_runs
from tracer.trace.errors import TraceError
from tracer.trace.schema import PFN_SHIFT, Queue, Side

if TYPE_CHECKING:
    from tracer.trace.manifest import Region
    from tracer.trace.reader import Trace

NOT_OBSERVED_NS = -1
"""Time of a request that was seen without one; a monotonic clock is never negative."""
MAX_PFN = 1 << (64 - PFN_SHIFT)
MAX_BALLOON_PAGES = 1 << 27
"""Pages of inflate and deflate in one replay: 512 GiB of traffic, about 1 GiB of PFNs in memory."""
MAX_RUNS = 1 << 27


@dataclass(frozen=True, eq=False)
class Requests:
    """Requests over a whole trace, in the order in which they arrived.

    Args:
        queue: uint8[n], `Queue`.
        time_ns: int64[n], on the clock of the side that saw them, or `NOT_OBSERVED_NS`.
        run_offsets: int64[n + 1]: request i holds runs `run_offsets[i]:run_offsets[i + 1]`.
        run_pfn: uint64[m], first PFN of each run as sent; below 2**52.
        run_pages: int32[m], pages of each run: negative where PFNs fall by one. A scatterlist
            entry is one run.
        truncated_pages: Pages that the tracer counted but could not keep; they are not replayed.
        memo: What strategies have worked out of these requests and share
            (`replay.strategies.select`).
    """

    queue: npt.NDArray[np.uint8]
    time_ns: Int64s
    run_offsets: Int64s
    run_pfn: npt.NDArray[np.uint64]
    run_pages: npt.NDArray[np.int32]
    truncated_pages: int = 0
    memo: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Requests."""
        return len(self.queue)

    def pfns(self, index: int) -> Int64s:
        """PFNs of one request in wire order."""
        runs = slice(int(self.run_offsets[index]), int(self.run_offsets[index + 1]))
        return pfns_from_runs(self.run_pfn[runs], self.run_pages[runs])

    @cached_property
    def pages(self) -> Int64s:
        """int64[n]: pages that each request names."""
        return request_pages(self.columns)

    @property
    def columns(self) -> RequestColumns:
        """What the C core reads of them."""
        return RequestColumns(self.queue, self.run_offsets, self.run_pfn, self.run_pages)

    def runs_of(self, *queues: Queue) -> tuple[Int64s, Int64s, Int64s]:
        """Runs of some queues in arrival order: first PFN, signed pages, request."""
        runs = np.diff(self.run_offsets)
        wanted = np.isin(self.queue, queues)
        # MAX_PFN keeps every PFN below 2**63, so this view changes no value.
        pfn = self.run_pfn.view(np.int64)
        request = np.repeat(np.flatnonzero(wanted), runs[wanted])
        if (wanted | (runs == 0)).all():
            return pfn, self.run_pages.astype(np.int64), request
        chosen = np.flatnonzero(np.repeat(wanted, runs))
        return pfn[chosen], self.run_pages[chosen].astype(np.int64), request

    def before(self, index: int) -> Requests:
        """The first `index` requests."""
        return self.between(0, index)

    def between(self, first: int, end: int) -> Requests:
        """Requests `[first, end)`."""
        offsets = self.run_offsets[first : end + 1]
        runs = slice(int(offsets[0]), int(offsets[-1]))
        return Requests(
            self.queue[first:end],
            self.time_ns[first:end],
            offsets - offsets[0],
            self.run_pfn[runs],
            self.run_pages[runs],
        )


def from_pfns(
    stream: Iterable[tuple[Queue, Sequence[int] | Sequence[range]]],
    time_ns: Sequence[int] | None = None,
) -> Requests:
    """Build requests from PFNs in wire order: for scenarios, tests and notebooks.

    Args:
        stream: Queue and content of each request: PFNs, of which neighbours become one run; or
            rising `range`s of PFNs, each one scatterlist entry, even where two of them touch.
        time_ns: Arrival of each request; not observed when left out.
    """
    found = [(queue, *_runs_of_content(content)) for queue, content in stream]
    lengths = [len(pfn) for _, pfn, _ in found]
    times = [NOT_OBSERVED_NS] * len(found) if time_ns is None else time_ns
    return Requests(
        np.array([queue for queue, _, _ in found], np.uint8),
        np.array(times, np.int64),
        np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
        np.concatenate([np.zeros(0, np.int64), *(pfn for _, pfn, _ in found)]).astype(np.uint64),
        np.concatenate([np.zeros(0, np.int64), *(pages for *_, pages in found)]).astype(np.int32),
    )


def _runs_of_content(content: Sequence[int] | Sequence[range]) -> tuple[Int64s, Int64s]:
    """First PFN and signed pages of each run of one request."""
    entries = [entry for entry in content if isinstance(entry, range)]
    if not entries:
        return runs_from_wire(np.array(content, np.int64))
    if len(entries) != len(content) or any(len(e) == 0 or e.step != 1 for e in entries):
        raise ValueError("entries are rising ranges that hold a PFN, and do not mix with PFNs")
    return (
        np.array([entry.start for entry in entries], np.int64),
        np.array([len(entry) for entry in entries], np.int64),
    )


def memory_map(trace: Trace) -> tuple[Region, ...]:
    """Guest memory as the trace recorded it, checked to be replayable.

    Raises:
        TraceError: The trace holds no memory map.
        AerostatError: Regions overlap, are misaligned, or ask for 1 TiB or more.
    """
    regions = tuple(trace.manifest.regions)
    if not regions:
        raise TraceError(
            f"{trace.path} holds no memory map",
            reason="the guest's memory was not seen when the trace was recorded",
            remedy="record the host side as well: aerostat record --pid PID",
        )
    return Layout(regions).regions


def load_requests(trace: Trace) -> Requests:
    """Read a trace's requests, the host's where there are any, else the guest's.

    The run columns are views of the Arrow buffers where the table is one chunk.

    Raises:
        TraceError: Runs that no request can hold, or more pages than a replay can plan.
    """
    table = trace.table("requests")
    side = Side.GUEST
    host = pc.equal(table["side"], int(Side.HOST))
    if pc.any(host).as_py():
        side = Side.HOST
        if not pc.all(host).as_py():
            table = table.filter(host)
    seq = table["seq"].to_numpy()
    if (seq[1:] < seq[:-1]).any():
        table = table.take(np.argsort(seq, kind="stable"))
    requests = _of_rows(table, side)
    del table
    pa.default_memory_pool().release_unused()  # what decoding took, as much again as the columns
    _refuse_impossible(trace, requests)
    return requests


def requests_by_batch(trace: Trace) -> Iterator[Requests]:
    """Read the same requests a batch at a time, as they were recorded, however many batches.

    Raises:
        TraceError: As `load_requests`, of one batch.
    """
    rows = (batch.num_rows for batch in trace.batches("requests", Side.HOST))
    side = Side.HOST if any(rows) else Side.GUEST
    for batch in trace.batches("requests", side):
        requests = _of_rows(pa.Table.from_batches([batch]), side)
        _refuse_impossible(trace, requests)
        yield requests


def _of_rows(table: pa.Table, side: Side) -> Requests:
    """Rows of one side, in their order."""
    clocks = ("pop_ns", "push_ns") if side is Side.HOST else ("send_ns", "kick_ns", "begin_ns")
    times = pc.fill_null(pc.coalesce(*(table[name] for name in clocks)), NOT_OBSERVED_NS)
    return Requests(
        table["queue"].to_numpy().astype(np.uint8, copy=False),
        times.to_numpy(),
        *flat_runs(table["runs"]),
        pc.sum(table["truncated_pages"]).as_py() or 0,
    )


def _refuse_impossible(trace: Trace, requests: Requests) -> None:
    """Hold a trace, which anyone may have written, to what a guest can send and we can plan."""
    if len(requests.run_pfn) > MAX_RUNS:
        raise _impossible(trace, f"{len(requests.run_pfn)} runs; {MAX_RUNS} can be planned")
    if len(requests) and int(requests.queue.max()) > max(Queue):
        raise _impossible(trace, f"queue {int(requests.queue.max())} does not exist")
    impossible = check_runs(requests.run_pfn, requests.run_pages)
    if impossible.empty:
        raise _impossible(trace, "a run of no pages")
    if impossible.beyond:
        raise _impossible(trace, "a PFN of 2**52 or more, beyond every 64-bit address")
    if impossible.below:
        raise _impossible(trace, "a falling run that passes below PFN 0")
    balloon = np.isin(requests.queue, (Queue.INFLATE, Queue.DEFLATE))
    total = int(requests.pages[balloon].sum())
    if total > MAX_BALLOON_PAGES:
        raise _impossible(trace, f"{total} balloon pages; {MAX_BALLOON_PAGES} can be planned")


def _impossible(trace: Trace, reason: str) -> TraceError:
    return TraceError(
        f"the requests of {trace.path} cannot be replayed",
        reason=reason,
        remedy="take the trace again; check_trace in tracer.trace.check lists what is wrong",
    )
