"""Two recordings side by side."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from aerostat.cli import main
from replay.compare import Comparison, Policy, UnlikeError
from replay.compare_traces import compare_traces
from replay.stats import Verdict
from tracer.trace.errors import CaptureIncompleteError, ExitCode
from tracer.trace.manifest import Manifest, SideInfo, VmInfo
from tracer.trace.reader import Trace, open_trace
from tracer.trace.schema import REQUESTS, Queue, Side, Wire
from tracer.trace.writer import TraceWriter

PAGES = 256


def record(
    path: Path,
    *,
    discard_ns: float,
    seed: int,
    calls: int = PAGES,
    runs: int = 1,
    queue: Queue = Queue.INFLATE,
    lost: int = 0,
    requests: int = 200,
) -> Trace:
    """Requests on the host, each of PAGES pages in some runs of equal length."""
    length = PAGES // runs
    generator = np.random.default_rng(seed)
    rows = []
    for seq in range(requests):
        spent = int(PAGES * discard_ns * generator.lognormal(0, 0.01))
        rows.append(
            {
                "side": int(Side.HOST),
                "seq": seq,
                "queue": int(queue),
                "wire": int(Wire.PFNS),
                "pages": PAGES,
                "runs": [
                    {"pfn": 2 * (seq * PAGES + i * length), "pages": length} for i in range(runs)
                ],
                "pop_ns": seq * 10**9,
                "push_ns": seq * 10**9 + 2 * spent,
                "discard_ns": spent,
                "discard_calls": calls,
            }
        )
    with TraceWriter(path, Side.HOST) as writer:
        writer.append("requests", pa.RecordBatch.from_pylist(rows, REQUESTS))
        writer.loss("requests", lost, 0, 10)
        writer.close(Manifest(sides={"host": SideInfo(page_size_bytes=4096, begin_ns=0)}))
    return open_trace(path)


def record_guest(path: Path, *, wait_ns: int) -> Trace:
    """200 requests of one page in the guest, each of which waits about so long."""
    times = np.random.default_rng(wait_ns).normal(wait_ns, wait_ns / 100, 200).astype(int).tolist()
    rows = [
        {
            "side": int(Side.GUEST),
            "seq": seq,
            "queue": int(Queue.INFLATE),
            "wire": int(Wire.PFNS),
            "pages": 1,
            "runs": [{"pfn": 2 * seq, "pages": 1}],
            "send_ns": seq * 10**9,
            "wake_ns": seq * 10**9 + took_ns,
        }
        for seq, took_ns in enumerate(times)
    ]
    with TraceWriter(path, Side.GUEST) as writer:
        writer.append("requests", pa.RecordBatch.from_pylist(rows, REQUESTS))
        writer.close(Manifest(sides={"guest": SideInfo(page_size_bytes=4096, begin_ns=0)}))
    return open_trace(path)


def record_on(
    path: Path, *, cpus: int, accel: str, detail: str, cpu_model: str | None = None
) -> Trace:
    """One empty recording that says of what machine it is."""
    side = SideInfo(page_size_bytes=4096, begin_ns=0, cpus=cpus, cpu_model=cpu_model, detail=detail)
    with TraceWriter(path, Side.HOST) as writer:
        writer.close(Manifest(sides={"host": side}, vm=VmInfo(accel=accel)))
    return open_trace(path)


def test_what_the_guest_waits_for_is_no_stage_b(tmp_path: Path) -> None:
    base, other = (record_guest(tmp_path / f"{n}.balloon", wait_ns=n) for n in (10_000, 20_000))
    found = {line.metric: line for line in compare_traces(base, other).lines}
    assert found["round_trip_ns_per_page"].difference.verdict is Verdict.WORSE
    assert found["round_trip_ns_per_page"].decisive
    assert not any(metric.startswith("send") for metric in found)


def test_traces_of_unlike_machines_are_refused_unless_told(tmp_path: Path) -> None:
    base = record_on(tmp_path / "a.balloon", cpus=2, accel="tcg", detail="discards")
    other = record_on(tmp_path / "b.balloon", cpus=64, accel="kvm", detail="discards")
    with pytest.raises(UnlikeError, match=r"accelerator is 'tcg' .* 'kvm'.*host cpus is 2 .* 64"):
        compare_traces(base, other)
    told = compare_traces(base, other, Policy(unlike_environments=True)).warnings
    assert any("host cpus is 2 in the baseline" in warning for warning in told)


def test_cpus_of_one_count_and_two_kinds_are_unlike_machines(tmp_path: Path) -> None:
    """What did not tell its CPU, as traces of format 1.2 and before, is not held against them."""
    zen, other, silent = (
        record_on(tmp_path / f"{n}.balloon", cpus=2, accel="kvm", detail="calls", cpu_model=model)
        for n, model in enumerate(("EPYC 9R14", "Xeon 8488C", None))
    )
    with pytest.raises(UnlikeError, match=r"host cpu model is 'EPYC 9R14' .* 'Xeon 8488C'"):
        compare_traces(zen, other)
    (told,) = compare_traces(zen, other, Policy(unlike_environments=True)).warnings[:1]
    assert "host cpu model" in told
    for one, two in ((zen, zen), (zen, silent), (silent, zen), (silent, silent)):
        assert not any("cpu" in warning for warning in compare_traces(one, two).warnings)


def test_traces_of_unlike_detail_are_refused_unless_told(tmp_path: Path) -> None:
    base = record_on(tmp_path / "a.balloon", cpus=2, accel="kvm", detail="discards")
    other = record_on(tmp_path / "b.balloon", cpus=2, accel="kvm", detail="calls")
    with pytest.raises(UnlikeError, match="unlike detail"):
        compare_traces(base, other, Policy(unlike_environments=True))
    assert compare_traces(base, other, Policy(unlike_work=True)).warnings


def verdicts(comparison: Comparison) -> dict[str, Verdict]:
    assert {line.subject for line in comparison.lines} == {"inflate"}
    return {line.metric: line.difference.verdict for line in comparison.lines}


def test_two_recordings_of_the_same_are_the_same(tmp_path: Path) -> None:
    base = record(tmp_path / "a.balloon", discard_ns=1000, seed=1)
    other = record(tmp_path / "b.balloon", discard_ns=1000, seed=2)
    comparison = compare_traces(base, other)
    assert comparison.verdict is Verdict.SAME
    assert verdicts(comparison) == {
        "device_ns_per_page": Verdict.SAME,
        "discard_ns_per_page": Verdict.SAME,
        "requests": Verdict.SAME,
        "pages": Verdict.SAME,
        "discard_calls": Verdict.SAME,
    }
    (line,) = [one for one in comparison.lines if one.metric == "discard_ns_per_page"]
    assert line.difference.base == pytest.approx(1000, rel=0.02)


def test_a_slower_recording_is_worse(tmp_path: Path) -> None:
    base = record(tmp_path / "a.balloon", discard_ns=1000, seed=1)
    slow = record(tmp_path / "b.balloon", discard_ns=1100, seed=2)
    assert compare_traces(base, slow).verdict is Verdict.WORSE
    assert compare_traces(slow, base).verdict is Verdict.BETTER


def test_fewer_calls_are_better(tmp_path: Path) -> None:
    base = record(tmp_path / "a.balloon", discard_ns=1000, seed=1)
    bulk = record(tmp_path / "b.balloon", discard_ns=1000, seed=2, calls=3)
    comparison = compare_traces(base, bulk)
    assert verdicts(comparison)["discard_calls"] is Verdict.BETTER
    assert comparison.verdict is Verdict.BETTER


@pytest.mark.parametrize(
    ("calls", "runs", "verdict", "reason"),
    [
        (101, 1, Verdict.SAME, "within 3.0% of equality"),
        (110, 1, Verdict.WORSE, "+10.00% calls"),
        (90, 1, Verdict.BETTER, "-10.00% calls"),
        (110, 2, Verdict.INCONCLUSIVE, "came in 200 and 400 runs"),
        (210, 2, Verdict.WORSE, "+110.00% calls"),
        (60, 2, Verdict.BETTER, "-40.00% calls"),
    ],
)
def test_more_calls_count_beyond_what_the_guest_explains(
    tmp_path: Path, calls: int, runs: int, verdict: Verdict, reason: str
) -> None:
    base = record(tmp_path / "a.balloon", discard_ns=1000, seed=1, calls=100)
    other = record(tmp_path / "b.balloon", discard_ns=1000, seed=2, calls=calls, runs=runs)
    (line,) = [ln for ln in compare_traces(base, other).lines if ln.metric == "discard_calls"]
    assert line.decisive
    assert line.difference.verdict is verdict
    assert reason in line.difference.reason


def test_fewer_calls_for_fewer_pages_are_not_better(tmp_path: Path) -> None:
    base = record(tmp_path / "a.balloon", discard_ns=1000, seed=1)
    fewer = record(tmp_path / "b.balloon", discard_ns=1000, seed=2, calls=9, requests=100)
    (line,) = [ln for ln in compare_traces(base, fewer).lines if ln.metric == "discard_calls"]
    assert not line.decisive
    assert line.difference.verdict is Verdict.INCONCLUSIVE
    assert "not the same work" in line.difference.reason


def test_calls_for_reports_decide_nothing(tmp_path: Path) -> None:
    one, other = (
        record(tmp_path / f"{n}.balloon", discard_ns=1, seed=n, calls=n, queue=Queue.REPORTING)
        for n in (1, 9)
    )
    comparison = compare_traces(one, other)
    assert "discard_calls" in {line.metric for line in comparison.lines}
    assert not any(line.decisive for line in comparison.lines)


def test_a_verdict_on_two_recordings_says_that_each_is_one_session(tmp_path: Path) -> None:
    base = record(tmp_path / "a.balloon", discard_ns=1000, seed=1)
    slow = record(tmp_path / "b.balloon", discard_ns=1100, seed=2)
    assert compare_traces(base, base).warnings == ()
    (warning,) = compare_traces(base, slow).warnings
    assert "one recording" in warning


def test_both_sides_of_one_request_count_once() -> None:
    trace = open_trace(Path(__file__).parents[2] / "traces" / "plain.balloon")
    comparison = compare_traces(trace, trace)
    assert comparison.exit_code is not ExitCode.REGRESSION
    counts = {(ln.subject, ln.metric): ln.difference.base for ln in comparison.lines}
    assert counts["inflate", "pages"] == counts["inflate", "discard_calls"] == 393_216
    assert counts["inflate", "requests"] == 1536


def test_a_trace_that_misses_events_needs_a_word(tmp_path: Path) -> None:
    base = record(tmp_path / "a.balloon", discard_ns=1000, seed=1)
    lossy = record(tmp_path / "b.balloon", discard_ns=1000, seed=2, lost=4)
    with pytest.raises(CaptureIncompleteError, match=r"misses 4 requests of the host"):
        compare_traces(base, lossy)
    comparison = compare_traces(base, lossy, Policy(unlike_work=True))
    assert "misses 4 requests of the host" in comparison.warnings[0]


def test_nothing_to_compare_is_inconclusive(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "e.balloon", Side.HOST) as writer:
        writer.close(Manifest(sides={"host": SideInfo(page_size_bytes=4096, begin_ns=0)}))
    empty = open_trace(tmp_path / "e.balloon")
    assert compare_traces(empty, empty).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("discard_ns", "code", "verdict"),
    [
        (1000, ExitCode.OK, "same"),
        (900, ExitCode.OK, "better"),
        (1100, ExitCode.REGRESSION, "worse"),
    ],
)
def test_the_command_exits_with_the_verdict_on_two_traces(
    tmp_path: Path, capsys, discard_ns: float, code: ExitCode, verdict: str
) -> None:
    record(tmp_path / "a.balloon", discard_ns=1000, seed=1)
    record(tmp_path / "b.balloon", discard_ns=discard_ns, seed=2)
    paths = [str(tmp_path / name) for name in ("a.balloon", "b.balloon")]
    assert main(["compare", *paths]) == code
    assert f"Verdict: {verdict}" in capsys.readouterr().out
    assert main(["compare", *paths, "--json"]) == code
    assert json.loads(capsys.readouterr().out)["verdict"] == verdict
