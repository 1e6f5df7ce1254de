"""Bad files and options through the real command: what the shell and the user are told."""

import json
from pathlib import Path

import pytest

from replay.results_file import save_results
from tests.unit.capture_bundle import write_guest
from tests.unit.command import AEROSTAT, refused, run
from tests.unit.replay_results import MACHINE, make_results, make_strategy
from tests.unit.trace_samples import GIB, described, torn_trace, write_trace
from tracer.trace.errors import ExitCode
from tracer.trace.manifest import Region, VmInfo


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_trace(tmp_path / "whole.balloon")


READERS = ["show", "whatif", "replay"]


@pytest.mark.parametrize("verb", READERS)
@pytest.mark.parametrize("kind", ["directory", "file", "nothing"])
def test_what_is_no_trace(kind: str, verb: str, tmp_path: Path) -> None:
    path = tmp_path / "thing"
    if kind == "directory":
        path.mkdir()
        (path / "notes.txt").write_text("hello")
    elif kind == "file":
        path.write_text("hello")
    err = refused(ExitCode.FAILURE, verb, path)
    assert str(path) in err


def results_file(path: Path, **environment) -> Path:
    found = make_results(make_strategy("qemu", [100, 101, 102, 103]), **environment)
    save_results(found, path)
    return path


@pytest.mark.parametrize("verb", READERS)
def test_a_results_file_as_trace(verb: str, tmp_path: Path) -> None:
    assert "not a directory" in refused(ExitCode.FAILURE, verb, results_file(tmp_path / "r.json"))


def test_compare_of_what_is_no_results_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for text in ("hello", "[]", '{"format": "aerostat-results", "version": "9.0"}', "\xff" * 9):
        path.write_text(text)
        assert str(path) in refused(ExitCode.FAILURE, "compare", path, path)
    assert "No such file" in refused(ExitCode.FAILURE, "compare", tmp_path / "no", tmp_path / "no")


def test_compare_of_unlike_machines(tmp_path: Path) -> None:
    base = results_file(tmp_path / "a.json")
    other = results_file(tmp_path / "b.json", cpu_model=f"not {MACHINE.cpu_model}")
    err = refused(ExitCode.FAILURE, "compare", base, other)
    assert "unlike machines" in err
    assert f"not {MACHINE.cpu_model}" in err
    done = run(["compare", base, other, "--unlike-environments"])
    assert done.returncode in (0, 4), done.stderr


@pytest.mark.parametrize("verb", READERS)
def test_a_trace_of_a_newer_major_format(verb: str, whole: Path) -> None:
    change_manifest(whole, format_version="2.0")
    err = refused(ExitCode.FAILURE, verb, whole)
    assert "format 2.0" in err
    assert "upgrade aerostat" in err


def change_manifest(path: Path, **changes) -> None:
    document = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(document | changes))


def test_a_torn_trace_is_shown_and_said_to_be_torn(tmp_path: Path) -> None:
    torn_trace(tmp_path / "torn.balloon")
    done = run(["show", tmp_path / "torn.balloon"])
    assert done.returncode == ExitCode.CAPTURE_INCOMPLETE
    assert "Traceback" not in done.stderr
    assert "NOT COMPLETE" in done.stdout
    assert "was not closed; read as it is" in done.stdout
    err = refused(ExitCode.CAPTURE_INCOMPLETE, "replay", tmp_path / "torn.balloon")
    assert "--allow-loss" in err


@pytest.mark.parametrize("verb", READERS)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_segment_that_was_cut(share: float, verb: str, whole: Path) -> None:
    segment = whole / "requests" / "host-00001.arrow"
    segment.write_bytes(segment.read_bytes()[: int(share * segment.stat().st_size)])
    err = refused(ExitCode.CAPTURE_INCOMPLETE, verb, whole)
    assert str(segment) in err
    assert f"aerostat import {whole} -o" in err


MAPS = {
    "overlap": (
        [Region("a", 0, None, GIB, "anon", 4096), Region("b", GIB // 2, None, GIB, "anon", 4096)],
        "overlap",
    ),
    "too large": (
        [Region("a", 0, None, 1 << 40, "anon", 4096)],
        "1 TiB of guest memory or more",
    ),
    "too large in pieces": (
        [Region("a", gpa, None, 1 << 39, "anon", 4096) for gpa in (0, 1 << 42)],
        "1 TiB of guest memory or more",
    ),
    "misaligned": ([Region("a", 0, None, 4097, "anon", 4096)], "not whole pages"),
    "absent": ([], "memory was not seen"),
}


@pytest.mark.parametrize("verb", ["whatif", "replay"])
@pytest.mark.parametrize("case", MAPS)
def test_memory_that_cannot_be_replayed(case: str, verb: str, whole: Path) -> None:
    regions, reason = MAPS[case]
    listed = [
        {"name": r.name, "gpa": r.gpa, "hva": r.hva, "length_bytes": r.length_bytes}
        | {"backing": r.backing, "page_size_bytes": r.page_size_bytes}
        for r in regions
    ]
    change_manifest(whole, regions=listed)
    assert reason in refused(ExitCode.FAILURE, verb, whole)


def large_trace(path: Path, memory_bytes: int) -> Path:
    memory = VmInfo(name="vm0", pid=77, memory_bytes=memory_bytes)
    regions = (Region("ram", 0, None, memory_bytes, "anon", 4096),)
    return write_trace(path, manifest=described(vm=memory, regions=regions))


def test_nearly_a_terabyte_asked_of_a_small_machine(tmp_path: Path) -> None:
    """Refused before a page of it is planned, checked or mapped: by what its account would take."""
    path = large_trace(tmp_path / "big.balloon", (1 << 40) - 4096)
    err = refused(
        ExitCode.FAILURE, "replay", path, "--residency", "untouched", "--memory-limit", "64M"
    )
    assert "not enough memory to replay 1,024.0 GiB of guest memory" in err
    assert "64.0 MiB may be used" in err
    counted = run(["whatif", path, "-s", "qemu"])
    assert counted.returncode == 0, counted.stderr


@pytest.mark.parametrize("verb", ["whatif", "replay"])
def test_a_terabyte_is_refused_within_little_memory(verb: str, tmp_path: Path) -> None:
    """The refusal itself must not need what it refuses: 1 GiB of address space is enough."""
    path = large_trace(tmp_path / "big.balloon", 1 << 40)
    limited = ["prlimit", "--as=1073741824", *AEROSTAT]
    err = refused(ExitCode.FAILURE, verb, path, command=limited)
    assert "1 TiB of guest memory or more" in err


def test_show_says_that_a_map_is_too_large(tmp_path: Path) -> None:
    """It shows the trace all the same: nothing of it is mapped."""
    path = large_trace(tmp_path / "big.balloon", 1 << 40)
    done = run(["show", path])
    assert done.returncode == 0, done.stderr
    assert "not held against the guest's memory: 1 TiB of guest memory or more" in done.stdout
    document = json.loads(run(["show", "--json", path]).stdout)
    assert document["rejected"] is None
    assert "1 TiB" in document["rejected_note"]


def test_a_guest_without_a_host_has_no_memory_map(tmp_path: Path) -> None:
    path = write_guest(tmp_path / "guest.balloon")
    err = refused(ExitCode.FAILURE, "replay", path)
    assert "holds no memory map" in err
    assert "aerostat record --pid" in err


@pytest.mark.parametrize("verb", ["whatif", "replay"])
def test_no_such_strategy(verb: str, whole: Path) -> None:
    err = refused(ExitCode.FAILURE, verb, whole, "-s", "nosuch")
    assert "'nosuch'" in err
    assert "qemu" in err


BROKEN = {
    "syntax": ("class Mine(:\n", "SyntaxError"),
    "raises": ("\nraise RuntimeError('out of cheese')\n", "out of cheese (mine.py, line 2)"),
    "other name": ("class Other:\n    pass\n", "mine.py defines no Mine"),
    "no strategy": ("class Mine:\n    pass\n", "is no replay.strategies.base.Strategy"),
}
HEAD = """
from replay.backings import Advice
from replay.strategies.base import Operations, Strategy
from replay.strategies.select import pieces
from tracer.trace.schema import Queue

class Mine(Strategy):
    name = "mine"
    source = "a test"

    def operations(self, requests, context):
        found = pieces(requests, context, Queue.INFLATE)
"""
FAILING = {
    "return None": "TypeError: 'NoneType' object is not iterable",
    "return [found]": "operations() must give a list of Operations, not of Pieces",
    "return [Operations((4,), found)]": "must be a sequence of Advice",
    "return [Operations(Advice.FREE, found)]": "must be a sequence of Advice",
    "return [Operations((Advice.FREE,), found._replace(page=found.page / 2))]": "Pieces.page must"
    " be a flat array of int64, not ndarray of float64",
    "return [Operations((Advice.FREE,), found._replace(page=found.page[1:]))]": "differ in length",
    "return requests.nothing": "has no attribute 'nothing' (mine.py, line 13)",
    "found.page[0] = 3": "read-only (mine.py, line 13)",
    "return []": "are not given back",
    "return [Operations((Advice.REMOVE,), found)]": "on anon memory MADV_REMOVE needs a shared",
}
"""What a strategy's last line may be, and what is said then."""


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_strategy_of_ones_own(case: str, whole: Path, tmp_path: Path) -> None:
    text, reason = BROKEN[case]
    (tmp_path / "mine.py").write_text(text)
    err = refused(ExitCode.FAILURE, "replay", whole, "-s", f"{tmp_path / 'mine.py'}:Mine")
    assert reason in err


@pytest.mark.parametrize("line", FAILING)
def test_a_strategy_of_ones_own_that_fails_while_it_plans(
    line: str, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(f"{HEAD}        {line}\n")
    err = refused(ExitCode.FAILURE, "whatif", whole, "-s", f"{tmp_path / 'mine.py'}:Mine")
    assert "'mine'" in err
    assert FAILING[line] in " ".join(err.split())


PARAMETERS = {
    "deferred:hold_byte=1": "no parameter 'hold_byte'; it has hold_bytes, hold_ns",
    "deferred:hold_bytes=much": "'much' is not a size",
    "deferred:hold_ns=5": None,
    "deferred:hold_ns=0": "hold_ns is 0; it must be 1 or more, or none",
    "qemu:speed=9": "no parameter 'speed'; it has none",
    "parallel:threads=65": "threads is 65; it must be 1 to 64",
    "parallel:threads=2,threads=3": "given twice",
    "vectored:ranges=1025": "the kernel takes 1024 at most",
    "vectored:merge=maybe": "merge is 'maybe'; it must be true or false",
    "huge:unit_bytes=5000": "not a power of two",
    "range:words=1": "words is 1; it must be 2 or more",
}


@pytest.mark.parametrize("strategy", PARAMETERS)
def test_parameters_are_taken_or_refused_with_the_reason(strategy: str, whole: Path) -> None:
    reason = PARAMETERS[strategy]
    if reason is None:
        assert run(["whatif", whole, "-s", strategy]).returncode == 0
        return
    done = run(["whatif", whole, "-s", strategy])
    assert done.returncode in (ExitCode.FAILURE, ExitCode.USAGE)
    assert "Traceback" not in done.stderr
    assert reason in " ".join(done.stderr.split())


@pytest.mark.parametrize("place", ["no/such/results.json", "."])
def test_results_that_cannot_be_written_are_refused_before_the_work(place: str, tmp_path) -> None:
    err = refused(
        ExitCode.FAILURE, "replay", tmp_path / "not even looked at", "-o", tmp_path / place
    )
    assert "results" in err or "overwrite" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["replay", "x", "--memory-limit", "lots"],
        ["replay", "x", "--memory-limit", "1MB"],
        ["replay", "x", "--runs", "0"],
        ["replay", "x", "--seed", "-1"],
        ["replay", "x", "--backing", "paper"],
        ["record", "--pid", "0", "-o", "x"],
        ["record", "--pid", "1", "-o", "x", "--duration", "soon"],
        ["lab", "--pair", "1.0"],
        ["import", "x"],
        ["nosuchverb"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments: list[str], tmp_path: Path) -> None:
    done = run(arguments, cwd=tmp_path)
    assert done.returncode == ExitCode.USAGE
    assert "Error: " in done.stderr
    assert "Usage: aerostat" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_trace_is_no_error(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "empty.balloon", batches=0)
    assert not (path / "requests").exists()
    for verb in ("show", "whatif"):
        done = run([verb, path])
        assert done.returncode == 0, done.stderr
