"""A device that carries out each request before it answers, on real memory, checked afterwards."""

import numpy as np
import pytest

from replay.memory import GuestMemory, operations_of
from replay.plan import Context
from replay.ranges import Runs, empty
from replay.residency import Residency
from replay.sending import operation_ends, sending
from replay.serving import serve
from replay.strategies import load_strategy
from replay.stretch import Order, stretch
from tracer.trace.manifest import Region

PAGES, MEMORY_PAGES = 700, 1024
CONTEXT = Context((Region("ram", 0, None, MEMORY_PAGES << 12, "anon", 4096),))
ALL = Residency(Runs(np.array([0]), np.array([MEMORY_PAGES])), empty(), "all")


@pytest.mark.parametrize("strategy", ["qemu", "range", "scatter"])
def test_what_is_sent_is_gone_when_all_is_answered(strategy: str) -> None:
    """Pages in descending order with holes, so that protocols differ in requests and operations."""
    page = np.arange(PAGES, 0, -1) + np.arange(PAGES, 0, -1) // 7
    request = np.arange(PAGES) // 256
    order = Order(page, request, np.arange(request[-1] + 1))
    requests = stretch(order, PAGES, MEMORY_PAGES).requests
    plan = load_strategy(strategy).plan(requests, CONTEXT)
    sent = sending(requests, plan)
    ends = operation_ends(plan, sent, CONTEXT)
    with GuestMemory(MEMORY_PAGES << 12, "anon", seed=3, thp="never") as memory:
        memory.restore(ALL)
        found = serve(memory, sent, operations_of(plan), ends, [(0, MEMORY_PAGES << 12, 0)])
        assert memory.resident_pages() == MEMORY_PAGES - PAGES
        assert memory.verify().findings.wrong == 0
    assert found.served is not None
    assert found.served.translation.pages == PAGES
    assert (found.served.translation.rejected, found.served.outcome.failures) == (0, 0)
    assert found.wall_ns >= found.served.translate_ns + found.served.discard_ns
