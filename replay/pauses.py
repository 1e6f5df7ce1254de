"""How long single system calls took: exact quantiles, and a histogram to keep and merge."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from hdrh.codec import HdrCookieException, HdrLengthException
from hdrh.histogram import HdrHistogram

from replay.native.types import Operations, Times
from replay.watched import Pauses, WatchedRun
from tracer.trace.errors import AerostatError
from tracer.trace.schema import PFN_SHIFT

if TYPE_CHECKING:
    import numpy.typing as npt

LONGEST_NS = 3_600_000_000_000
"""An hour; a longer pause is counted as one."""
DIGITS = 3
"""Of a value in the histogram: it is right to one part in a thousand."""
MAX_ENCODED_CHARS = 1 << 20
MAX_PAYLOAD_BYTES = 1 << 20
"""Unpacked: a histogram of these settings has 34,816 counters of at most 9 bytes."""
_HEADER = struct.Struct(">IIIIQQd")
"""Of the unpacked payload: cookie, length, offset, digits, lowest, highest, ratio."""


class PausesError(AerostatError):
    """A stored histogram cannot be read."""


def pauses_of(per_call_ns: Times, floor_ns: Times, operations: Operations) -> Pauses | None:
    """Sum up the times of a watched run's calls.

    Args:
        per_call_ns: One an operation; -1 where it shares the call before it.
        floor_ns: The same of the loop without its calls.
        operations: What was executed.

    Returns:
        None where there was no call.
    """
    calls = np.flatnonzero(per_call_ns >= 0)
    if not len(calls):
        return None
    times_ns = per_call_ns[calls]
    worst = int(times_ns.argmax())
    end = calls[worst + 1] if worst + 1 < len(calls) else len(operations)
    in_call = slice(int(calls[worst]), int(end))
    quantiles = np.percentile(times_ns, (50, 90, 99, 99.9), method="higher")
    p50, p90, p99, p999 = (int(value) for value in quantiles)
    return Pauses(
        calls=len(calls),
        p50_ns=p50,
        p90_ns=p90,
        p99_ns=p99,
        p999_ns=p999,
        max_ns=int(times_ns.max()),
        worst_operation=in_call.start,
        worst_pages=int(operations.length_bytes[in_call].sum()) >> PFN_SHIFT,
        harness_ns=int(np.median(floor_ns[floor_ns >= 0])),
        histogram=encode(times_ns),
    )


def encode(times_ns: npt.NDArray[np.int64]) -> str:
    """Make a histogram of times, in the base64 form of HdrHistogram V2."""
    histogram = _empty()
    values, counts = np.unique(np.minimum(times_ns, LONGEST_NS), return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        histogram.record_value(value, count)
    return str(histogram.encode(), "ascii")


def pauses(watched: Iterable[WatchedRun]) -> HdrHistogram:
    """Merge the pauses of watched runs, such as `StrategyResult.watched`, in one histogram.

    Its values are nanoseconds; `get_value_at_percentile(99)` is a pause that one call in a hundred
    exceeds. It is empty where no call was timed.

    Raises:
        PausesError: A stored histogram is damaged or of other settings.
    """
    merged = _empty()
    for run in watched:
        if run.pauses is not None:
            merged.add(_decode(run.pauses.histogram))
    return merged


def _empty() -> HdrHistogram:
    return HdrHistogram(1, LONGEST_NS, DIGITS)


def _decode(text: str) -> HdrHistogram:
    """Read a histogram that may have been written by anyone.

    The library unpacks whatever it is given, so size and settings are held to ours before it is.
    """
    try:
        if len(text) > MAX_ENCODED_CHARS:
            raise ValueError(f"more than {MAX_ENCODED_CHARS} characters")
        unpacker = zlib.decompressobj()
        payload = unpacker.decompress(base64.b64decode(text)[8:], MAX_PAYLOAD_BYTES)
        if unpacker.unconsumed_tail:
            raise ValueError(f"more than {MAX_PAYLOAD_BYTES} bytes when unpacked")
        digits, lowest, highest = _HEADER.unpack_from(payload)[3:6]
        if (digits, lowest, highest) != (DIGITS, 1, LONGEST_NS):
            raise ValueError(f"{digits} digits from {lowest} to {highest} ns")
        return HdrHistogram.decode(text)
    except (
        ValueError,
        IndexError,
        OverflowError,
        zlib.error,
        struct.error,
        HdrCookieException,
        HdrLengthException,
    ) as error:
        raise PausesError(
            "a histogram of pauses cannot be read",
            reason=str(error) or type(error).__name__,
            remedy="write the results anew with `aerostat replay TRACE -o FILE`",
        ) from error
