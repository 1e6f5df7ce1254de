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
    enough = length >= unit_pages
    rises = np.concatenate(([False], page[1:] == page[:-1] + 1))
    falls = np.concatenate(([False], page[1:] == page[:-1] - 1))
    for start, count in zip(begin[enough].tolist(), length[enough].tolist(), strict=True):
        stop = start + count
        if count == unit_pages and (rises[start + 1 : stop].all() or falls[start + 1 : stop].all()):
            fills[stop - 1] = True
        else:
            _fill_one_by_one(page[start:stop], unit_pages, fills[start:stop])
    return fills


def _fill_one_by_one(page: Int64s, unit_pages: int, fills: Bools) -> None:
    """Mark completions within one host page, where pages repeat or come in any order."""
    seen: set[int] = set()
    for index, value in enumerate(page.tolist()):
        seen.add(value)
        if len(seen) == unit_pages:
            fills[index] = True
            seen.clear()
