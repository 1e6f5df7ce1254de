"""Plans of small requests as lists that a test can hold against others."""

from replay.backings import Advice
from replay.check import check_plan
from replay.plan import Context, Plan
from replay.requests import Requests, from_pfns
from replay.strategies import load_strategy
from tracer.trace.manifest import Region
from tracer.trace.schema import PAGE_BYTES, Queue

IN, OUT, REPORT = Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING
EXAMPLE = from_pfns([(IN, [9, 8, 3, 7]), (IN, [2, 4]), (REPORT, [12, 13, 14, 15]), (OUT, [4, 3])])


def context(
    *places: tuple[int, int], host_page_bytes: int = PAGE_BYTES, backing: str = "anon"
) -> Context:
    regions = tuple(
        Region("ram", pfn * PAGE_BYTES, None, pages * PAGE_BYTES, backing, PAGE_BYTES)
        for pfn, pages in places or ((0, 16),)
    )
    return Context(regions, host_page_bytes, backing)


def listed(plan: Plan) -> list[tuple[str, int, int, int]]:
    """Operations as (advice, page, pages, request)."""
    columns = (plan.offset_bytes // 4096, plan.length_bytes // 4096, plan.request)
    rows = zip(plan.advice.tolist(), *(column.tolist() for column in columns), strict=True)
    return [(Advice(advice).name, page, pages, request) for advice, page, pages, request in rows]


def where_it_works(name: str) -> Context:
    """Anonymous memory, or a memfd where that cannot work."""
    strategy = load_strategy(name)
    return context() if strategy.refusal(context()) is None else context(backing="memfd")


def planned(name: str, requests: Requests, where: Context | None = None) -> list:
    where = where or where_it_works(name)
    plan = load_strategy(name).plan(requests, where)
    check_plan(requests, plan, where)
    return listed(plan)
