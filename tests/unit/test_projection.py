"""Stage b at the trace's own pace: what it is multiplied by."""

from dataclasses import replace

from replay.assemble import strategy_results
from replay.job import Done
from replay.plan import Context
from replay.prepare import plan_all
from replay.requests import from_pfns
from replay.results import RingCounts
from tests.unit.replay_results import make_run
from tracer.trace.manifest import Region
from tracer.trace.progress import silent
from tracer.trace.schema import Queue

CONTEXT = Context((Region("ram", 0, None, 64 << 12, "anon", 4096),))
REQUESTS = from_pfns(
    [(Queue.INFLATE, [9, 8]), (Queue.REPORTING, [range(12, 16)]), (Queue.DEFLATE, [9, 8])]
)


def test_reports_are_not_projected_at_the_balloons_pace() -> None:
    planned, _ = plan_all(("nop",), REQUESTS, CONTEXT, silent)
    # Kicks are left to chance, and not what is counted.
    run = replace(make_run(100), ring=RingCounts(1, 3, 3, 64))
    made = [(planned[0], [Done(run, 4, 0)], [])]
    assert strategy_results(made, 0, 1000.0)[0].projected_send_ns == 2000
    assert strategy_results(made, 0)[0].projected_send_ns is None
