"""The length of every stage in every request, from the times that its two ends were seen at."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracer.account.clocks import ClockFit
from tracer.account.join import NOT_OBSERVED, Int64s, Joined, times_ns
from tracer.trace.reader import Trace
from tracer.trace.schema import Call, Queue, Side

Bools = npt.NDArray[np.bool_]

_COLUMNS = (
    *("side", "queue", "pages", "discard_calls", "discard_ns", "pop_ns", "push_ns"),
    *("begin_ns", "send_ns", "wake_ns", "free_ns", "end_ns", "puff_ns"),
)
"""What a stage's length, or its cost, comes from: not the ranges, which are most of a row."""


class Rows:
    """Columns of the requests table, and who is paired with whom.

    Attributes:
        pages: 4 KiB pages of each row.
        calls: Discard system calls of each row, 0 where not observed.
        call_shares: Which part of the trace's discard calls each system call makes up.
    """

    def __init__(self, trace: Trace, joined: Joined) -> None:
        self._table = table = trace.columns("requests", _COLUMNS)
        self._side = table.column("side").to_numpy()
        self._queue = table.column("queue").to_numpy()
        self._pairs = {pairs.queue: (pairs.guest_row, pairs.host_row) for pairs in joined.queues}
        self.pages = table.column("pages").to_numpy().astype(np.int64)
        self.calls = table.column("discard_calls").fill_null(0).to_numpy().astype(np.int64)

        self.call_shares = _call_shares(trace)

    def of(self, queue: Queue, side: Side) -> Int64s:
        """Row numbers of one queue as one side saw it."""
        return np.flatnonzero((self._side == side) & (self._queue == queue)).astype(np.int64)

    def ns(self, name: str, rows: Int64s) -> Int64s:
        """One time column of these rows, NOT_OBSERVED where null."""
        return times_ns(self._table, name)[rows]

    def pairs(self, queue: Queue) -> tuple[Int64s, Int64s]:
        """Guest and host rows of the queue's pairs."""
        return self._pairs.get(queue, (np.empty(0, np.int64), np.empty(0, np.int64)))


def _call_shares(trace: Trace) -> dict[str, float]:
    made = punched = 0.0
    for batch in trace.batches("calls"):
        count = batch.column("count").to_numpy().astype(np.float64)
        made += float(count.sum())
        punched += float(count[batch.column("call").to_numpy() == Call.FALLOCATE].sum())
    share = punched / made if made else 0.0
    return {"madvise": 1.0 - share, "fallocate": share}


@dataclass(frozen=True)
class Sample:
    """One stage's length in each of these rows.

    Attributes:
        name: The stage's word.
        letter: The seed's letter, or empty.
        rows: Rows of the requests table that the lengths belong to.
        lengths_ns: Length per row; means nothing where `observed` is False.
        observed: Where both ends were seen, in a possible order.
        rejected: How many rows had both ends in an impossible order.
    """

    name: str
    letter: str
    rows: Int64s
    lengths_ns: Int64s
    observed: Bools
    rejected: int


def samples_of(
    queue: Queue, rows: Rows, guest: Int64s, host: Int64s, clock: ClockFit | None
) -> list[Sample]:
    """Measure every stage of one queue, in the order of the path.

    Args:
        queue: The queue.
        rows: The requests table.
        guest: Its rows of this queue as the guest saw them.
        host: The same as the host saw them.
        clock: The clock fit; without it, b is not split into its two ways.
    """
    allocate, puff, free, config = _guest_samples(queue, rows, guest)
    return [
        allocate,
        puff,
        *_pair_samples(queue, rows, clock),
        *_host_samples(rows, host),
        free,
        config,
    ]


def wall_and_other(rows: Rows, guest: Int64s, host: Int64s) -> tuple[int | None, int | None]:
    """From the first request's begin to the last one's end, and how much lay between requests.

    By the guest's clock where the guest saw requests, else by the host's.
    """
    if len(guest):
        begin = _first_seen([rows.ns(name, guest) for name in ("begin_ns", "send_ns")])
        end = _first_seen([rows.ns(name, guest) for name in ("end_ns", "free_ns", "wake_ns")])
    else:
        begin, end = rows.ns("pop_ns", host), rows.ns("push_ns", host)
    usable = (begin != NOT_OBSERVED) & (begin <= end)
    begin, end = begin[usable], end[usable]
    if not len(begin):
        return None, None
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], end[order]
    closed = np.maximum.accumulate(end)
    idle = np.maximum(begin[1:] - closed[:-1], 0)
    return int(closed[-1] - begin[0]), int(idle.sum())


def _first_seen(columns: list[Int64s]) -> Int64s:
    """Take per row the first column that is observed."""
    chosen = columns[0]
    for column in columns[1:]:
        chosen = np.where(chosen == NOT_OBSERVED, column, chosen)
    return chosen


def _seen(*columns: Int64s) -> Bools:
    return np.asarray(
        np.logical_and.reduce([column != NOT_OBSERVED for column in columns]), np.bool_
    )


def _sample(name: str, letter: str, rows: Int64s, lengths: Int64s, seen: Bools) -> Sample:
    """Keep the lengths that are observed and possible."""
    wrong = seen & (lengths < 0)
    return Sample(name, letter, rows, lengths, seen & ~wrong, int(np.count_nonzero(wrong)))


def _guest_samples(queue: Queue, rows: Rows, guest: Int64s) -> list[Sample]:
    begin, send = (rows.ns(name, guest) for name in ("begin_ns", "send_ns"))
    wake, free, end = (rows.ns(name, guest) for name in ("wake_ns", "free_ns", "end_ns"))
    puff = rows.ns("puff_ns", guest)
    # The recorder leaves puff_ns null in a request that never slept.
    waited = np.where(puff == NOT_OBSERVED, 0, puff)
    # Inflated pages are not freed, so the config write follows the wake-up at once.
    freed = wake if queue == Queue.INFLATE else free
    return [
        _sample("allocate", "a", guest, send - begin - waited, _seen(begin, send)),
        _sample("out of puff", "", guest, puff, _seen(puff)),
        _sample("free", "", guest, free - wake, _seen(wake, free)),
        _sample("config write", "", guest, end - freed, _seen(freed, end)),
    ]


def _pair_samples(queue: Queue, rows: Rows, clock: ClockFit | None) -> list[Sample]:
    guest, host = rows.pairs(queue)
    send, wake = (rows.ns(name, guest) for name in ("send_ns", "wake_ns"))
    pop, push = rows.ns("pop_ns", host), rows.ns("push_ns", host)
    seen = _seen(send, wake, pop, push) & (pop <= push)
    # Two lengths, each by one clock: no offset between the clocks enters.
    samples = [_sample("send", "b", guest, (wake - send) - (push - pop), seen)]
    if clock is not None:
        samples += [
            _crossing("send to pop", guest, pop - clock.to_host_ns(send), _seen(send, pop)),
            _crossing("push to wake", guest, clock.to_host_ns(wake) - push, _seen(push, wake)),
        ]
    return samples


def _crossing(name: str, rows: Int64s, lengths: Int64s, seen: Bools) -> Sample:
    """Keep a way from clock to clock as it is: it may be negative by the error of the clock fit."""
    return Sample(name, "", rows, lengths, seen, 0)


def _host_samples(rows: Rows, host: Int64s) -> list[Sample]:
    pop, push, discard = (rows.ns(name, host) for name in ("pop_ns", "push_ns", "discard_ns"))
    return [
        _sample("translate", "c", host, push - pop - discard, _seen(pop, push, discard)),
        _sample("discard", "d", host, discard, _seen(discard)),
    ]
