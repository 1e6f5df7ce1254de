"""What became of the memory of host and guest, from the samples: begin, end, least, most."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracer.trace.reader import Trace
from tracer.trace.schema import SAMPLES, Side

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

_NS_PER_S = 1e9
_COUNTS = (
    "minor_faults",
    "major_faults",
    "balloon_inflate_pages",
    "balloon_deflate_pages",
    "balloon_migrate_pages",
    "psi_some_us",
    "psi_full_us",
    "alloc_stalls",
)
"""Columns that only grow: their increase is what matters."""
_LEVELS = tuple(name for name in SAMPLES.names if name not in (*_COUNTS, "side", "ts_ns"))


@dataclass(frozen=True)
class Level:
    """A quantity that goes up and down: bytes at each sample.

    Attributes:
        side: Whose.
        column: Of the samples table.
        samples: Rows that have it.
        begin: In the first of them.
        end: In the last.
        least: Of all.
        most: Of all.
    """

    side: Side
    column: str
    samples: int
    begin: int
    end: int
    least: int
    most: int


@dataclass(frozen=True)
class Growth:
    """A count that only grows.

    Attributes:
        side: Whose.
        column: Of the samples table, with its unit.
        samples: Rows that have it.
        grown: From the first sample to the last.
        mean_per_s: In a second, over all that time; None with one sample.
        most_per_s: In a second, between two samples.
    """

    side: Side
    column: str
    samples: int
    grown: int
    mean_per_s: float | None
    most_per_s: float | None


def levels(trace: Trace) -> tuple[Level, ...]:
    """Sum up every level that was sampled."""
    found = []
    for side, column, _, values in _columns(trace, _LEVELS):
        ends = int(values[0]), int(values[-1])
        found.append(Level(side, column, len(values), *ends, int(values.min()), int(values.max())))
    return tuple(found)


def growths(trace: Trace) -> tuple[Growth, ...]:
    """Sum up every count that was sampled."""
    found = []
    for side, column, ts_ns, values in _columns(trace, _COUNTS):
        grown = int(values[-1]) - int(values[0])
        # As floats: a hostile trace's steps may leave 64 bits.
        steps = np.diff(values.astype(np.float64))
        seconds = np.diff(ts_ns.astype(np.float64)) / _NS_PER_S
        rates = steps[seconds > 0] / seconds[seconds > 0]
        span_s = float(seconds.sum())
        mean = grown / span_s if span_s > 0 else None
        most = float(rates.max()) if len(rates) else None
        found.append(Growth(side, column, len(values), grown, mean, most))
    return tuple(found)


def _columns(trace: Trace, names: tuple[str, ...]) -> Iterator[tuple[Side, str, Int64s, UInt64s]]:
    """Give each column that a side has, with the times of its samples."""
    for side in Side:
        table = trace.table("samples", side)
        for name in names:
            seen = table.filter(table[name].is_valid())
            if seen.num_rows:
                yield side, name, seen["ts_ns"].to_numpy(), seen[name].to_numpy()
