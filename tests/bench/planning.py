"""CPU time of planning 2 M pages: each strategy alone, and all of them in `what_if`.

    .venv/bin/python tests/bench/planning.py [PAGES]

Each plan is made of fresh requests, so nothing is shared between strategies; `what_if` shares. The
least of three runs counts. Orders, from the easiest to one that no guest has:

    falling     one run downwards, as an idle Linux guest gives it
    blocks      runs of 16 pages, shuffled, as a fragmented one does
    returning   blocks, and every fourth request takes the pages of an earlier one back
    single      every page by itself in random order
"""

import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from replay.plan import Context
from replay.requests import Requests
from replay.strategies import STRATEGIES
from replay.strategies.base import Strategy
from replay.whatif import Window, what_if
from tracer.trace.manifest import Region
from tracer.trace.runs import encode_runs
from tracer.trace.schema import Queue

PFNS = 256
RUNS = 3
WINDOWS = [Window(hold_bytes=size << 20) for size in (1, 16, 256)]
Pfns = np.ndarray


def falling(pages: int) -> Pfns:
    return np.arange(pages)[::-1].copy()


def blocks(pages: int) -> Pfns:
    order = np.random.default_rng(3).permutation(pages // 16)
    return (order[:, np.newaxis] * 16 + np.arange(16)[::-1]).reshape(-1)


def single(pages: int) -> Pfns:
    return np.random.default_rng(7).permutation(pages)


def requests_of(pfns: Pfns, returning: bool = False) -> Requests:
    """Requests of 256 PFNs; where pages return, every fourth repeats the request two before it."""
    pfns = pfns[: len(pfns) // PFNS * PFNS].reshape(-1, PFNS)
    queue = np.full(len(pfns), Queue.INFLATE, np.uint8)
    if returning:
        back = np.arange(3, len(pfns), 4)
        pfns[back] = pfns[back - 2]
        queue[back] = Queue.DEFLATE
    offsets = np.arange(len(pfns) + 1) * PFNS
    run_offsets, pfn, length = encode_runs(pfns.reshape(-1), offsets)
    time_ns = np.arange(len(pfns)) * 400_000  # 256 pages each 0.4 ms, as in the seed
    return Requests(queue, time_ns, run_offsets, pfn.astype(np.uint64), length.astype(np.int32))


def least_ms(prepare: Callable[[], Requests], work: Callable[[Requests], object]) -> float:
    found = []
    for _ in range(RUNS):
        requests = prepare()
        begin = time.process_time()
        work(requests)
        found.append(time.process_time() - begin)
    return min(found) * 1e3


def plan_of(strategy: Strategy, where: Context, requests: Requests) -> object:
    return strategy.plan(requests, where)


def count(where: Context, windows: list[Window], requests: Requests) -> object:
    return what_if(requests, where, None, windows)


def main(pages: int) -> None:
    region = Region("ram", 0, None, pages << 12, "anon", 4096)
    anon, memfd = Context((region,)), Context((region,), backing="memfd")
    orders = {
        "falling": lambda: requests_of(falling(pages)),
        "blocks": lambda: requests_of(blocks(pages)),
        "returning": lambda: requests_of(blocks(pages), returning=True),
        "single": lambda: requests_of(single(pages)),
    }
    print(f"{pages:,} pages, CPU ms".ljust(24), *(name.rjust(10) for name in orders))
    for name, strategy in STRATEGIES.items():
        where = anon if strategy.refusal(anon) is None else memfd
        times = (least_ms(order, partial(plan_of, strategy, where)) for order in orders.values())
        print(name.ljust(24), *(f"{each:10.1f}" for each in times))
    for label, windows in (("what_if", []), ("what_if, windows", WINDOWS)):
        times = (least_ms(order, partial(count, anon, windows)) for order in orders.values())
        print(label.ljust(24), *(f"{each:10.1f}" for each in times))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000)
