"""Running sums over one VM's requests and calls, batch by batch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tracer.trace.schema import Queue


class Tally:
    """Sums of what was recorded so far; see VmStats in tracer/record/live.py for their meaning."""

    def __init__(self) -> None:
        self.pages: dict[Queue, int] = {}
        self.requests: dict[Queue, int] = {}
        self.runs = self.discard_calls = self.discard_ns = self.discard_bytes = 0
        self.busy_ns = self.longest_ns = 0

    def add_requests(self, batch: pa.RecordBatch) -> None:
        """Add rows of the requests table."""
        if not batch.num_rows:
            return
        queue = batch["queue"].to_numpy()
        pages = batch["pages"].to_numpy()
        for number in np.unique(queue).tolist():
            rows = queue == number
            key = Queue(number)
            self.pages[key] = self.pages.get(key, 0) + int(pages[rows].sum(dtype=np.int64))
            self.requests[key] = self.requests.get(key, 0) + int(np.count_nonzero(rows))
        self.runs += len(batch["runs"].values)
        busy_ns = pc.subtract(batch["push_ns"], batch["pop_ns"])
        self.busy_ns += pc.sum(busy_ns).as_py() or 0
        self.longest_ns = max(self.longest_ns, pc.max(busy_ns).as_py() or 0)
        self.discard_calls += pc.sum(batch["discard_calls"]).as_py() or 0
        self.discard_ns += pc.sum(batch["discard_ns"]).as_py() or 0
        self.discard_bytes += pc.sum(batch["discard_bytes"]).as_py() or 0

    def add_calls(self, batch: pa.RecordBatch) -> None:
        """Add those rows of the calls table that belong to no request."""
        batch = batch.filter(pc.is_null(batch["request_seq"]))
        if not batch.num_rows:
            return
        count = batch["count"].to_numpy().astype(np.int64)
        length = batch["length_bytes"].to_numpy().astype(np.int64)
        self.discard_calls += int(count.sum())
        self.discard_ns += pc.sum(batch["total_ns"]).as_py() or 0
        self.discard_bytes += int((count * length)[batch["errno"].to_numpy() == 0].sum())
