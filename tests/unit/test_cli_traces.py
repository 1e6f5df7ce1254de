"""The verbs that read traces, on a small capture whose numbers are known (capture_bundle.py)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from aerostat import record_options
from aerostat.cli import main
from aerostat.verbs import lab as lab_verb
from tests.unit.capture_bundle import write_guest, write_host
from tracer.trace.errors import ExitCode
from tracer.trace.manifest import Loss

CLI_MD = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
# Objects whose keys are names of the traced machine, or described in docs/trace-format.md.
OPEN_OBJECTS = {"vm", "sides", "operations_by_advice", "run_pages_histogram"}


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return write_host(tmp_path / "host.balloon")


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    return write_guest(tmp_path / "guest.balloon")


def keys_of(document: Any) -> set[str]:
    if isinstance(document, list):
        return set().union(*(keys_of(item) for item in document)) if document else set()
    if not isinstance(document, dict):
        return set()
    below = (keys_of(value) for key, value in document.items() if key not in OPEN_OBJECTS)
    return set(document).union(*below)


def documented_keys(verb: str) -> set[str]:
    match = re.search(rf"^## {verb}$(.*?)(?=^## |\Z)", CLI_MD, re.MULTILINE | re.DOTALL)
    assert match
    words = re.findall(r"`([a-z0-9_.\[\]]+)`", match[1].split("| JSON key |")[1])
    return {part.removesuffix("[]") for word in words for part in word.split(".")}


def run_json(capsys, *arguments: str) -> tuple[int, Any]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    assert captured.err == ""
    return code, json.loads(captured.out)


def test_every_key_of_show_is_documented(host: Path, guest: Path, capsys) -> None:
    main(["import", str(guest), "--into", str(host)])
    capsys.readouterr()
    _, document = run_json(capsys, "show", "--json", str(host))
    assert document["stages"]
    assert document["clock"]
    assert document["runs"]
    keys = keys_of(document) - {"extra"}
    assert keys <= documented_keys("show")


def test_show_splits_a_trace_of_both_sides(host: Path, guest: Path, capsys) -> None:
    assert main(["import", str(guest), "--into", str(host)]) == 0
    capsys.readouterr()
    code, document = run_json(capsys, "show", str(host), "--json")
    assert code == 0
    assert document["ledger"]["balanced"] is True
    inflate = document["stages"][0]
    times = {stage["letter"]: stage["total_ns"] for stage in inflate["stages"] if stage["letter"]}
    assert times == {"a": 25_000, "b": 25_000, "c": 30_000, "d": 40_000}
    assert [stage["seed_percent"] for stage in inflate["stages"] if stage["letter"]] == [
        6.5,
        68.3,
        6.1,
        19.0,
    ]


def test_show_works_on_one_side(host: Path, capsys) -> None:
    code, document = run_json(capsys, "show", str(host), "--json")
    by_letter = {stage["letter"]: stage for stage in document["stages"][0]["stages"]}
    assert by_letter["a"]["total_ns"] is None
    assert by_letter["d"]["total_ns"] == 40_000
    assert code == 0


def test_show_draws_the_seed_the_ledger_and_the_losses(host: Path, capsys) -> None:
    assert main(["show", str(host)]) == 0
    out = capsys.readouterr().out
    for text in (
        "seed's share",
        "68.3 %",
        "4126 ms",
        "590 ms",
        "ledger:",
        "Losses: none",
        "runs of",
    ):
        assert text in out, text


def test_show_of_a_lossy_trace_says_so_and_exits_5(tmp_path: Path, capsys) -> None:
    loss = Loss(side="host", stream="requests", count=7, since_ns=0, until_ns=1000)
    path = write_host(tmp_path / "lossy.balloon", losses=[loss])
    assert main(["show", str(path)]) == ExitCode.CAPTURE_INCOMPLETE
    out = capsys.readouterr().out
    assert "LOSSES" in out
    assert "NOT BALANCED" in out


def test_show_of_a_trace_that_was_not_closed_exits_5(host: Path, capsys) -> None:
    manifest = json.loads((host / "manifest.json").read_text())
    manifest["complete"] = False
    (host / "manifest.json").write_text(json.dumps(manifest))
    code, document = run_json(capsys, "show", str(host), "--json")
    assert code == ExitCode.CAPTURE_INCOMPLETE
    assert document["complete"] is False


@pytest.mark.parametrize("verb", ["show", "whatif", "replay"])
def test_what_is_no_trace_is_an_error_with_a_remedy(verb: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "manifest.json").write_text('{"format": "something else"}')
    assert main([verb, str(tmp_path)]) == ExitCode.FAILURE
    err = capsys.readouterr().err
    assert err.startswith("aerostat: error: ")
    assert "\n  try:    " in err


def test_import_of_a_side_that_is_there_is_refused(host: Path, guest: Path, capsys) -> None:
    assert main(["import", str(guest), "--into", str(host)]) == 0
    before = (host / "manifest.json").read_bytes()
    assert main(["import", str(guest), "--into", str(host)]) == ExitCode.FAILURE
    assert (host / "manifest.json").read_bytes() == before
    assert "aerostat: error:" in capsys.readouterr().err


def test_two_traces_are_compared(host: Path, tmp_path: Path, capsys) -> None:
    other = write_host(tmp_path / "other.balloon")
    code, document = run_json(capsys, "compare", str(host), str(other), "--json")
    # Two requests a queue are too few for a verdict, and that is what must be said.
    assert (code, document["verdict"]) == (ExitCode.INCONCLUSIVE, "inconclusive")
    assert (document["format"], document["version"]) == ("aerostat-comparison", "1.1")
    assert "`aerostat-comparison` 1.1" in CLI_MD
    assert {line["subject"] for line in document["lines"]} == {"inflate", "deflate", "reporting"}
    assert keys_of(document) <= documented_keys("compare")


def test_a_trace_is_not_compared_with_results(host: Path, tmp_path: Path, capsys) -> None:
    assert main(["compare", str(host), str(tmp_path / "results.json")]) == ExitCode.USAGE
    assert "not one of each" in capsys.readouterr().err


def test_record_needs_one_side(capsys) -> None:
    assert main(["record", "-o", "x.balloon"]) == ExitCode.USAGE
    assert main(["record", "--guest", "--pid", "1", "-o", "x.balloon"]) == ExitCode.USAGE
    assert "give one of --vm, --uuid, --pid; or --all; or --guest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (["--detail", "discards"], "recorded with every page"),
        (["--quota-records", "5"], "--ring bounds"),
        (["--quota-bytes", "1M"], "--ring bounds"),
        (["--metrics-file", "x.prom"], "from their host"),
        (["--metrics-listen", ":9105"], "from their host"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_only_a_host_can_do_is_refused_in_a_guest(given, hint, tmp_path, capsys) -> None:
    output = tmp_path / "x.balloon"
    assert main(["record", "--guest", *given, "-o", str(output)]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert f"{given[0]} does not go with --guest" in said
    assert hint in said
    assert "leave it out" in said
    assert not output.exists()


def test_what_only_a_host_can_do_is_what_the_page_says() -> None:
    named = {f"--{name.replace('_', '-')}" for name in record_options.HOST_ONLY}
    rows = re.findall(r"^\| (`--[^|]*) \| host only: ", CLI_MD, re.MULTILINE)
    assert {name for row in rows for name in re.findall("--[a-z-]+", row)} == named


@pytest.mark.parametrize("arguments", [["record", "--pid", "1"], ["lab"]])
def test_a_trace_is_not_overwritten(arguments: list[str], host: Path, capsys) -> None:
    before = sorted(host.rglob("*"))
    assert main([*arguments, "-o", str(host)]) == ExitCode.FAILURE
    assert "--force" in capsys.readouterr().err
    assert sorted(host.rglob("*")) == before


def test_choices_are_those_of_the_libraries() -> None:
    from lab.pairs import PAIRS
    from lab.scenarios import SCENARIOS
    from tracer.host_side.host import DETAILS

    assert set(lab_verb.SCENARIOS) == set(SCENARIOS)
    assert set(lab_verb.PAIRS) == set(PAIRS)
    assert set(record_options.DETAILS) == set(DETAILS)
