"""Units of several balloon pages, such as large host pages: when is one wholly in the balloon?"""

from __future__ import annotations

from typing import NamedTuple

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


class Changes(NamedTuple):
    """Pages that really changed hands, sorted by page and then request; `given` to the host."""

    page: Int64s
    request: Int64s
    given: Bools

    @property
    def last(self) -> Bools:
        """Whether no later change is of the same page."""
        found = np.ones(len(self.page), np.bool_)
        found[:-1] = self.page[1:] != self.page[:-1]
        return found


def wholly_given(
    given: tuple[Int64s, Int64s], taken: tuple[Int64s, Int64s], unit_pages: int
) -> tuple[Int64s, Int64s]:
    """Find with which requests units become wholly the host's.

    The device keeps one bit a balloon page for good, as cloud-hypervisor's does for one host page
    (virtio-devices/src/balloon.rs, PartiallyBalloonedPage) and unlike QEMU's, which forgets.

    Args:
        given: Pages that the host gets, and the request of each.
        taken: Pages that the guest gets back, and theirs. Within one request these come first.
        unit_pages: Balloon pages in a unit; a power of two.

    Returns:
        First page of each unit and the request, sorted by unit; a unit that was broken up and made
        whole again is found again.
    """
    return whole_units(changes(given, taken), unit_pages)


def changes(given: tuple[Int64s, Int64s], taken: tuple[Int64s, Int64s]) -> Changes:
    """Keep of all that is given and taken what changes a page's owner; args as above."""
    bits = max((int(r.max()).bit_length() for _, r in (given, taken) if len(r)), default=0)
    # (page, request, whether the host gets it) in one sortable number: below 2**56 in `Requests`.
    events = np.sort(
        np.concatenate(
            [(page << bits | by) << 1 | host for (page, by), host in ((given, 1), (taken, 0))]
        )
    )
    to_host = (events & 1).astype(np.bool_)
    page = events >> (bits + 1)
    before = np.zeros(len(events), np.bool_)
    before[1:] = to_host[:-1] & (page[1:] == page[:-1])
    changed = to_host != before
    request = (events[changed] >> 1) & ((1 << bits) - 1)
    return Changes(page[changed], request, to_host[changed])


def whole_units(found: Changes, unit_pages: int) -> tuple[Int64s, Int64s]:
    """Find the requests that make units whole, as `wholly_given` does, among changes."""
    if len(found.page) == 0:
        return found.page, found.request
    bits = int(found.request.max()).bit_length()
    events = np.sort(((found.page // unit_pages) << bits | found.request) << 1 | found.given)
    unit = events >> (bits + 1)
    step = (events & 1) * 2 - 1
    begins = np.ones(len(events), np.bool_)
    begins[1:] = unit[1:] != unit[:-1]
    running = np.cumsum(step)
    first = np.flatnonzero(begins)
    held = running - np.repeat(running[first] - step[first], np.diff(np.append(first, len(step))))
    whole = (held == unit_pages) & (step > 0)
    return unit[whole] * unit_pages, (events[whole] >> 1) & ((1 << bits) - 1)
