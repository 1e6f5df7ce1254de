"""What the host's rows say of moved pages beside its requests: system calls, and `actual`."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tracer.account.ledger_kinds import Kinds, Places
from tracer.account.ledger_sums import RequestSums
from tracer.trace.reader import Trace
from tracer.trace.schema import PAGE_BYTES, Mark, Queue, Side

DISCARDED = (Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING)
"""Queues whose pages the host discards, or advises on."""

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
    """Bytes that successful calls covered, by the queue whose requests they belong to.

    Args:
        trace: A trace with a host side. Its calls are read in one pass, a batch at a time.
        sums: Of its requests.

    Attributes:
        rows: Rows of the calls table.
    """

    def __init__(self, trace: Trace, sums: RequestSums) -> None:
        self.rows = 0
        self._numbers = {queue: sums.of(Side.HOST, queue).numbers for queue in DISCARDED}
        self._places = Places(trace.manifest.regions)
        # In doubles: exact to 2**53 pages, and a hostile length cannot wrap round.
        self._bytes: dict[Queue, dict[tuple[str, str], float]] = {q: {} for q in DISCARDED}
        self._seen: set[Queue] = set()
        for side in Side:
            for batch in trace.batches("calls", side):
                self.rows += batch.num_rows
                if side == Side.HOST:
                    self._add(batch)

    def discarded_pages(self, queue: Queue) -> int | None:
        """Pages, of 4 KiB, that calls gave back for a queue's requests; None if it had no call.

        Of deflates only what was advised as needed counts. Memory with a file takes two calls a
        page, hole punch and madvise: where either gives it back, the page counts once.
        """
        if queue not in self._seen:
            return None
        most: dict[str, float] = {}
        for (backing, _), size in self._bytes[queue].items():
            most[backing] = max(most.get(backing, 0.0), size)
        return int(sum(most.values())) // PAGE_BYTES

    def _add(self, batch: pa.RecordBatch) -> None:
        request = batch.column("request_seq")
        is_any, is_good = request.is_valid().to_numpy(False), batch.column("errno").to_numpy() == 0
        numbers = request.fill_null(0).to_numpy()
        # A request's calls follow each other: only the first of them is looked up.
        begins = np.concatenate([[True], numbers[1:] != numbers[:-1]])
        place = np.cumsum(begins) - 1
        kinds: Kinds | None = None
        for queue, known in self._numbers.items():
            linked = known.hold(numbers[begins])
            mine = linked[place] & is_any if linked.any() else linked
            if not mine.any():
                continue
            self._seen.add(queue)
            kinds = kinds or Kinds(batch, self._places)
            found = self._bytes[queue]
            for key, size in kinds.sums(mine & is_good, needed=queue is Queue.DEFLATE):
                found[key] = found.get(key, 0.0) + size


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
