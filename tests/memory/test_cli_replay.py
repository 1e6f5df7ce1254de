"""whatif, replay and compare from the command line, on a small trace that is really replayed."""

import json
from pathlib import Path

import pytest

from aerostat.cli import main
from replay.rounds import run_all
from tests.memory.conftest import MakeTrace
from tests.unit.test_cli_traces import documented_keys, keys_of, run_json
from tracer.trace.errors import ExitCode

STRATEGIES = ("-s", "qemu", "-s", "range")
QUICK = ("--runs", "1", "--warmup", "0", "--watched-runs", "0", "--no-predict")


@pytest.fixture
def results(make_trace: MakeTrace, tmp_path: Path, capsys) -> Path:
    path = tmp_path / "results.json"
    assert main(["replay", str(make_trace()), *STRATEGIES, "--runs", "4", "-o", str(path)]) == 0
    out = capsys.readouterr().out
    assert "nop" in out
    assert "Fidelity of qemu" in out
    return path


def test_every_key_of_whatif_is_documented(make_trace: MakeTrace, capsys) -> None:
    code, document = run_json(capsys, "whatif", str(make_trace()), "--json")
    assert code == 0
    assert keys_of(document) <= documented_keys("whatif")
    qemu = next(item for item in document["strategies"] if item["name"] == "qemu")
    assert qemu["to_qemu"] == 1.0
    assert main(["whatif", str(make_trace("again")), "-s", "range"]) == 0
    assert "range" in capsys.readouterr().out


def test_every_key_of_replay_is_documented(results: Path) -> None:
    document = json.loads(results.read_text())
    assert keys_of(document) <= documented_keys("replay")
    assert [item["name"] for item in document["strategies"]] == ["nop", "qemu", "range"]


def test_replay_keeps_what_is_there(results: Path, make_trace: MakeTrace, capsys) -> None:
    before = results.read_bytes()
    code = main(["replay", str(make_trace("other")), "-o", str(results)])
    assert code == ExitCode.FAILURE
    assert results.read_bytes() == before
    assert "--force" in capsys.readouterr().err


def test_results_that_cannot_be_saved_are_shown(
    make_trace: MakeTrace, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "late.json"

    def overtaken(*work):
        done = run_all(*work)
        path.write_text("another's")
        return done

    monkeypatch.setattr("replay.schedule.run_all", overtaken)
    trace = str(make_trace())
    assert main(["replay", trace, "-s", "range", *QUICK, "-o", str(path), "--json"]) == 1
    out, err = capsys.readouterr()
    assert [each["name"] for each in json.loads(out)["strategies"]] == ["nop", "range"]
    assert f"cannot write results to {path}" in err
    assert path.read_text() == "another's"


def test_a_lossy_trace_is_not_replayed_unasked(make_trace: MakeTrace, capsys) -> None:
    path = make_trace("lossy", lost=3)
    assert main(["replay", str(path)]) == ExitCode.CAPTURE_INCOMPLETE
    assert "--allow-loss" in capsys.readouterr().err


def scaled(path: Path, factor: float, target: Path) -> Path:
    """Write the same results with every discard taking `factor` times as long."""
    document = json.loads(path.read_text())
    for strategy in document["strategies"]:
        for index, run in enumerate(strategy["runs"]):
            run["send_ns"] = run["translate_ns"] = 1000
            run["discard_ns"] = round(factor * (10_000_000 + 1000 * index))
    target.write_text(json.dumps(document))
    return target


@pytest.mark.parametrize(
    ("factor", "code", "verdict"),
    [(1.0, ExitCode.OK, "same"), (1.5, ExitCode.REGRESSION, "worse"), (0.5, ExitCode.OK, "better")],
)
def test_compare_exits_with_its_verdict(
    results: Path, tmp_path: Path, capsys, factor: float, code: int, verdict: str
) -> None:
    base = scaled(results, 1.0, tmp_path / "base.json")
    candidate = scaled(results, factor, tmp_path / "candidate.json")
    found, document = run_json(capsys, "compare", str(base), str(candidate), "--json")
    assert (found, document["verdict"]) == (code, verdict)
    assert keys_of(document) <= documented_keys("compare")
    assert main(["compare", str(base), str(candidate)]) == code
    assert f"Verdict: {verdict}" in capsys.readouterr().out


def test_too_few_runs_are_inconclusive(results: Path, tmp_path: Path) -> None:
    document = json.loads(results.read_text())
    for strategy in document["strategies"]:
        del strategy["runs"][2:]
    few = tmp_path / "few.json"
    few.write_text(json.dumps(document))
    assert main(["compare", str(few), str(few)]) == ExitCode.INCONCLUSIVE


def test_results_of_unlike_machines_are_refused(results: Path, tmp_path: Path, capsys) -> None:
    document = json.loads(results.read_text())
    document["environment"]["cpu_model"] = "another"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document))
    assert main(["compare", str(results), str(other)]) == ExitCode.FAILURE
    assert "--unlike-environments" in capsys.readouterr().err
    assert main(["compare", str(results), str(other), "--unlike-environments"]) != ExitCode.FAILURE
