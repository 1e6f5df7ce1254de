"""What the host's rows say of moved pages beside its requests: system calls, and `actual`."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tracer.account.ledger_sums import RequestSums
from tracer.trace.reader import Trace
from tracer.trace.schema import PAGE_BYTES, Call, Mark, Queue, Side

_PUNCH_HOLE = 2
"""FALLOC_FL_PUNCH_HOLE, include/uapi/linux/falloc.h, since 2.6.38."""
_GIVES_BACK = (4, 8, 9, 24)
"""MADV_DONTNEED, FREE (4.5), REMOVE, DONTNEED_LOCKED (5.18): asm-generic/mman-common.h."""
_WILLNEED = 3
_NEEDED = "willneed"
DISCARDED = (Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING)
"""Queues whose pages the host discards, or advises on."""

Bools = npt.NDArray[np.bool_]
Event = tuple[int, int]


@dataclass(frozen=True)
class Discards:
    """The VMM's system calls for one queue's requests.

    Attributes:
        calls: How many, failed ones included; None if not observed.
        total_ns: Time in them; None if not observed.
    """

    calls: int | None
    total_ns: int | None


def captured_discards(trace: Trace) -> dict[Queue, Discards]:
    """Count the VMM's own discard calls per queue: what a faithful replay has to reproduce.

    Args:
        trace: A trace with a host side; without one every count is None.

    Returns:
        Calls and time of each queue that moves pages.
    """
    sums = RequestSums(trace)
    found = {}
    for queue in DISCARDED:
        seen = sums.of(Side.HOST, queue)
        found[queue] = Discards(seen.calls.total, seen.discard_ns.total)
    return found


class CallSums:
    """Bytes that successful calls covered, by the queue whose requests they belong to and by kind.

    Args:
        trace: A trace with a host side. Its calls are read in one pass, a batch at a time.
        sums: Of its requests.

    Attributes:
        rows: Rows of the calls table.
    """

    def __init__(self, trace: Trace, sums: RequestSums) -> None:
        self.rows = 0
        self._numbers = {queue: sums.of(Side.HOST, queue).numbers for queue in DISCARDED}
        # In doubles: exact to 2**53 pages, and a hostile length cannot wrap round.
        self._bytes: dict[Queue, dict[str, float]] = {queue: {} for queue in DISCARDED}
        for side in Side:
            for batch in trace.batches("calls", side):
                self.rows += batch.num_rows
                if side == Side.HOST:
                    self._add(batch)

    def discarded_pages(self, queue: Queue) -> int | None:
        """Pages, of 4 KiB, that calls covered for a queue's requests; None if no call did.

        Of deflates only what was advised as needed counts. Shared memory takes two calls a page,
        hole punch and madvise: the page counts once.
        """
        by_kind = self._bytes[queue].values()
        return int(max(by_kind)) // PAGE_BYTES if by_kind else None

    def _add(self, batch: pa.RecordBatch) -> None:
        request = batch.column("request_seq")
        good = (batch.column("errno").to_numpy() == 0) & request.is_valid().to_numpy(False)
        numbers = request.fill_null(0).to_numpy()
        # A request's calls follow each other: only the first of them is looked up.
        begins = np.concatenate([[True], numbers[1:] != numbers[:-1]])
        place = np.cumsum(begins) - 1
        kinds: dict[str, Bools] | None = None
        for queue, known in self._numbers.items():
            linked = known.hold(numbers[begins])
            if not linked.any():
                continue
            kinds = kinds or _kinds(batch)
            self._add_kinds(batch, queue, linked[place] & good, kinds)

    def _add_kinds(
        self, batch: pa.RecordBatch, queue: Queue, linked: Bools, kinds: dict[str, Bools]
    ) -> None:
        """Add the calls that belong to one queue's requests, by kind."""
        length = batch.column("length_bytes").to_numpy().astype(np.float64)
        covered = length * batch.column("count").to_numpy()
        found = self._bytes[queue]
        for name, kind in kinds.items():
            mine = linked & kind
            if (name == _NEEDED) == (queue is Queue.DEFLATE) and mine.any():
                found[name] = found.get(name, 0.0) + float(covered[mine].sum())


def _kinds(batch: pa.RecordBatch) -> dict[str, Bools]:
    """Say of each call which kind it is of; those of no kind count for nothing."""
    call, advice = (batch.column(name).to_numpy() for name in ("call", "advice"))
    punches = call == Call.FALLOCATE
    kinds = {str(value): ~punches & (advice == value) for value in _GIVES_BACK}
    kinds["punch"] = punches & (advice & _PUNCH_HOLE != 0)
    kinds[_NEEDED] = ~punches & (advice == _WILLNEED)
    return kinds


def actual_events(trace: Trace) -> tuple[Event, Event] | None:
    """Find the first and the last event of the device's `actual` that the recorder saw.

    They stand in where it could not ask the device. A guest writes `actual` once the device has
    answered (virtio_balloon's work function, since 2.6.25), so the requests between two of its
    writes are those whose answer lies between them.

    Args:
        trace: A trace with a host side.

    Returns:
        Time and bytes of each; None where fewer than two were seen. QEMU's event goes by what is
        left to the guest.
    """
    side = trace.manifest.sides.get("host")
    if side is None:
        return None
    count, first, last = 0, (0, 0), (0, 0)
    for batch in trace.batches("marks", Side.HOST):
        actual = (batch.column("mark").to_numpy() == Mark.ACTUAL) & (
            batch.column("ts_ns").to_numpy() >= side.begin_ns
        )
        chosen = batch.select(["ts_ns", "value"]).filter(pa.array(actual))
        events = [
            (row["ts_ns"], row["value"]) for row in chosen.to_pylist() if None not in row.values()
        ]
        for event in events:
            # Of events at one time the first counts, as the first and as the last.
            first = event if not count or event[0] < first[0] else first
            last = event if not count or event[0] > last[0] else last
            count += 1
    return (first, last) if count > 1 else None
