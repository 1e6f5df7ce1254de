"""Typed face of gather.c: sort and merge what requests name, timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from replay.native.binding import array, check, check_starts, load, map_struct
from replay.native.types import Bytes, Times, Words
from tracer.trace.schema import Wire

Flags = npt.NDArray[np.bool_]
SMALLEST_BYTES = {Wire.PFNS: 4, Wire.SCATTERLIST: 16}
"""What names one run of pages at least."""


@dataclass(frozen=True, eq=False)
class Gathered:
    """What was merged, and what that took.

    Args:
        first_page: uint64, ascending within each group.
        pages: uint64.
        ended: int64: how many runs there were after each request that was merged.
        groups: int64: the group of each of these requests.
        rejected: PFNs and entries that are no guest memory, and torn ends.
    """

    first_page: Words
    pages: Words
    ended: Times
    groups: Times
    rejected: int
    wall_ns: int
    cpu_ns: int

    @property
    def group(self) -> Times:
        """The group of each run: made when it is asked for, as long as `pages`."""
        return np.repeat(self.groups, np.diff(self.ended, prepend=0))


@dataclass(frozen=True, eq=False)
class Wanted:
    """Which requests are merged, and with which.

    Args:
        order: int64: requests, by their place in `start`.
        group: int64, one each; equal neighbours are merged together.
        taken_out: bool, one each: what it names is unmarked instead.
    """

    order: Times
    group: Times
    taken_out: Flags

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        if not len(self.order) == len(self.group) == len(self.taken_out):
            raise ValueError("order, group and taken_out must have one element for each request")


def gather(
    content: tuple[Bytes, Words, Bytes],
    wanted: Wanted,
    regions: Sequence[tuple[int, int, int]],
    memory_pages: int,
) -> Gathered:
    """Decode requests, mark their pages in a bitmap, and list each group's runs.

    Args:
        content: As `replay.native.translate` takes it: wire, start, form. No range words.
        wanted: Which requests, in which order.
        regions: (gpa, length_bytes, offset_bytes) of each region of guest memory.
        memory_pages: Of the memory that offsets count in.

    Raises:
        NativeError: A form that cannot be gathered, or regions beyond the memory.
    """
    ffi, lib = load()
    wire, start, form = content
    check_starts(wire, start, len(form))
    order = wanted.order
    if len(order) and not 0 <= order.min() <= order.max() < len(form):
        raise ValueError("order must name requests")
    if not np.isin(form[order], list(SMALLEST_BYTES)).all():
        raise ValueError("only PFN arrays and scatterlists can be gathered")
    _held, table = map_struct(regions)
    capacity = _most_runs(start, form, order)
    first_page, pages = (np.empty(capacity, np.uint64) for _ in range(2))
    ended = np.empty(len(order), np.int64)
    room = [array(ffi, first_page, np.uint64), array(ffi, pages, np.uint64)]
    out = ffi.new("struct aero_gathering *")
    sent = [array(ffi, wire, np.uint8), array(ffi, start, np.uint64), array(ffi, form, np.uint8)]
    columns = [
        array(ffi, order, np.int64),
        array(ffi, wanted.group, np.int64),
        array(ffi, wanted.taken_out.view(np.uint8), np.uint8),
    ]
    error = lib.aero_gather(
        ffi.new("struct aero_content *", [*sent, len(form)]),
        ffi.new("struct aero_wanted *", [*columns, len(order)]),
        table,
        memory_pages,
        ffi.new("struct aero_runs *", [*room, array(ffi, ended, np.int64), capacity]),
        out,
    )
    check(error, "cannot gather the pages of requests")
    runs = slice(0, out.runs)
    return Gathered(
        first_page[runs], pages[runs], ended, wanted.group, out.rejected, out.wall_ns, out.cpu_ns
    )


def _most_runs(start: Words, form: Bytes, order: Times) -> int:
    """So many runs there can be at most."""
    size = np.diff(start)[order]
    least = np.full(max(Wire) + 1, min(SMALLEST_BYTES.values()))
    for code, size_bytes in SMALLEST_BYTES.items():
        least[code] = size_bytes
    return int((size // least[form[order]].astype(np.uint64)).sum())
