"""Typed face of tally.c: plans and requests, counted in one pass each."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from replay.native.binding import array, load
from replay.native.selecting import RequestColumns, queue_bits, requests_struct
from replay.native.types import Bytes, Words


class Steps(NamedTuple):
    """Steps from one PFN of a request to the next: all, those by one upwards and downwards."""

    all: int
    rising: int
    falling: int


class Tally(NamedTuple):
    """Operations of a plan.

    Args:
        operations: By advice code; those of which there are none are left out.
        pages: Pages that they lie on, by the same codes.
        powers: Operations by length: key k counts 2**k to 2**(k + 1) - 1 pages.
    """

    operations: dict[int, int]
    pages: dict[int, int]
    powers: dict[int, int]


def count_steps(requests: RequestColumns, queues: Collection[int]) -> Steps:
    """Count how PFNs follow each other within the requests of some queues."""
    ffi, lib = load()
    held, found = requests_struct(ffi, requests), ffi.new("struct aero_steps *")
    lib.aero_count_steps(held[0], queue_bits(queues), found)
    return Steps(found.all, found.rising, found.falling)


def tally(advice: Bytes, length_bytes: Words) -> Tally:
    """Count operations of whole pages by advice and by length."""
    ffi, lib = load()
    if len(advice) != len(length_bytes):
        raise ValueError("the columns of a plan differ in length")
    codes, lengths = np.ascontiguousarray(advice), np.ascontiguousarray(length_bytes)
    out = ffi.new("struct aero_tally *")
    lib.aero_tally(array(ffi, codes, np.uint8), array(ffi, lengths, np.uint64), len(codes), out)
    return Tally(
        {code: count for code, count in enumerate(out.operations) if count},
        {code: out.pages[code] for code, count in enumerate(out.operations) if count},
        {power: count for power, count in enumerate(out.powers) if count},
    )
