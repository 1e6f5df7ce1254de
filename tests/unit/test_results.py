"""Results files: written whole, read with suspicion, described in docs/results-format.md."""

import dataclasses
import errno
import json
import os
import re
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay import results as results_module
from replay import summary as summary_module
from replay import watched as watched_module
from replay.against import against
from replay.environment import CHECKED, Environment
from replay.results import RESULTS_FORMAT, RESULTS_VERSION, Results
from replay.results_file import (
    MAX_RESULTS_BYTES,
    ResultsError,
    ResultsFile,
    UnsavedError,
    load_results,
    save_results,
)

from .replay_results import make_results, make_strategy

FORMAT_PAGE = Path(__file__).parents[2] / "docs/results-format.md"
DESCRIBED = {
    "Document": Results,
    "Environment": Environment,
    **{
        name: kind
        for module in (results_module, watched_module, summary_module)
        for name, kind in vars(module).items()
        if dataclasses.is_dataclass(kind) and name not in ("Results", "Environment")
    },
}


@pytest.fixture
def results() -> Results:
    return make_results(make_strategy("nop", [1, 2]), make_strategy("qemu", [1000, 1010]))


def test_what_is_saved_is_loaded(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    save_results(results, path)
    assert load_results(path) == results
    assert [each.name for each in tmp_path.iterdir()] == ["r.json"]


def test_a_file_is_replaced_only_by_force(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("mine")
    with pytest.raises(ResultsError, match="exists already"):
        save_results(results, path)
    assert path.read_text() == "mine"
    save_results(results, path, force=True)
    assert load_results(path) == results


def test_saving_where_it_cannot_be(results: Results, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="cannot write"):
        save_results(results, tmp_path / "missing/r.json")


def test_where_nothing_can_be_made_is_told_before_the_work() -> None:
    with pytest.raises(ResultsError, match="cannot write results to /proc/"):
        ResultsFile(Path("/proc/r.json"))


@pytest.mark.parametrize("kind", ["dangling", "link", "fifo", "directory"])
def test_only_a_regular_file_is_replaced(results: Results, tmp_path: Path, kind: str) -> None:
    """A device node is like a fifo here, and takes no root to make."""
    path, target = tmp_path / "r.json", tmp_path / "target"
    if kind == "link":
        target.write_text("mine")
    if kind in ("dangling", "link"):
        path.symlink_to(target)
    else:
        {"fifo": os.mkfifo, "directory": os.mkdir}[kind](path)
    before = path.lstat()
    for force in (False, True):
        with pytest.raises(ResultsError, match=r"r.json is (no regular file|a directory)"):
            save_results(results, path, force=force)
    assert path.lstat().st_ino == before.st_ino
    assert target.exists() == (kind == "link")


def test_results_that_cannot_be_written_are_kept_in_the_error(
    results: Results, tmp_path: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ResultsFile(tmp_path / "r.json") as file, pytest.raises(UnsavedError) as caught:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            file.save(results)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.results is results
    assert caught.value.reason == "File too large"
    assert not list(tmp_path.iterdir())


def test_a_part_that_cannot_be_removed_hides_no_other_error(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that turned read-only."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "part")

    with ResultsFile(tmp_path / "r.json") as file, pytest.raises(UnsavedError, match="Read-only"):
        for name in ("unlink", "hardlink_to"):
            monkeypatch.setattr(Path, name, refuse)
        monkeypatch.setattr(Path, "replace", refuse)
        file.save(results)


def test_a_file_that_appeared_meanwhile_is_kept(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with ResultsFile(path) as file, pytest.raises(UnsavedError, match="exists"):
        path.write_text("another's")
        file.save(results)
    assert path.read_text() == "another's"


def test_a_file_system_without_hard_links(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = tmp_path / "r.json"
    save_results(results, path)
    assert load_results(path) == results
    assert [each.name for each in tmp_path.iterdir()] == ["r.json"]


def test_unknown_keys_of_a_newer_minor_version_are_ignored(
    results: Results, tmp_path: Path
) -> None:
    path = tmp_path / "r.json"
    newer = RESULTS_VERSION.split(".")[0] + ".7"
    document = results.to_json() | {"version": newer, "novelty": 1}
    path.write_text(json.dumps(document))
    assert load_results(path) == results


def test_what_was_set_against_another_is_in_the_file_too(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    named = dataclasses.replace(results.settings, against="nop")
    beside = against(results.strategies, "nop")
    told = dataclasses.replace(results, settings=named, against=beside)
    save_results(told, path)
    assert load_results(path) == told
    assert [each["name"] for each in json.loads(path.read_text())["against"]] == ["nop", "qemu"]


def test_results_of_an_older_minor_version_are_read_as_before(
    results: Results, tmp_path: Path
) -> None:
    document = json.loads(json.dumps(results.to_json()))
    document["version"] = "5.0"
    for strategy in document["strategies"]:
        del strategy["deployable"]
    del document["against"], document["settings"]["against"]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(document))
    assert load_results(path) == results
    assert {strategy.deployable for strategy in results.strategies} == {None}
    told = dataclasses.replace(results.strategies[0], deployable=True)
    save_results(dataclasses.replace(results, strategies=(told,)), path, force=True)
    assert load_results(path).strategies == (told,)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["format"], "aerostat-trace", "format is not"),
        (["version"], "2.0", "version is '2.0'"),
        (["version"], None, "version is None"),
        (["trace"], [], "results.trace is not an object"),
        (["trace", "requests"], "1", r"results\.trace\.requests is not of type int"),
        (["trace", "requests"], True, r"results\.trace\.requests is not of type int"),
        (["trace", "requests"], -1, r"results\.trace\.requests is negative or too large"),
        (["trace", "requests"], 1 << 63, "too large"),
        (["trace", "complete"], 1, "not of type bool"),
        (["trace", "name"], None, "not of type str"),
        (["fidelity", "ratio"], float("nan"), "not a finite number"),
        (["fidelity", "ratio"], float("inf"), "not a finite number"),
        (["strategies"], {}, "results.strategies is not a list"),
        (["strategies", 1, "runs", 0, "send_ns"], 1.5, r"strategies\[1\]\.runs\[0\]\.send_ns"),
        (["strategies", 0, "watched", 0, "pauses"], 3, "pauses is not an object"),
        (["strategies", 0, "watched", 0, "memory", "at_ns", 1], -1, r"at_ns\[1\] is negative"),
        (["strategies", 0, "summary", "total_ns", "low"], "x", "low is not of type float"),
        (["strategies", 0, "deployable"], "yes", "deployable is not of type bool"),
    ],
)
def test_hostile_values_are_named(results, tmp_path, keys, value, message) -> None:
    document = json.loads(json.dumps(results.to_json()))
    place = document
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path = tmp_path / "r.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ResultsError, match=message):
        load_results(path)


def test_a_missing_key_is_named(results: Results, tmp_path: Path) -> None:
    document = json.loads(json.dumps(results.to_json()))
    del document["settings"]["seed"]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ResultsError, match=r"results\.settings\.seed is missing"):
        load_results(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}']
)
def test_what_is_no_results_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(ResultsError):
        load_results(path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with path.open("wb") as file:
        file.truncate(MAX_RESULTS_BYTES + 1)
    with pytest.raises(ResultsError, match="too large"):
        load_results(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(
    key=st.sampled_from([field.name for field in dataclasses.fields(Results)]), value=json_values
)
def test_any_value_anywhere_is_loaded_or_refused(tmp_path_factory, key, value) -> None:
    path = tmp_path_factory.mktemp("hostile") / "r.json"
    path.write_text(json.dumps(make_results(make_strategy("qemu", [1])).to_json() | {key: value}))
    try:
        assert isinstance(load_results(path), Results)
    except ResultsError as error:
        assert f"results.{key}" in error.reason


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", FORMAT_PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", DESCRIBED)
def test_the_page_describes_every_key(name: str) -> None:
    keys = re.findall(r"^\| `(\w+)` \|", sections()[name], flags=re.MULTILINE)
    assert keys == [field.name for field in dataclasses.fields(DESCRIBED[name])]


def test_the_page_names_format_version_and_checked_keys() -> None:
    text = FORMAT_PAGE.read_text()
    assert f"`{RESULTS_FORMAT}`" in text
    assert f"`{RESULTS_VERSION}`" in text
    checked = re.findall(r"^\| `(\w+)` \|.*Checked\. \|$", sections()["Environment"], re.MULTILINE)
    assert tuple(checked) == CHECKED
