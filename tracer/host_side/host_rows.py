"""Turns one VM's records into rows: whole requests in order, calls with their request."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tracer.engine import decode, decode_calls
from tracer.engine.ring import Records, join_records, pick_records
from tracer.host_side.guest_map import GuestMap
from tracer.host_side.host_tally import Tally
from tracer.record.capture import Gather
from tracer.trace.sink import Sink

_REMEMBERED = 1 << 17
"""Requests whose calls may still come: a second of the smallest, as compaction sends them."""


class HostRows:
    """Gathers records and writes them, batch by batch.

    The programs name a request by a token that may have gaps, where requests were lost, and two
    series; the trace numbers them as they come.

    Args:
        writer: Where to.
        memory: Where the guest's memory lies; it learns from the requests.
        calls_observed: Whether system calls are recorded.
        tally: Told what was written.
    """

    def __init__(
        self,
        writer: Sink,
        memory: GuestMap,
        *,
        calls_observed: bool,
        tally: Tally,
    ) -> None:
        self._writer, self._memory = writer, memory
        self._calls_observed, self._tally = calls_observed, tally
        self._held = np.empty(0, decode.HOST_REQUEST)
        self._early = np.empty(0, decode.HOST_CALLS)
        self._tokens = np.empty(0, np.uint64)
        self._seqs = np.empty(0, np.int64)
        self._last_token = np.full(2, -1, np.int64)
        self._next_seq = 0
        self.strangers = self.partial = 0
        self._requests = Gather(self._write_requests)
        self._calls = Gather(self._write_calls)
        # What the first rows of a process take, up to 160 ms, is spent before there are any.
        unknown = np.full(2, -1)
        decode_calls.host_calls(np.zeros(2, decode.HOST_CALLS), unknown, unknown)

    def add(self, requests: Records, calls: Records) -> int:
        """Take records in the order of their rings; return how many requests there were."""
        taken = self.add_requests(requests)
        self.add_calls(calls)
        return taken

    def add_requests(self, requests: Records) -> int:
        """Take requests alone, before the calls that were read after them."""
        return self._requests.add(requests)

    def add_calls(self, calls: Records) -> None:
        """Take calls alone."""
        self._calls.add(calls)

    def flush(self) -> None:
        """Write what waits to become a batch worth its while."""
        self._requests.flush()
        self._calls.flush()

    def finish(self) -> None:
        """Write what waits.

        Calls of a request that was lost, or not seen to its end, stay without one.
        """
        self._requests.flush()
        self._write_whole(self._held)
        self._calls.flush()
        self._write_calls(np.empty(0, decode.HOST_CALLS), is_over=True)

    def _write_requests(self, records: Records) -> None:
        """Write whole requests; the chunks of one that is still to be completed wait."""
        records = join_records((self._held, records))
        whole = len(records)
        if whole and not decode.is_last_chunk(records[-1:])[0]:
            whole = int(np.flatnonzero(records["token"] == records["token"][-1])[0])
        self._held = records[whole:]
        self._write_whole(records[:whole])

    def _write_whole(self, records: Records) -> None:
        for series in (0, 1):
            tokens = records["token"][records["token"] % 2 == series]
            if len(tokens):
                self._last_token[series] = tokens[-1]
        known = decode.host_queues(records) != decode.UNKNOWN_QUEUE
        first = decode.first_chunks(records)
        self.strangers += int(np.count_nonzero(~known & first))
        self.partial += int(np.count_nonzero(known & first & decode.is_partial(records)))
        records, first = pick_records(records, known), first[known]
        self._number(records["token"][first])
        self._memory.learn(records)
        batch = decode.host_requests(
            records,
            self._next_seq,
            calls_observed=self._calls_observed,
            guest_pfns=self._memory.guest_pfns(),
        )
        self._next_seq += batch.num_rows
        self._tally.add_requests(batch)
        self._writer.append("requests", batch)

    def _number(self, tokens: npt.NDArray[np.uint64]) -> None:
        """Remember which rows the next requests become, for the calls that name them."""
        if not self._calls_observed:
            return
        seqs = np.arange(self._next_seq, self._next_seq + len(tokens))
        self._tokens = np.concatenate((self._tokens, tokens))[-_REMEMBERED:]
        self._seqs = np.concatenate((self._seqs, seqs))[-_REMEMBERED:]

    def _forget(self, tokens: npt.NDArray[np.uint64]) -> None:
        """Forget requests before the last of these, whose calls are written; calls come in order.

        Only the first of the two series, which QEMU's big lock keeps in order, makes calls.
        """
        named = tokens[tokens != decode.NO_REQUEST]
        if len(named):
            kept = self._tokens >= named.max()
            self._tokens, self._seqs = self._tokens[kept], self._seqs[kept]

    def _seq_of(self, tokens: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Look requests up: the row of each, -1 where it has none."""
        order = np.argsort(self._tokens, kind="stable")
        place = np.searchsorted(self._tokens, tokens, sorter=order)
        row = order[np.minimum(place, len(order) - 1)] if len(order) else place
        found = np.full(len(tokens), -1, np.int64)
        is_known = self._tokens[row] == tokens if len(order) else np.zeros(len(tokens), bool)
        found[is_known] = self._seqs[row[is_known]]
        return found

    def _write_calls(self, records: Records, *, is_over: bool = False) -> None:
        """Write the calls of requests that have ended; those of one under way wait until then."""
        self._requests.flush()
        records = join_records((self._early, records))
        # One thread's calls of one request follow each other: what is asked, is asked once of all.
        tokens = records["token"]
        begins = np.flatnonzero(np.append(True, tokens[1:] != tokens[:-1])[: len(tokens)])
        lengths = np.diff(begins, append=len(tokens))
        tokens = tokens[begins]
        last = self._last_token[(tokens % 2).astype(np.int64)]
        is_early = (tokens != decode.NO_REQUEST) & (tokens.astype(np.int64) > last)
        is_early &= not is_over
        self._early = pick_records(records, np.repeat(is_early, lengths))
        records = pick_records(records, np.repeat(~is_early, lengths))
        seqs = np.repeat(self._seq_of(tokens[~is_early]), lengths[~is_early])
        batch = decode_calls.host_calls(records, seqs, self._memory.gpa_of_calls(records))
        self._forget(tokens[~is_early])
        self._tally.add_calls(batch)
        self._writer.append("calls", batch)
