"""The fidelity table on small traces: every cause is there, sums are sums, gaps are told."""

import json

import pytest

from aerostat.cli import main
from replay.faithful import interrupt_ns, measure_fidelity
from replay.lifelike import STEPS, Paced
from tests.memory.conftest import DISCARD_NS, INFLATED_PAGES, MakeTrace
from tests.unit.test_cli_traces import documented_keys, keys_of


def test_every_cause_is_counted(make_trace: MakeTrace) -> None:
    found = measure_fidelity(make_trace(), runs=2)
    assert found.exact is True
    assert [queue.queue for queue in found.queues] == ["inflate", "deflate"]
    inflate, deflate = found.queues
    assert inflate.recorded_ns == INFLATED_PAGES * DISCARD_NS
    assert inflate.written_share in (0.0, 1.0)  # one recorded time, so all or none
    assert deflate.written_share is None
    for queue in found.queues:
        assert set(queue.steps_ns) == {step.name for step in STEPS}
        assert all(len(times) == 2 and min(times) > 0 for times in queue.steps_ns.values())
        parts_ns = queue.interrupts_ns + (queue.calls_ns or 0) + queue.lost_cpu_ns
        middle_ns = sum(queue.steps_ns["cold"]) / 2
        assert queue.counted_ns == pytest.approx(middle_ns + parts_ns, abs=2)
        assert queue.unexplained_ns == queue.recorded_ns - queue.counted_ns
    assert found.interrupt_ns is not None


def test_calls_of_another_vmm_are_not_compared(make_trace: MakeTrace) -> None:
    found = measure_fidelity(make_trace(extra_calls=1), runs=1)
    assert found.exact is False
    assert found.queues == ()
    assert found.ratio_plain is None
    assert "does not hold the calls" in found.note


def test_the_command_draws_and_writes_all_traces(make_trace: MakeTrace, capsys) -> None:
    paths = [str(make_trace("one")), str(make_trace("two", extra_calls=1))]
    assert main(["replay", "--fidelity", *paths, "--runs", "1"]) == 0
    out = capsys.readouterr().out
    assert "one.balloon" in out
    assert "mmu notifiers: not observed" in out
    assert main(["replay", "--fidelity", *paths, "--runs", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "aerostat-fidelity"
    assert keys_of(document) <= documented_keys("replay")
    assert [trace["name"] for trace in document["traces"]] == ["one.balloon", "two.balloon"]


def test_a_lossy_trace_is_set_beside_its_replay_where_the_user_insists(
    make_trace: MakeTrace, capsys
) -> None:
    arguments = ["replay", "--fidelity", str(make_trace("lossy", lost=3)), "--runs", "1"]
    assert main([*arguments, "--allow-loss", "--json"]) == 0
    captured = capsys.readouterr()
    (trace,) = json.loads(captured.out)["traces"]
    assert trace["missing"] == "misses 3 requests of the host"
    assert len(trace["queues"]) == 2
    assert "misses 3 requests of the host; what was replayed is not all" in captured.err
    assert main([*arguments, "--allow-loss"]) == 0
    assert "Note: lossy.balloon misses 3 requests" in capsys.readouterr().out


def test_several_traces_are_not_replayed_as_one(make_trace: MakeTrace, capsys) -> None:
    assert main(["replay", str(make_trace("one")), str(make_trace("two"))]) == 2
    assert "--fidelity" in capsys.readouterr().err


def paced(discard_ns: int, interrupts: int | None) -> Paced:
    return Paced({0: discard_ns}, interrupts, 0)


def test_an_interrupt_costs_what_those_counted_added() -> None:
    still = [paced(1_000_000, 5), paced(1_000_000, 5), paced(1_000_000, 5)]
    running = [paced(3_000_000, 205)] * 3
    assert interrupt_ns(still, running, 1000) == 10_000
    unseen = [paced(3_000_000, None)]
    assert interrupt_ns([paced(1_000_000, None)], unseen, 1000) == 2000
    assert interrupt_ns(still, [paced(3_000_000, 7)], 1000) == 0
