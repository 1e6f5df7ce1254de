"""The runs that a trace stores for a request's pages: PFN arrays -> (pfn, signed pages), in order.

A run whose PFNs rise by one has positive pages, one whose PFNs fall by one has negative pages and
begins at its highest PFN. Nothing is sorted or merged beyond that, so the PFN array comes back
exactly (`replay.ranges.pfns_from_runs`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


def encode_runs(pfns: npt.NDArray[np.integer], offsets: Int64s) -> tuple[Int64s, Int64s, Int64s]:
    """Find the runs of consecutive PFNs within each request.

    Args:
        pfns: PFNs of all requests, one after the other, in wire order.
        offsets: int64[n + 1]; request i holds `pfns[offsets[i]:offsets[i + 1]]`.

    Returns:
        run_offsets int64[n + 1], run_pfn int64[m] (first PFN as sent) and run_pages int64[m]
        (length, negative where the PFNs fall).
    """
    flat = np.asarray(pfns).astype(np.int64)
    if len(flat) == 0:
        return np.zeros(len(offsets), np.int64), flat, flat.copy()
    step = np.diff(flat)
    step[np.abs(step) != 1] = 0
    inner = offsets[1:-1]
    step[inner[(inner > 0) & (inner < len(flat))] - 1] = 0
    # A PFN begins a run where it does not follow its predecessor, or where the direction turns.
    begins = np.ones(len(flat), bool)
    turned = np.zeros(len(step), bool)
    turned[1:] = (step[:-1] != 0) & (step[1:] != step[:-1])
    begins[1:] = (step == 0) | turned
    starts = np.flatnonzero(begins)
    lengths = np.diff(np.append(starts, len(flat)))
    falling = np.zeros(len(starts), bool)
    longer = lengths > 1
    falling[longer] = step[starts[longer]] < 0
    run_offsets = np.searchsorted(starts, offsets).astype(np.int64)
    return run_offsets, flat[starts], np.where(falling, -lengths, lengths)
