"""Sums of the ledger and pairs of the join from whole tables: what the streamed ones must be.

Written before they were streamed, and kept as plain as that: every column of every row at once.
"""

from collections import defaultdict

import numpy as np
import pyarrow.compute as pc

from tracer.account import ledger as ledger_module
from tracer.account.align import align, content_hashes
from tracer.account.clocks import fit_clocks
from tracer.account.join import NOT_OBSERVED, Joined, Pairs, notice_ns, times_ns
from tracer.account.ledger_sums import Counted, QueueSums, Sum
from tracer.trace.columns import flat_runs
from tracer.trace.schema import PAGE_BYTES, Call, Caller, Queue, Side


def whole_join(trace):
    """Pair the requests of a trace; every range is compared with its partner's."""
    table = trace.table("requests")
    runs = flat_runs(table["runs"])
    hashes = content_hashes(*runs)
    send, pop, push = (times_ns(table, name) for name in ("send_ns", "pop_ns", "push_ns"))
    found = []
    for queue in [queue for queue in Queue if queue is not Queue.STATS]:
        guest, host = (_ordered(table, runs, side, queue) for side in (Side.GUEST, Side.HOST))
        timed = np.all(send[guest] != NOT_OBSERVED) and np.all(pop[host] != NOT_OBSERVED)
        times = (send[guest], pop[host]) if timed else (None, None)
        a, b = align(hashes[guest], hashes[host], *times)
        same = np.array(
            [
                _content(runs, i) == _content(runs, j)
                for i, j in zip(guest[a], host[b], strict=True)
            ],
            bool,
        )
        a, b = a[same], b[same]
        pairs = Pairs(queue, guest[a], host[b], np.delete(guest, a), np.delete(host, b))
        if len(a) or (len(pairs.guest_only) and len(pairs.host_only)):
            found.append(pairs)
    joined = Joined(tuple(found), None)
    a, b = joined.guest_row, joined.host_row
    notice = notice_ns(table)
    usable = (send[a] != NOT_OBSERVED) & (pop[b] != NOT_OBSERVED)
    usable &= (send[a] <= notice[a]) & (pop[b] <= push[b])
    a, b = a[usable], b[usable]
    return Joined(joined.queues, fit_clocks(send[a], pop[b], push[b], notice[a]))


def _ordered(table, runs, side, queue):
    mine = (table["side"].to_numpy() == side) & (table["queue"].to_numpy() == queue)
    rows = np.flatnonzero(mine & (np.diff(runs.offsets) > 0))
    return rows[np.argsort(table["seq"].to_numpy()[rows], kind="stable")]


def _content(runs, row):
    span = slice(runs.offsets[row], runs.offsets[row + 1])
    return runs.pfn[span].tolist(), runs.pages[span].tolist()


def whole_ledger(trace, monkeypatch):
    """Close the ledger with sums of whole tables."""
    with monkeypatch.context() as patch:
        patch.setattr(ledger_module, "join", whole_join)
        patch.setattr(ledger_module, "RequestSums", WholeSums)
        patch.setattr(ledger_module, "CallSums", WholeCalls)
        return ledger_module.ledger(trace)


class WholeSums:
    """As RequestSums."""

    def __init__(self, trace, joined=None, between=None):
        self.table = table = trace.table("requests")
        self.side, self.queue = (table[name].to_numpy() for name in ("side", "queue"))
        self.rows = {side: int(np.count_nonzero(self.side == side)) for side in Side}
        self.queues = set(self.queue.tolist())
        self.between = between
        self.counted = defaultdict(Counted)
        guest = trace.manifest.sides.get("guest")
        if guest is not None:
            moved = table["caller"].fill_null(0).to_numpy() == Caller.MIGRATION
            for name in ("inflate", "deflate"):
                rows = (self.side == Side.GUEST) & (self.queue == Queue[name.upper()])
                self.counted[name] = self._counted(rows & ~moved, guest)
                if name == "inflate":
                    self.counted["migration"] = self._counted(rows & moved, guest)
        self.apart = self._apart(trace, joined)

    def of(self, side, queue):
        rows = np.flatnonzero((self.side == side) & (self.queue == queue))
        part = self.table.take(rows)
        names = ("pages", "rejected_pages", "discard_calls", "discard_ns")
        sums = [_sum(part[name]) for name in names]
        found = QueueSums(*sums, apart_pages=self.apart.get((side, queue), 0))
        found.numbers = part["seq"].to_numpy()
        if self.between is not None and side == Side.HOST:
            push = times_ns(part, "push_ns")
            within = part.filter((push > self.between[0]) & (push <= self.between[1]))
            found.net_pages = _sum(within["pages"]).known - _sum(within["rejected_pages"]).known
        return found

    def stats_ns(self, side):
        rows = (self.side == side) & (self.queue == Queue.STATS)
        return times_ns(self.table, "kick_ns" if side == Side.GUEST else "pop_ns")[rows]

    def _counted(self, rows, guest):
        times = {name: times_ns(self.table, f"{name}_ns")[rows] for name in _GUEST_TIMES}
        first = np.where(times["begin"] == NOT_OBSERVED, times["send"], times["begin"])
        last = np.maximum.reduce([times[name] for name in ("send", "wake", "free", "end")])
        begin = guest.begin_ns, guest.counters.get("counted_begin_ns", guest.begin_ns)
        inside = last >= begin[0]
        under_way = inside & (first <= begin[1])
        if guest.end_ns is not None:
            end = guest.end_ns, guest.counters.get("counted_end_ns", guest.end_ns)
            inside &= first <= end[1]
            under_way |= inside & (last >= end[0])
        pages = self.table["pages"].to_numpy()[rows].astype(np.int64)
        return Counted(int(pages.sum()), int(pages[inside].sum()), not under_way.any())

    def _apart(self, trace, joined):
        guest, host = (trace.manifest.sides.get(name) for name in ("guest", "host"))
        if joined is None or joined.clock is None or None in (guest.end_ns, host.end_ns):
            return {}
        clock = joined.clock
        begin, end = clock.to_host_ns(np.array([guest.begin_ns, guest.end_ns]))
        pairs, pages = (
            {pairs.queue: pairs for pairs in joined.queues},
            self.table["pages"].to_numpy(),
        )
        found = {}
        for queue in Queue:
            mine = {
                side: np.flatnonzero((self.side == side) & (self.queue == queue)) for side in Side
            }
            rows = pairs[queue].host_only if queue in pairs else mine[Side.HOST]
            pop, push = (times_ns(self.table, name)[rows] for name in ("pop_ns", "push_ns"))
            found[Side.HOST, queue] = sum(pages[rows[(pop < begin) | (push > end)]].tolist())
            rows = pairs[queue].guest_only if queue in pairs else mine[Side.GUEST]
            send, wake = (
                _host_ns(clock, times_ns(self.table, n)[rows]) for n in ("send_ns", "wake_ns")
            )
            out = (send < host.begin_ns) | (np.maximum(send, wake) > host.end_ns)
            found[Side.GUEST, queue] = sum(pages[rows[out]].tolist())
        return found


_GUEST_TIMES = ("begin", "send", "wake", "free", "end")


_GIVES_BACK = {
    "anon": {4, 8, 24, "over"},
    "file-private": {4, 24, "over"},
    "memfd": {9, "punch"},
    "shmem": {9, "punch"},
    "hugetlb": {4, 9, 24, "over", "punch"},
}


class WholeCalls:
    """As CallSums."""

    def __init__(self, trace, sums):
        self.table, self.sums = trace.table("calls"), sums
        self.rows = self.table.num_rows
        self.regions = trace.manifest.regions

    def discarded_pages(self, queue):
        calls = self.table
        call, advice, error = (calls[name].to_numpy() for name in ("call", "advice", "errno"))
        request = calls["request_seq"]
        seqs = self.sums.of(Side.HOST, queue).numbers
        linked = np.isin(request.fill_null(0).to_numpy(), seqs)
        linked &= request.is_valid().to_numpy() & (calls["side"].to_numpy() == Side.HOST)
        if not linked.any():
            return None
        linked &= error == 0
        covered = calls["length_bytes"].to_numpy().astype(np.float64) * calls["count"].to_numpy()
        madvise = np.isin(call, [Call.MADVISE, Call.PROCESS_MADVISE])
        if queue is Queue.DEFLATE:
            return int(covered[linked & madvise & (advice == 3)].sum()) // PAGE_BYTES
        kinds = {value: madvise & (advice == value) for value in (4, 8, 9, 24)}
        kinds["punch"] = (call == Call.FALLOCATE) & (advice & 2 == 2)
        kinds["over"] = (call == Call.MMAP) & (advice & 0x30 == 0x30)
        found = 0
        for kinds_there, there in self._by_backing():
            here = linked & there
            found += max(int(covered[here & kinds[kind]].sum()) for kind in kinds_there)
        return found // PAGE_BYTES

    def _by_backing(self):
        """For each backing what gives it back, and which calls lie in it."""
        gpa = self.table["gpa"].fill_null(2**64 - 1).to_numpy()
        nowhere, used = np.ones(len(gpa), bool), set()
        for backing, kinds in _GIVES_BACK.items():
            inside = np.zeros(len(gpa), bool)
            for region in self.regions:
                if region.backing == backing:
                    end = region.gpa + region.length_bytes
                    inside |= (gpa >= np.uint64(region.gpa)) & (gpa < np.uint64(end))
                    used.update(kinds)
            nowhere &= ~inside
            yield kinds, inside
        yield used or set().union(*_GIVES_BACK.values()), nowhere


def _sum(column):
    return Sum(len(column), column.null_count, sum(pc.drop_null(column).to_pylist()))


def _host_ns(clock, guest_ns):
    seen = guest_ns != NOT_OBSERVED
    return np.where(seen, clock.to_host_ns(np.where(seen, guest_ns, 0)), NOT_OBSERVED)
