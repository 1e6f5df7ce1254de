"""QEMU's rule for host pages larger than a balloon page: when is one wholly ballooned?"""

from __future__ import annotations

import numpy as np

from replay.ranges import Bools, Int64s


def completed(page: Int64s, request: Int64s, unit_pages: int) -> Bools:
    """Mark the PFNs that complete a host page.

    The device remembers one host page at a time, in a bitmap of its balloon pages. A PFN of
    another host page drops the bitmap, and so does the end of the request; the PFN that fills it
    lets the host page go. PartiallyBalloonedPage in hw/virtio/virtio-balloon.c, local to one
    request since QEMU 4.1 (a8cd64d488).

    Args:
        page: int64[n], pages of the replayed memory in wire order.
        request: int64[n], ascending, the request of each.
        unit_pages: Balloon pages in a host page.

    Returns:
        bool[n]: true where this page fills its host page.
    """
    if unit_pages == 1 or len(page) == 0:
        return np.ones(len(page), bool)
    host = page // unit_pages
    first = np.flatnonzero((host[1:] != host[:-1]) | (request[1:] != request[:-1])) + 1
    begin = np.concatenate(([0], first))
    length = np.diff(np.concatenate((begin, [len(page)])))
    fills = np.zeros(len(page), bool)
    # As many PFNs as the host page has pages: they fill it with the last one, if none repeats.
    exact = begin[length == unit_pages]
    members = np.sort(page[exact[:, np.newaxis] + np.arange(unit_pages)], axis=1)
    fills[exact + unit_pages - 1] = (np.diff(members, axis=1) > 0).all(axis=1)
    longer = length > unit_pages
    for start, count in zip(begin[longer].tolist(), length[longer].tolist(), strict=True):
        _fill_one_by_one(page[start : start + count], unit_pages, fills[start : start + count])
    return fills


def _fill_one_by_one(page: Int64s, unit_pages: int, fills: Bools) -> None:
    """Mark completions within one host page, where pages repeat."""
    seen: set[int] = set()
    for index, value in enumerate(page.tolist()):
        seen.add(value)
        if len(seen) == unit_pages:
            fills[index] = True
            seen.clear()
