"""Typed face of tally.c: lengths of operations and steps in requests, counted in one pass each."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from replay.native.binding import array, load
from replay.native.selecting import RequestColumns, queue_bits, requests_struct
from replay.native.types import Times


class Steps(NamedTuple):
    """Steps from one PFN of a request to the next: all, those by one upwards and downwards."""

    all: int
    rising: int
    falling: int


def count_steps(requests: RequestColumns, queues: Collection[int]) -> Steps:
    """Count how PFNs follow each other within the requests of some queues."""
    ffi, lib = load()
    held, found = requests_struct(ffi, requests), ffi.new("struct aero_steps *")
    lib.aero_count_steps(held[0], queue_bits(queues), found)
    return Steps(found.all, found.rising, found.falling)


def tally(lengths: Times) -> tuple[int, dict[int, int]]:
    """Sum lengths and count them by power of two.

    Args:
        lengths: int64, each 0 or more.

    Returns:
        The sum; and how many there are of 2**k to 2**(k + 1) - 1, by k.
    """
    ffi, lib = load()
    times = 1
    if len(lengths) and lengths.strides == (0,):  # one number that stands for all
        times, lengths = len(lengths), lengths[:1]
    held = np.ascontiguousarray(lengths)
    out = ffi.new("struct aero_tally *")
    lib.aero_tally(array(ffi, held, np.int64), len(held), out)
    powers = {power: count * times for power, count in enumerate(out.powers) if count}
    return out.total * times, powers
