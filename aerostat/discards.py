"""Sums the VMM's system calls by what they asked for: all that a trace without requests can say."""

import errno
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tracer.trace.reader import Trace
from tracer.trace.schema import PFN_SHIFT, Call, Side

Int64s = npt.NDArray[np.int64]
_Key = tuple[int, str, int]
"""Code of the call or -1, name of the advice, and whether it was on guest memory."""

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
_ERRNOS = np.array(sorted(errno.errorcode), np.int64)
_UNKNOWN = -1
_MOST_THREADS = 1 << 16
"""Whose last call is remembered: more than a VMM has; a trace may name as many as it has rows."""
_PLACE = np.dtype([("tid", np.int64), ("low", np.uint64), ("high", np.uint64), ("step", np.int64)])
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
    kinds: dict[_Key, _Kind] = defaultdict(_Kind)
    for batch in trace.batches("calls", Side.HOST):
        columns = _Columns(batch)
        for number, rows in _groups(columns.key):
            kinds[columns.keys[number]].add(columns, rows)
    has_map = bool(trace.manifest.regions)
    found = [_discards(key, kinds[key], has_map=has_map) for key in sorted(kinds)]
    return tuple(sorted(found, key=lambda item: -item.calls))


class _Columns:
    """A batch of the calls in numpy; codes that are not known are -1."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.call, self.advice, self.tid, self.errno, self.step, self.count = (
            batch.column(name).to_numpy().astype(np.int64)
            for name in ("call", "advice", "tid", "errno", "step", "count")
        )
        self.call[~np.isin(self.call, list(Call))] = -1
        self.total_ns, self.worst_ns = (
            batch.column(name).to_numpy() for name in ("total_ns", "worst_ns")
        )
        self.length = batch.column("length_bytes").to_numpy()
        gpa, hva = (batch.column(name) for name in ("gpa", "hva"))
        is_guest = gpa.is_valid().to_numpy(zero_copy_only=False)
        place = np.where(is_guest, *(c.fill_null(0).to_numpy() for c in (gpa, hva)))
        # A falling row begins at its highest call. Sums may wrap around; they are only compared.
        covered = self.length * self.count.astype(np.uint64)
        self.low = np.where(self.step < 0, place + self.length - covered, place)
        self.high = self.low + covered
        # The call, 32 bits of advice, and whether it was on guest memory.
        kinds = (self.call << 33) | ((self.advice & 0xFFFFFFFF) << 1) | is_guest
        _, first, place = np.unique(kinds, return_index=True, return_inverse=True)
        # However many kinds of advice a trace makes up, most have one name.
        of_kind = [
            (call, advice_name(call, advice), int(on_guest))
            for call, advice, on_guest in zip(
                self.call[first].tolist(),
                self.advice[first].tolist(),
                is_guest[first].tolist(),
                strict=True,
            )
        ]
        self.keys = sorted(set(of_kind))
        number = {key: i for i, key in enumerate(self.keys)}
        self.key = np.array([number[key] for key in of_kind], np.int64)[place.reshape(-1)]


def _groups(numbers: Int64s) -> Iterator[tuple[int, Int64s]]:
    """Give each number that occurs, and the rows that have it, in order."""
    order = np.argsort(numbers, kind="stable")
    bounds = np.flatnonzero(np.diff(numbers[order])) + 1
    for rows in np.split(order, bounds) if len(order) else ():
        yield int(numbers[rows[0]]), rows


@dataclass(slots=True)
class _Total:
    """A sum; a hostile trace's may leave 64 bits, and is then near enough as a float."""

    near: float = 0.0
    exact: int = 0

    @property
    def value(self) -> int:
        return int(self.near) if self.near > _EXACT else self.exact

    def add(self, values: npt.NDArray[np.generic]) -> None:
        near = float(values.sum(dtype=np.float64))
        self.near += near
        self.exact += int(near) if near > _EXACT else int(values.sum(dtype=np.int64))


@dataclass(slots=True)
class _Kind:
    """Sums of one kind, and where each thread's last good call of it was."""

    calls: _Total = field(default_factory=_Total)
    failed: _Total = field(default_factory=_Total)
    bytes: _Total = field(default_factory=_Total)
    total_ns: _Total = field(default_factory=_Total)
    worst_ns: int | None = None
    errnos: Counter[int] = field(default_factory=Counter)
    runs: int = 0
    last: npt.NDArray[np.void] = field(default_factory=lambda: np.empty(0, _PLACE))

    def add(self, columns: _Columns, rows: Int64s) -> None:
        """Add rows of a batch."""
        count, good = columns.count[rows], columns.errno[rows] == 0
        self.calls.add(count)
        self.failed.add(count[~good])
        self.bytes.add(columns.length[rows[good]].astype(np.float64) * count[good])
        self.total_ns.add(columns.total_ns[rows])
        worst_ns = int(columns.worst_ns[rows].max())
        self.worst_ns = worst_ns if self.worst_ns is None else max(worst_ns, self.worst_ns)
        errnos = columns.errno[rows[~good]]
        errnos[~np.isin(errnos, _ERRNOS)] = _UNKNOWN
        for number, failed in _groups(errnos):
            self.errnos[number] += int(count[~good][failed].sum())
        self._add_runs(columns, rows[good])

    def _add_runs(self, columns: _Columns, rows: Int64s) -> None:
        """Count where a call does not go on where the thread's call before it ended."""
        places = np.empty(len(rows), _PLACE)
        for name in _PLACE.fields or ():
            places[name] = getattr(columns, name)[rows]
        # Each thread's last call of the batches before stands in front of its calls here.
        places = np.concatenate([self.last, places])
        places = places[np.argsort(places["tid"], kind="stable")]
        before, after = places[:-1], places[1:]
        goes_up = (before["high"] == after["low"]) & (after["step"] >= 0)
        goes_down = (before["low"] == after["high"]) & (after["step"] <= 0)
        same_way = before["step"] * after["step"] >= 0
        same_thread = before["tid"] == after["tid"]
        goes_on = (goes_up | goes_down) & same_way & same_thread
        self.runs += len(rows) - int(np.count_nonzero(goes_on))
        self.last = places[np.append(~same_thread, True)[: len(places)]][-_MOST_THREADS:]


def _discards(key: _Key, kind: _Kind, *, has_map: bool) -> Discards:
    call, advice, is_guest = key
    most = sorted(kind.errnos.items(), key=lambda item: (-item[1], item[0]))[:_MOST_ERRNOS]
    return Discards(
        call=OTHER if call < 0 else Call(call).name.lower(),
        advice=advice,
        on_guest_memory=bool(is_guest) if has_map else None,
        calls=kind.calls.value,
        failed=kind.failed.value,
        errnos={errno.errorcode.get(number, OTHER): count for number, count in most},
        bytes=kind.bytes.value,
        total_ns=kind.total_ns.value,
        worst_ns=kind.worst_ns or 0,
        runs=kind.runs,
    )


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
