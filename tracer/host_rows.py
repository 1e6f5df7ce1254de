"""Turns one VM's records into rows: whole requests in order, calls with their request."""

from __future__ import annotations

import numpy as np

from tracer import decode
from tracer.capture import Gather
from tracer.guest_map import GuestMap
from tracer.host_tally import Tally
from tracer.ring import Records, join_records, pick_records
from tracer.trace.sink import Sink

_REMEMBERED = 8192
"""Requests whose calls may still come: those of two batches."""


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
        self._seq_of: dict[int, int] = {}
        self._last_token = np.full(2, -1, np.int64)
        self._next_seq = 0
        self.strangers = self.partial = 0
        self._requests = Gather(self._write_requests)
        self._calls = Gather(self._write_calls)

    def add(self, requests: Records, calls: Records) -> int:
        """Take records in the order of their rings; return how many requests there were."""
        taken = self._requests.add(requests)
        self._calls.add(calls)
        return taken

    def flush(self) -> None:
        """Write what waits to become a batch worth its while."""
        self._requests.flush()
        self._calls.flush()

    def finish(self) -> None:
        """Write what waits.

        Calls of a request that the capture did not see to its end are dropped.
        """
        self._requests.flush()
        self._write_whole(self._held)
        self._calls.flush()
        self._write_calls(np.empty(0, decode.HOST_CALLS))

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
        self._number(records["token"][first].tolist())
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

    def _number(self, tokens: list[int]) -> None:
        kept = list(self._seq_of.items())[-_REMEMBERED:]
        fresh = zip(tokens, range(self._next_seq, self._next_seq + len(tokens)), strict=True)
        self._seq_of = dict([*kept, *fresh])

    def _write_calls(self, records: Records) -> None:
        """Write the calls of requests that are written; those of one still under way wait."""
        records = join_records((self._early, records))
        tokens = records["token"]
        has_request = tokens != decode.NO_REQUEST
        last = self._last_token[(tokens % 2).astype(np.int64)]
        is_early = has_request & (tokens.astype(np.int64) > last)
        self._early = pick_records(records, is_early)
        records = pick_records(records, ~is_early)
        unique, place = np.unique(records["token"], return_inverse=True)
        seqs = np.array([self._seq_of.get(token, -1) for token in unique.tolist()], np.int64)
        batch = decode.host_calls(records, seqs[place], self._memory.gpa_of_calls(records))
        self._tally.add_calls(batch)
        self._writer.append("calls", batch)
