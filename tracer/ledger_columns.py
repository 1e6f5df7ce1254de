"""What the ledger sums: columns of the requests table, and pages that one side could not see."""

import numpy as np
import numpy.typing as npt

from tracer.join import Joined
from tracer.trace.manifest import SideInfo
from tracer.trace.reader import Trace
from tracer.trace.schema import Caller, Queue, Side


class Columns:
    """The requests table in numpy, as far as sums need it."""

    def __init__(self, trace: Trace) -> None:
        self._table = trace.table("requests")
        self.side = self._table.column("side").to_numpy()
        self.queue = self._table.column("queue").to_numpy()
        self.seq = self._table.column("seq").to_numpy()
        self.caller = self._table.column("caller").fill_null(int(Caller.OTHER)).to_numpy()

    def rows(self, side: Side, queue: Queue) -> npt.NDArray[np.bool_]:
        """Say of each row whether it is of this side and queue."""
        return np.asarray((self.side == side) & (self.queue == queue))

    def total(self, name: str, rows: npt.NDArray[np.bool_]) -> int | None:
        """Sum a column; None if there is no row or any row lacks it: the sum is not known then."""
        column = self._table.column(name).filter(rows)
        if not len(column) or column.null_count:
            return None
        # Python integers: a hostile file's counts may sum past 64 bits.
        values: list[int] = column.to_pylist()
        return sum(values)


def host_only_pages(
    trace: Trace, joined: Joined, guest: SideInfo, queues: tuple[Queue, ...]
) -> dict[Queue, int]:
    """Count, by queue, the pages the host saw before the guest's recorder began or after it ended.

    The two recorders never start at the same instant, and the guest reports pages when it likes.
    """
    if guest.end_ns is None or joined.clock is None:
        return {}
    table = trace.table("requests")
    pop_ns, push_ns = (table.column(name) for name in ("pop_ns", "push_ns"))
    begin_ns, end_ns = joined.clock.to_host_ns(np.array([guest.begin_ns, guest.end_ns]))
    unpaired = {pairs.queue: pairs.host_only for pairs in joined.queues}
    columns = Columns(trace)
    found = {}
    for queue in queues:
        rows = unpaired.get(queue, np.flatnonzero(columns.rows(Side.HOST, queue)))
        # A request under way at either end is on both sides of it: neither kernel saw it whole.
        outside = [
            int(row)
            for row in rows
            if (pop_ns[int(row)].as_py() or 0) < begin_ns
            or (push_ns[int(row)].as_py() or 0) > end_ns
        ]
        pages = sum(table.column("pages")[row].as_py() for row in outside)
        if pages:
            found[queue] = pages
    return found
