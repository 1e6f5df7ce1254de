"""What a trace's calls tell of themselves: memory found or not, a flush interrupt met or not.

Recorded calls come in two heights, and reports in two more, an order of magnitude apart. So their
times tell what no snapshot can: a guest writes pages after it, and its CPUs run now and then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from tracer.trace.schema import PFN_SHIFT, Side

if TYPE_CHECKING:
    import pyarrow as pa

    from replay.native.types import Operations
    from replay.plan import Plan
    from tracer.trace.reader import Trace

Floats = npt.NDArray[np.float64]
LOST_CPU_NS = 50_000
"""A call of one page that took longer waited for something else: no flush takes so long."""
APART = 3.0
"""Two heights are two only where the upper is so many times the lower."""
QUICK = 0.25
"""Share of the calls that lie below a quick one."""
ENDS = (0.05, 0.99)
"""Shares of the calls that lie below what stands for the lower height, and for the upper. One call
in a hundred that met an interrupt of 10 us makes all of them 100 ns dearer."""


@dataclass(frozen=True, eq=False)
class Calls:
    """The recorded discards and advice, one element an operation of the traced VMM's own plan.

    Args:
        mean_ns: Time of the call; of merged calls, their mean.
        row: Index of the recorded row that the call is in.
        worst_ns: The slowest call of each row.
        count: Calls of each row.
    """

    mean_ns: Floats
    row: npt.NDArray[np.int64]
    worst_ns: Floats
    count: npt.NDArray[np.int64]

    @property
    def total_ns(self) -> float:
        """Recorded stage d."""
        return float(self.mean_ns.sum())


def calls_of(trace: Trace, plan: Plan) -> Calls | None:
    """Lay a trace's calls beside the plan of the strategy that made them.

    Returns:
        None where the trace recorded no calls, or not those that the plan has.
    """
    table = trace.table("calls")
    ours = pc.and_(pc.is_valid(table["request_seq"]), pc.is_valid(table["gpa"]))
    table = table.filter(pc.and_(pc.equal(table["side"], int(Side.HOST)), ours))
    if not table.num_rows:
        return None
    seq, count, total_ns, worst_ns, length = (
        table[name].to_numpy().astype(np.int64)
        for name in ("request_seq", "count", "total_ns", "worst_ns", "length_bytes")
    )
    order = np.argsort(seq, kind="stable")
    row = np.repeat(order, count[order])
    if len(row) != len(plan) or (length[row] != plan.length_bytes.astype(np.int64)).any():
        return None
    return Calls((total_ns / count)[row], row, worst_ns.astype(np.float64), count)


def replayed_calls(table: pa.Table, operations: Operations) -> Calls | None:
    """Lay the calls of a replay, as probes recorded them, beside what it was told to do.

    Args:
        table: Rows as a trace has them, in order; `gpa` is the offset in the replayed memory, null
            elsewhere.
        operations: One thread's, in order.

    Returns:
        None where it is not each of them, in order and at its place, and nothing else.
    """
    table = table.filter(pc.is_valid(table["gpa"]))
    names = ("gpa", "length_bytes", "step", "count", "total_ns", "worst_ns")
    begin, length, step, count, total_ns, worst_ns = (
        table[name].to_numpy().astype(np.int64) for name in names
    )
    row = np.repeat(np.arange(len(count)), count)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    at = begin[row] + nth * (step * length)[row]
    same = np.array_equal(at, operations.offset_bytes.astype(np.int64))
    if not same or not np.array_equal(length[row], operations.length_bytes.astype(np.int64)):
        return None
    return Calls((total_ns / count)[row], row, worst_ns.astype(np.float64), count)


def pages_of(plan: Plan) -> npt.NDArray[np.int64]:
    """Length of each operation in 4 KiB pages."""
    return (plan.length_bytes >> np.uint64(PFN_SHIFT)).astype(np.int64)


@dataclass(frozen=True)
class Heights:
    """The two heights of the most frequent discard, as recorded.

    Args:
        low_ns: Typical call that met no interrupt.
        high_ns: Typical call that did; None where there is but one height.
        interrupted_share: Of these calls, how many did; 0 where there is but one height.
        lost_cpu_ns: Time of single calls beyond `LOST_CPU_NS`, less `high_ns` or `low_ns` each.
    """

    low_ns: float
    high_ns: float | None
    interrupted_share: float
    lost_cpu_ns: float


def heights(
    calls: Calls, chosen: npt.NDArray[np.bool_], interrupt_ns: float = 0.0
) -> Heights | None:
    """Tell the two heights apart.

    A merged row knows its mean and its slowest call. With the heights known, the mean says how many
    of its calls were of the upper one.

    Args:
        calls: As recorded.
        chosen: The operations that count: discards of one length.
        interrupt_ns: What an interrupt takes, where it is known: calls that take long by themselves
            are told apart by that, since with an interrupt they do not take three times as long.
    """
    rows = np.unique(calls.row[chosen])
    if not len(rows):
        return None
    count = calls.count[rows]
    mean_ns, worst_ns = _row_means(calls, rows), calls.worst_ns[rows]
    # The slowest call is known by itself: what it lost to others is taken out of its row.
    lost = worst_ns > LOST_CPU_NS
    ordinary = np.where(
        lost & (count > 1), (mean_ns * count - worst_ns) / np.maximum(count - 1, 1), mean_ns
    )
    kept = ~(lost & (count == 1))
    if not kept.any():
        return None
    low_ns, high_ns = _two(ordinary[kept], count[kept], interrupt_ns)
    share = 0.0
    if high_ns is not None:
        part = np.clip((ordinary[kept] - low_ns) / (high_ns - low_ns), 0, 1)
        share = float((part * count[kept]).sum() / count[kept].sum())
    lost_ns = float((worst_ns[lost] - (high_ns or low_ns)).sum())
    return Heights(low_ns, high_ns, share, lost_ns)


def _row_means(calls: Calls, rows: npt.NDArray[np.int64]) -> Floats:
    at = np.full(len(calls.count), -1, np.int64)
    at[calls.row] = np.arange(len(calls.row))
    return calls.mean_ns[at[rows]]


def _two(
    mean_ns: Floats, weight: npt.NDArray[np.int64], interrupt_ns: float
) -> tuple[float, float | None]:
    """Weighted medians on both sides of the middle between `ENDS`, on a log scale.

    Where those are not apart, on both sides of a quick call and half an interrupt.
    """
    bottom, top = (_quantile(mean_ns, weight, share) for share in ENDS)
    middle = (bottom * top) ** 0.5
    if top < APART * bottom:
        middle = _quantile(mean_ns, weight, QUICK) + interrupt_ns / 2
        if not interrupt_ns or top < middle:
            return _quantile(mean_ns, weight, 0.5), None
    low, high = mean_ns < middle, mean_ns >= middle
    return _quantile(mean_ns[low], weight[low], 0.5), _quantile(mean_ns[high], weight[high], 0.5)


def _quantile(values: Floats, weight: npt.NDArray[np.int64], share: float) -> float:
    order = np.argsort(values)
    reach = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(reach, share * reach[-1])])
