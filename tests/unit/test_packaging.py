"""What is installed is what the tree holds, and set-up does what the documents say."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOPS = ("aerostat", "bpf", "lab", "replay", "tracer")


def test_every_package_is_installed() -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in TOPS
        for path in (ROOT / top).rglob("*.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_every_data_file_is_installed() -> None:
    installed = {
        path
        for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    built, generated = {".py", ".pyc", ".so", ".o"}, {"_core.c", "_drain.c"}
    present = {
        path
        for top in TOPS
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix not in built and path.name not in generated
    }
    assert present - installed == set()


def test_the_unrelated_bcc_is_never_asked_for() -> None:
    asked = [*PROJECT["project"]["dependencies"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        asked += extra
    assert "bcc" not in {re.split(r"[^\w.-]", name)[0] for name in asked}
    assert "python3-bpfcc" in (ROOT / "Makefile").read_text()


def test_help_names_every_target() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    done = subprocess.run([make, "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = {line.split()[1] for line in done.stdout.splitlines()}
    assert {"setup", "demo", "test", "bench", "help"} <= targets


def test_ci_runs_exactly_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert [line for line in lines if re.search(r"\bmake\b", line) and line[0] != "#"] == [
        "exec make test"
    ]


def test_version_has_one_source(capsys: pytest.CaptureFixture[str]) -> None:
    import aerostat
    from aerostat.cli import main

    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "aerostat.__version__"}
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"aerostat, version {aerostat.__version__}\n"
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] == aerostat.__version__
