"""Which requests a strategy takes together: batches, budgets, episodes, phases.

Each function gives, for every request that it is about, the request with which the group's
operations run, and -1 for all others.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import pairwise

import numpy as np

from replay.ranges import Bools, Int64s
from replay.requests import NOT_OBSERVED_NS, Requests
from tracer.trace.schema import PAGE_BYTES, Queue

PAUSE_NS = 200_000_000
"""The driver that is out of pages sends what it has and sleeps 200 ms
(drivers/virtio/virtio_balloon.c, "Out of puff")."""
BALLOON = (Queue.INFLATE, Queue.DEFLATE)


def phase_last(requests: Requests) -> Int64s:
    """For each inflate request, the last inflate request before the next deflate request."""
    inflates = np.flatnonzero(requests.queue == Queue.INFLATE)
    last = np.full(len(requests), -1, np.int64)
    if len(inflates):
        number = np.cumsum(requests.queue == Queue.DEFLATE)[inflates]
        last[inflates] = inflates[np.searchsorted(number, number, side="right") - 1]
    return last


def episode_begins(requests: Requests, pause_ns: int) -> Bools:
    """Mark the inflate and deflate requests that begin an episode.

    An episode is a series of requests of one of these queues without one of the other and without
    a pause of `pause_ns` in between; other queues' requests neither begin nor end one.
    """
    balloon = np.flatnonzero(np.isin(requests.queue, BALLOON))
    queue, time_ns = requests.queue[balloon], requests.time_ns[balloon]
    seen = time_ns != NOT_OBSERVED_NS
    paused = (np.diff(time_ns) >= pause_ns) & seen[1:] & seen[:-1]
    begins = np.zeros(len(requests), bool)
    begins[balloon[:1]] = True
    begins[balloon[1:]] = (queue[1:] != queue[:-1]) | paused
    return begins


def episode_last(requests: Requests, pause_ns: int) -> Int64s:
    """For each inflate or deflate request, the last request of its episode."""
    balloon = np.flatnonzero(np.isin(requests.queue, BALLOON))
    begins = episode_begins(requests, pause_ns)[balloon]
    return _last_of_groups(balloon, begins, len(requests))


def batch_last(requests: Requests, pfns: int, pause_ns: int) -> Int64s:
    """For each inflate request, the last one of its batch.

    A batch is inflate requests of one episode with up to `pfns` PFNs in all; a request with more
    than that is a batch by itself.
    """
    inflates = np.flatnonzero(requests.queue == Queue.INFLATE)
    begins = episode_begins(requests, pause_ns)[inflates]
    reach = np.cumsum(requests.pages[inflates]).tolist()
    borders = [*np.flatnonzero(begins).tolist(), len(inflates)]
    for first, end in pairwise(borders):
        at = first
        while at < end:
            before = reach[at - 1] if at else 0
            at = max(at + 1, bisect_right(reach, before + pfns, at, end))
            if at < end:
                begins[at] = True
    return _last_of_groups(inflates, begins, len(requests))


def _last_of_groups(members: Int64s, begins: Bools, requests: int) -> Int64s:
    last = np.full(requests, -1, np.int64)
    if len(members):
        ends = np.append(begins[1:], True)
        last[members] = members[ends][np.cumsum(begins) - 1]
    return last


def held_until(requests: Requests, hold_bytes: int | None, hold_ns: int | None) -> Int64s:
    """For each request, the one with which what it gives ceases to be held back.

    A hold begins with the first inflate request after the one before. It ends with the request that
    brings the bytes inflated in it to `hold_bytes`; or with the last request, of any queue, that
    arrives before `hold_ns` have passed since it began, as a timer would end it; or with the trace.
    Requests whose time was not observed arrive with the one before. All requests within a hold, of
    any queue, have its end; those outside have -1.
    """
    count = len(requests)
    inflated = requests.pages * (requests.queue == Queue.INFLATE)
    reach = np.cumsum(inflated).tolist()
    time_ns = np.maximum.accumulate(requests.time_ns).tolist() if count else []
    inflates = np.flatnonzero(inflated).tolist()
    last = np.full(count, -1, np.int64)
    limit = None if hold_bytes is None else max(1, -(-hold_bytes // PAGE_BYTES))
    at = 0
    while at < len(inflates):
        first = inflates[at]
        end = count - 1
        if limit is not None:
            before = reach[first] - int(inflated[first])
            end = min(end, bisect_left(reach, before + limit, first))
        if hold_ns is not None:
            end = min(end, max(first, bisect_left(time_ns, time_ns[first] + hold_ns, first) - 1))
        last[first : end + 1] = end
        at = bisect_right(inflates, end, at)
    return last
