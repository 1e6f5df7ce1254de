"""Turns the guest's records into rows and marks, and counts what is wrong with them."""

from __future__ import annotations

import numpy as np

from tracer.engine import decode
from tracer.engine.ring import Records
from tracer.guest_side.guest_events import GUEST_EVENT, event_requests, is_request
from tracer.guest_side.guest_marks import GuestMarks
from tracer.record.capture import Gather
from tracer.trace.sink import Sink


class GuestRows:
    """Gathers records and writes them, batch by batch; rows are numbered as they are written.

    Args:
        writer: Where to.

    Attributes:
        marks: Told what the records carry.
        strangers: Requests of a queue that is not known; not written.
        partial: Requests whose pages could not be read in whole.
    """

    def __init__(self, writer: Sink) -> None:
        self._writer = writer
        self._next_seq = 0
        self._held = np.empty(0, decode.GUEST_REQUEST)
        self.marks = GuestMarks(writer)
        self.strangers = self.partial = 0
        self._requests = Gather(self._write_requests)
        self._events = Gather(self._write_events)

    @staticmethod
    def warm_up() -> None:
        """Decode once: first runs are slow, by seconds in an emulated guest."""
        singles = np.zeros(2, decode.GUEST_SINGLE)
        decode.guest_requests(decode.from_singles(singles), 0)
        event_requests(np.zeros(2, GUEST_EVENT), 0)

    def add(self, now_ns: int, requests: Records, singles: Records, events: Records) -> int:
        """Take what the rings held; return how many records there were.

        Requests and those of one page come by two rings, and are numbered in the order in which
        they were sent. What was sent after the rings were looked at waits for what is before it.

        Args:
            now_ns: CLOCK_MONOTONIC before the first ring was read.
            requests: GUEST_REQUEST[n].
            singles: GUEST_SINGLE[n].
            events: GUEST_EVENT[n].
        """
        waiting = self._held
        if len(requests) or len(singles) or len(waiting):
            waiting = np.concatenate((waiting, requests, decode.from_singles(singles)))
            waiting = waiting[np.argsort(waiting["send_ns"], kind="stable")]
        known = int(np.searchsorted(waiting["send_ns"], np.uint64(now_ns)))
        self._held = waiting[known:]
        self._requests.add(waiting[:known])
        self._events.add(events)
        return len(requests) + len(singles) + len(events)

    def finish(self) -> None:
        """Write all that waits; nothing more comes."""
        self._requests.add(self._held)
        self.flush()

    def flush(self) -> None:
        """Write what waits to become a batch, but not what still waits for its turn."""
        self._requests.flush()
        self._events.flush()

    def flush_events(self) -> None:
        """Write the events that wait, so that marks of what is true now come after them."""
        self._events.flush()

    def _write_requests(self, records: Records) -> None:
        known = records["queue"] != decode.UNKNOWN_QUEUE
        self.strangers += int(np.count_nonzero(~known))
        records = records[known]
        self.partial += int(np.count_nonzero(records["flags"]))
        self._writer.append("requests", decode.guest_requests(records, self._next_seq))
        self._next_seq += len(records)
        self.marks.add_requests(records)

    def _write_events(self, records: Records) -> None:
        requests = records[is_request(records)]
        self.partial += int(np.count_nonzero(requests["flags"]))
        self._writer.append("requests", event_requests(requests, self._next_seq))
        self._next_seq += len(requests)
        self.marks.add_events(records)
