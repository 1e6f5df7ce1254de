"""A trace that misses events says so in every verb: on stderr, in JSON, and by the exit code."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from aerostat.cli import main
from aerostat.judge import why_not_whole
from replay.faithful import measure_fidelity
from replay.results_file import save_results
from tests.unit.capture_bundle import HOST_ROWS, write_guest, write_host
from tests.unit.replay_results import make_results, make_strategy
from tests.unit.test_missing import calls_alone
from tracer.trace.errors import CaptureIncompleteError, ExitCode
from tracer.trace.manifest import Loss, Region
from tracer.trace.reader import open_trace

LOSS = Loss(side="host", stream="requests", count=1234, since_ns=500, until_ns=1500, cause="ring")
TOLD = "1,234 requests of the host (ring)"
REGION = Region("below-4g", 0, 0x7F0000000000, 2 << 30, "anon", 4096)


@pytest.fixture
def lossy(tmp_path: Path) -> Path:
    return write_host(tmp_path / "lossy.balloon", losses=[LOSS], regions=(REGION,))


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_show_names_the_cause_and_the_time(lossy: Path, capsys) -> None:
    code, out, _ = run(capsys, "show", lossy)
    assert code == ExitCode.CAPTURE_INCOMPLETE
    assert "the ring was full" in out
    code, out, _ = run(capsys, "show", lossy, "--json")
    (loss,) = json.loads(out)["losses"]
    assert (loss["cause"], loss["since_ns"], loss["until_ns"]) == ("ring", 500, 1500)


def test_whatif_counts_what_there_is_and_says_what_there_is_not(lossy: Path, capsys) -> None:
    code, out, err = run(capsys, "whatif", lossy, "-s", "qemu", "--json")
    assert code == ExitCode.CAPTURE_INCOMPLETE
    assert err.startswith("aerostat: warning: ")
    assert TOLD in err
    trace = json.loads(out)["trace"]
    assert (trace["complete"], trace["lost_events"]) == (True, 1234)
    code, _, err = run(capsys, "whatif", lossy, "-s", "qemu", "--json", "--allow-loss")
    assert code == ExitCode.OK
    assert TOLD in err


def test_replay_refuses_and_names_the_losses(lossy: Path, capsys) -> None:
    code, _, err = run(capsys, "replay", lossy)
    assert code == ExitCode.CAPTURE_INCOMPLETE
    assert TOLD in err
    assert "--allow-loss" in err


def test_fidelity_refuses_and_names_the_losses_of_any_of_its_traces_before_it_runs_one(
    lossy: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("replay.faithful.measure_fidelity", lambda *_, **__: 1 / 0)
    whole = write_host(tmp_path / "whole.balloon", regions=(REGION,))
    code, out, err = run(capsys, "replay", "--fidelity", whole, lossy, "--runs", "1")
    assert (code, out) == (ExitCode.CAPTURE_INCOMPLETE, "")
    assert f"{lossy} is not whole" in err
    assert TOLD in err
    assert "--allow-loss" in err
    with pytest.raises(CaptureIncompleteError, match="not whole"):
        measure_fidelity(lossy, runs=1)  # as a library


def test_two_traces_are_compared_only_where_the_user_insists(lossy: Path, capsys) -> None:
    code, _, err = run(capsys, "compare", lossy, lossy)
    assert code == ExitCode.CAPTURE_INCOMPLETE
    assert TOLD in err
    code, out, err = run(capsys, "compare", lossy, lossy, "--unlike-work", "--json")
    assert code == ExitCode.INCONCLUSIVE
    assert err.count(TOLD) == 2
    assert TOLD in json.loads(out)["warnings"][0]


def test_results_of_a_lossy_trace_are_compared_with_a_warning(tmp_path: Path, capsys) -> None:
    whole = make_results(make_strategy("qemu", [1000] * 5))
    torn = replace(whole, trace=replace(whole.trace, lost_events=1234, complete=False))
    for name, results in (("whole.json", whole), ("torn.json", torn)):
        save_results(results, tmp_path / name)
    paths = tmp_path / "whole.json", tmp_path / "torn.json"
    code, out, err = run(capsys, "compare", *paths, "--json")
    assert code in (ExitCode.OK, ExitCode.INCONCLUSIVE)
    assert "misses 1,234 events and did not end as it should" in err
    assert "torn.json" in err
    (warning,) = json.loads(out)["warnings"]
    assert "misses 1,234 events" in warning


def test_import_says_what_the_joined_trace_misses(lossy: Path, tmp_path: Path, capsys) -> None:
    guest = write_guest(tmp_path / "guest.balloon")
    code, _, err = run(capsys, "import", guest, "--into", lossy)
    assert code == ExitCode.CAPTURE_INCOMPLETE
    assert TOLD in err
    assert "now holds both sides" in err


def test_import_of_sides_that_do_not_agree_says_which_line(tmp_path: Path, capsys) -> None:
    host = write_host(tmp_path / "host.balloon", rows=[HOST_ROWS[0], *HOST_ROWS[2:]])
    guest = write_guest(tmp_path / "guest.balloon")
    code, _, err = run(capsys, "import", guest, "--into", host)
    assert code == ExitCode.CAPTURE_INCOMPLETE
    assert "inflate: host requests differs by -128" in err
    whole, other = write_host(tmp_path / "whole.balloon"), write_guest(tmp_path / "g2.balloon")
    assert run(capsys, "import", other, "--into", whole)[0] == ExitCode.OK


def test_import_says_what_a_salvaged_trace_misses(lossy: Path, tmp_path: Path, capsys) -> None:
    code, _, err = run(capsys, "import", lossy, "-o", tmp_path / "whole.balloon")
    assert code == ExitCode.CAPTURE_INCOMPLETE
    assert TOLD in err


def ended(path: Path, reason: str) -> Path:
    """A trace that lost nothing, and what ended it."""
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"stopped"', f'"{reason}"'))
    return path


@pytest.mark.parametrize(("reason", "code"), [("disk-full", 5), ("budget", 0), ("vm-exited", 0)])
def test_a_trace_that_a_full_disk_cut_short_is_whole_for_no_verb(
    reason: str, code: int, tmp_path: Path, capsys
) -> None:
    path = ended(write_host(tmp_path / "a.balloon", regions=(REGION,)), reason)
    told = "disk was full"
    assert open_trace(path).is_complete
    for number, arguments in enumerate(
        (
            ["show", path],
            ["whatif", path, "-s", "qemu", "--json"],
            ["import", path, "-o", tmp_path / "1"],
            ["import", path, "-o", tmp_path / "2", "--delta"],
            ["import", write_guest(tmp_path / "guest.balloon"), "--into", path],
            ["show", path],
        )
    ):
        found, out, err = run(capsys, *arguments)
        assert (number, found) == (number, code)
        assert (told in out + err) == bool(code)
    assert (told in (why_not_whole(open_trace(path).manifest) or "")) == bool(code)
    if code:
        for verb in ("compare", "replay"):
            found, _, err = run(capsys, verb, *[path] * (2 if verb == "compare" else 1))
            assert found == code
            assert told in err


def test_a_guest_whose_disk_was_full_cuts_both_sides_short(tmp_path: Path, capsys) -> None:
    host = write_host(tmp_path / "host.balloon")
    guest = ended(write_guest(tmp_path / "guest.balloon"), "disk-full")
    assert run(capsys, "import", guest, "--into", host)[0] == ExitCode.CAPTURE_INCOMPLETE
    assert run(capsys, "show", host)[0] == ExitCode.CAPTURE_INCOMPLETE


def test_a_whole_trace_is_warned_of_by_nobody(tmp_path: Path, capsys) -> None:
    whole = write_host(tmp_path / "whole.balloon", regions=(REGION,))
    assert run(capsys, "whatif", whole, "-s", "qemu")[2] == ""
    assert run(capsys, "compare", whole, whole)[2] == ""


@pytest.mark.parametrize("verb", ["whatif", "replay"])
def test_calls_alone_are_nothing_to_plan_from(verb: str, tmp_path: Path, capsys) -> None:
    code, out, err = run(capsys, verb, calls_alone(tmp_path / "calls.balloon"))
    assert (code, out) == (ExitCode.FAILURE, "")
    assert "holds no requests, only system calls" in err
    assert "no function fits" in err
    assert "record in the guest" in err


def test_calls_alone_are_shown_as_far_as_they_go(tmp_path: Path, capsys) -> None:
    code, out, _ = run(capsys, "show", calls_alone(tmp_path / "calls.balloon"))
    assert code == ExitCode.OK
    for text in ("no requests, which stages and strategies need", "no function fits", "DONTNEED"):
        assert text in out


def test_calls_alone_are_not_comparable_and_the_reason_is_told(tmp_path: Path, capsys) -> None:
    path = calls_alone(tmp_path / "calls.balloon")
    code, out, _ = run(capsys, "compare", path, path)
    assert code == ExitCode.INCONCLUSIVE
    assert "holds no requests: only system calls: no function fits" in out
