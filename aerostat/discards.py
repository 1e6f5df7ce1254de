"""Sums the VMM's system calls by what they asked for: all that a trace without requests can say."""

import errno
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tracer.trace.reader import Trace
from tracer.trace.schema import PFN_SHIFT, Call, Side

Int64s = npt.NDArray[np.int64]

OTHER = "other"
"""What no name is known for. A trace may come from anybody, and hold any number of such."""
_MADVISE = {
    3: "WILLNEED",
    4: "DONTNEED",
    8: "FREE",
    9: "REMOVE",
    14: "HUGEPAGE",
    15: "NOHUGEPAGE",
    20: "COLD",
    21: "PAGEOUT",
    22: "POPULATE_READ",
    23: "POPULATE_WRITE",
    24: "DONTNEED_LOCKED",
}
"""include/uapi/asm-generic/mman-common.h, 6.12."""
_FALLOCATE = {0x02: "PUNCH_HOLE", 0x08: "COLLAPSE_RANGE", 0x10: "ZERO_RANGE"}
"""include/uapi/linux/falloc.h, 6.12, but for KEEP_SIZE: a hole cannot be punched without it."""
_MMAP = {0x01: "SHARED", 0x10: "FIXED", 0x20: "ANONYMOUS", 0x40000: "HUGETLB"}
"""include/uapi/asm-generic/mman.h, those that say what lies there afterwards."""
_MOST_ERRNOS = 8
_EXACT = 1 << 53
"""A float holds every whole number up to here."""


@dataclass(frozen=True)
class Discards:
    """Calls of one kind.

    Attributes:
        call: The system call, in lower case, or `other`.
        advice: What it asked for: madvise advice, fallocate mode or mmap flags, by name; or
            `other`.
        on_guest_memory: Whether they were on guest memory; None where the trace has no memory map.
        calls: How many, failed ones included.
        failed: How many of them failed.
        errnos: Those, by name of their errno, the most frequent ones.
        bytes: Covered by those that succeeded; what is covered twice counts twice.
        total_ns: Time in all.
        worst_ns: Time in the slowest.
        runs: Stretches of memory that calls following each other in one thread cover without a gap.
    """

    call: str
    advice: str
    on_guest_memory: bool | None
    calls: int
    failed: int
    errnos: dict[str, int]
    bytes: int
    total_ns: int
    worst_ns: int
    runs: int

    @property
    def pages(self) -> int:
        """4 KiB pages covered."""
        return self.bytes >> PFN_SHIFT

    @property
    def ns_per_page(self) -> float | None:
        """Time of one 4 KiB page."""
        return self.total_ns / self.pages if self.pages else None

    @property
    def mean_run_pages(self) -> float | None:
        """Mean length of a run, in 4 KiB pages."""
        return self.pages / self.runs if self.pages and self.runs else None


def discards(trace: Trace) -> tuple[Discards, ...]:
    """Sum the host's calls by system call, advice and whether they were on guest memory.

    Args:
        trace: Any trace.

    Returns:
        One entry for each kind, the one with most calls first.
    """
    table = trace.table("calls", Side.HOST)
    if not table.num_rows:
        return ()
    columns = _Columns(table)
    has_map = bool(trace.manifest.regions)
    keys = np.stack((columns.call, columns.name_number(), columns.is_guest), axis=1)
    _, kind = np.unique(keys, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    order = np.argsort(kind, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(kind[order])) + 1)
    found = [_sum(columns, rows, has_map=has_map) for rows in groups]
    return tuple(sorted(found, key=lambda item: -item.calls))


class _Columns:
    """The calls table in numpy; codes that are not known are -1."""

    def __init__(self, table: pa.Table) -> None:
        self.call, self.advice, self.tid, self.errno, self.step, self.count = (
            table.column(name).to_numpy().astype(np.int64)
            for name in ("call", "advice", "tid", "errno", "step", "count")
        )
        self.call[~np.isin(self.call, list(Call))] = -1
        self.total_ns, self.worst_ns = (
            table.column(name).to_numpy() for name in ("total_ns", "worst_ns")
        )
        self.length = table.column("length_bytes").to_numpy()
        gpa, hva = (table.column(name) for name in ("gpa", "hva"))
        self.is_guest = gpa.is_valid().to_numpy().astype(np.int64)
        place = np.where(self.is_guest, *(c.fill_null(0).to_numpy() for c in (gpa, hva)))
        # A falling row begins at its highest call. Sums may wrap around; they are only compared.
        covered = self.length * self.count.astype(np.uint64)
        self.low = np.where(self.step < 0, place + self.length - covered, place)
        self.high = self.low + covered
        self.names: list[str] = []

    def name_number(self) -> Int64s:
        """int64[n]: place of each row's advice in `names`, which this fills."""
        pairs, place = np.unique(
            np.stack((self.call, self.advice), axis=1), axis=0, return_inverse=True
        )
        known = [advice_name(call, advice) for call, advice in pairs.tolist()]
        self.names = sorted(set(known))
        number = {name: i for i, name in enumerate(self.names)}
        self.advice_number = np.array([number[name] for name in known], np.int64)[place.reshape(-1)]
        return self.advice_number


def _sum(columns: _Columns, rows: Int64s, *, has_map: bool) -> Discards:
    first = rows[0]
    count, good = columns.count[rows], columns.errno[rows] == 0
    covered = columns.length[rows[good]].astype(np.float64) * count[good]
    call = int(columns.call[first])
    return Discards(
        call=OTHER if call < 0 else Call(call).name.lower(),
        advice=columns.names[columns.advice_number[first]],
        on_guest_memory=bool(columns.is_guest[first]) if has_map else None,
        calls=_total(count),
        failed=_total(count[~good]),
        errnos=_errnos(columns.errno[rows[~good]], count[~good]),
        bytes=_total(covered),
        total_ns=_total(columns.total_ns[rows]),
        worst_ns=int(columns.worst_ns[rows].max()),
        runs=_runs(columns, rows[good]),
    )


def _errnos(numbers: Int64s, count: Int64s) -> dict[str, int]:
    different, place = np.unique(numbers, return_inverse=True)
    totals = np.bincount(place.reshape(-1), count, len(different))
    most = np.argsort(-totals, kind="stable")[:_MOST_ERRNOS]
    return {errno.errorcode.get(int(different[i]), OTHER): int(totals[i]) for i in most}


def _runs(columns: _Columns, rows: Int64s) -> int:
    """Count where a call does not go on where the thread's call before it ended."""
    if not len(rows):
        return 0
    rows = rows[np.argsort(columns.tid[rows], kind="stable")]
    before, after = rows[:-1], rows[1:]
    goes_up = (columns.high[before] == columns.low[after]) & (columns.step[after] >= 0)
    goes_down = (columns.low[before] == columns.high[after]) & (columns.step[after] <= 0)
    same_way = columns.step[before] * columns.step[after] >= 0
    same_thread = columns.tid[before] == columns.tid[after]
    return 1 + int(np.count_nonzero(~((goes_up | goes_down) & same_way & same_thread)))


def _total(values: npt.NDArray[np.generic]) -> int:
    """Add up; a hostile trace's sum may leave 64 bits, and is then near enough as a float."""
    near = float(values.sum(dtype=np.float64))
    return int(near) if near > _EXACT else int(values.sum(dtype=np.int64))


def advice_name(call: int, advice: int) -> str:
    """Say what a call asked for.

    Args:
        call: A code of `Call`, or -1.
        advice: Its madvise advice, fallocate mode or mmap flags.
    """
    if call in (Call.MADVISE, Call.PROCESS_MADVISE):
        return _MADVISE.get(advice, OTHER)
    flags: Mapping[int, Mapping[int, str]] = {Call.FALLOCATE: _FALLOCATE, Call.MMAP: _MMAP}
    names = [name for bit, name in flags.get(call, {}).items() if advice & bit]
    return "|".join(names) or OTHER
