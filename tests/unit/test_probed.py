"""What a recorder saw of a replay, beside what the replay did; and the option that asks for it."""

import numpy as np
import pyarrow as pa
import pytest

from aerostat.cli import main
from aerostat.fidelity_tables import draw_fidelity
from replay.alike import probed_ratios
from replay.causes import ProbedQueue, ProbedTrace, QueueFidelity, TraceFidelity
from replay.lifelike import STEPS
from replay.native.types import Operations
from replay.probed import ProbeUse, lost_cpu_ns
from replay.recorded import LOST_CPU_NS, replayed_calls
from replay.summary import Spread
from tests.unit.capture_bundle import write_host
from tests.unit.test_recorded import calls
from tracer.trace.errors import ExitCode

PAGE = 4096
COLUMNS = ("gpa", "length_bytes", "step", "count", "total_ns", "worst_ns")


def recorded(*rows: tuple[int | None, int, int, int, int, int]) -> pa.Table:
    return pa.table(dict(zip(COLUMNS, zip(*rows, strict=True), strict=True)))


def operations(*places: tuple[int, int]) -> Operations:
    """Calls as (page, pages)."""
    page, pages = np.array(places, np.uint64).T * PAGE
    return Operations(np.zeros(len(page), np.uint8), page, pages, np.arange(len(page)))


DID = operations((5, 1), (6, 1), (7, 1), (3, 1), (2, 1), (9, 4))
RISING = (5 * PAGE, PAGE, 1, 3, 3000, 1500)
FALLING = (3 * PAGE, PAGE, -1, 2, 500, 300)
SINGLE = (9 * PAGE, 4 * PAGE, 0, 1, 900, 900)
ELSEWHERE = (None, PAGE, 0, 1, 77, 77)


def test_merged_calls_lie_beside_the_operations_that_they_are() -> None:
    found = replayed_calls(recorded(ELSEWHERE, RISING, FALLING, ELSEWHERE, SINGLE), DID)
    assert found is not None
    assert found.mean_ns.tolist() == [1000, 1000, 1000, 250, 250, 900]
    assert found.row.tolist() == [0, 0, 0, 1, 1, 2]
    assert found.worst_ns.tolist() == [1500, 300, 900]


@pytest.mark.parametrize(
    "rows",
    [
        (RISING, FALLING),
        (RISING, FALLING, SINGLE, SINGLE),
        (FALLING, RISING, SINGLE),
        (RISING, FALLING, (9 * PAGE, 3 * PAGE, 0, 1, 900, 900)),
        (RISING, (3 * PAGE, PAGE, 1, 2, 500, 300), SINGLE),
        ((6 * PAGE, *RISING[1:]), FALLING, SINGLE),
    ],
    ids=["one lacks", "one too many", "order", "length", "direction", "place"],
)
def test_anything_else_is_not_what_it_did(rows) -> None:
    assert replayed_calls(recorded(*rows), DID) is None


def test_a_call_that_waited_for_something_else_is_told_and_a_long_one_is_not() -> None:
    everything, nothing = np.ones(103, bool), np.zeros(103, bool)
    rows = [(1, 1000.0, 1000.0)] * 99 + [(1, 3e6, 3e6), (3, 20_000.0, 58_000.0)]
    assert lost_cpu_ns([calls(*rows)], everything, everything) == [3e6 + 58_000 - 2000]
    assert lost_cpu_ns([calls(*rows)], nothing, nothing) == [0]
    long_ns = 1.5 * LOST_CPU_NS
    long = calls(*[(1, long_ns, long_ns)] * 103)
    assert lost_cpu_ns([long], everything, everything) == [0]


def test_calls_that_compare_with_no_other_are_held_against_the_quickest_run() -> None:
    everything, nothing = np.ones(3, bool), np.zeros(3, bool)
    quick = calls((1, 70_000.0, 70_000.0), (1, 500.0, 500.0), (1, 9000.0, 9000.0))
    slow = calls((1, 100_000.0, 100_000.0), (1, 40_000.0, 40_000.0), (1, 8e6, 8e6))
    assert lost_cpu_ns([quick, slow], everything, nothing) == [0, 8e6 - 9000]
    assert lost_cpu_ns([slow], everything, nothing) == [0]


def queue(name: str, recorded_ns: int, runs: tuple[int, ...], lost: tuple[int, ...]):
    return QueueFidelity(
        queue=name,
        operations=10,
        recorded_ns=recorded_ns,
        written_share=None,
        heights=None,
        steps_ns={step.name: runs for step in STEPS},
        interrupts_ns=100,
        calls_ns=None,
        lost_cpu_ns=20,
        counted_ns=0,
        ratio_plain=0.0,
        ratio_counted=0.0,
        probed=ProbedQueue(runs, lost, 0, 0.0),
    )


QUEUES = (
    queue("inflate", 6000, (4000, 5000), (0, 500)),
    queue("deflate", 4000, (3000, 1000), (0, 0)),
)


def test_the_ratio_of_a_run_is_of_all_its_queues() -> None:
    assert probed_ratios(QUEUES) == [(7000 + 240) / 10_000, (5500 + 240) / 10_000]
    assert probed_ratios([queue("inflate", 0, (4000,), (0,))]) == []


def trace(probed: ProbedTrace | None) -> TraceFidelity:
    return TraceFidelity(
        "x.balloon", "kvm", 20, 20, True, 1.0, 1.0, QUEUES, 0.1, 0.8, probed, "", None
    )


def test_the_tables_say_with_which_probes_and_why_not_the_traces(capsys) -> None:
    uses = (
        ProbeUse("madvise-enter", "kprobe", "fentry", "fentry madvise: no trampolines"),
        ProbeUse("madvise-exit", "tracepoint", "tracepoint", ""),
        ProbeUse("fallocate-enter", "tracepoint", None, ""),
    )
    draw_fidelity([trace(ProbedTrace("calls", uses, 400.0, True, Spread(0.9, 0.85, 0.95)))])
    out = capsys.readouterr().out
    assert "0.900 [0.850, 0.950]" in out
    said = " ".join(out.split())
    assert "every call by itself, by tracepoint as it was then" in said
    assert "madvise-enter by kprobe, then by fentry (fentry madvise: no trampolines)" in said
    assert "fallocate-enter by tracepoint; by what then is not told" in said
    assert "not recorded on this machine" not in out
    assert "--probed" not in out


def test_without_it_the_output_says_how_to_get_it(capsys) -> None:
    draw_fidelity([trace(None)])
    out = capsys.readouterr().out
    assert "recorded alike" not in out
    assert "--probed records the replay as well, and needs root and BCC" in " ".join(out.split())


def test_it_goes_with_fidelity_alone(tmp_path, capsys) -> None:
    path = str(write_host(tmp_path / "x.balloon"))
    assert main(["replay", "--probed", path]) == ExitCode.USAGE
    assert "--probed goes with --fidelity" in capsys.readouterr().err
    assert main(["replay", "--seed-headline", "--probed", path]) == ExitCode.USAGE


def test_without_privileges_it_is_refused_before_anything_is_run(
    tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("tracer.engine.privilege.effective", frozenset)
    monkeypatch.setattr("tracer.engine.privilege.in_first_pid_namespace", lambda: True)
    monkeypatch.setattr("replay.faithful.measure_fidelity", lambda *_, **__: 1 / 0)
    path = str(write_host(tmp_path / "x.balloon"))
    assert main(["replay", "--fidelity", "--probed", path]) == ExitCode.MISSING_PRIVILEGE
    said = capsys.readouterr().err
    assert "cannot record the replay" in said
    assert "lacks CAP_PERFMON, CAP_BPF" in said
    assert "run with sudo" in said
