"""The rule about skips (tests/conftest.py), tried on a small suite of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    tests = tmp_path / "tests"
    for tier in ("unit", "memory", "kernel"):
        (tests / tier).mkdir(parents=True)
    shutil.copy(TESTS / "conftest.py", tests)
    (tests / "expected_skips.toml").write_text(
        '[[skip]]\ntest = "tests/unit/*::test_listed"\nreason = "no KVM"\nwhy = "emulated"\n'
    )
    (tests / "unit" / "test_a.py").write_text(
        "import pytest\n"
        "def test_runs(): pass\n"
        "def test_listed(): pytest.skip('this machine has no KVM')\n"
        "def test_unlisted(): pytest.skip('not today')\n"
        "@pytest.mark.xfail(reason='known')\n"
        "def test_known(): assert False\n"
    )
    (tests / "unit" / "test_b.py").write_text(
        "import pytest\npytest.importorskip('no_such_module')\n"
    )
    (tests / "memory" / "test_m.py").write_text("def test_map(): pass\n")
    (tests / "kernel" / "test_k.py").write_text("def test_load(): pass\n")
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n  memory: m\n  kernel: k\n  vm: v\naddopts = --strict-markers\n"
    )
    return tmp_path


def run(suite: Path, mode: str | None, *arguments: str) -> tuple[int, str]:
    environment = dict(os.environ)
    environment.pop("AEROSTAT_PRIVILEGED_TESTS", None)
    if mode is not None:
        environment["AEROSTAT_PRIVILEGED_TESTS"] = mode
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=suite,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_unset_tries_and_says_what_was_skipped(suite: Path) -> None:
    code, text = run(suite, None)
    assert code == 0, text
    assert "unit       1 passed, 0 failed, 4 skipped" in text
    assert "1 skipped: not today" in text
    assert "could not import 'no_such_module'" in text
    assert "memory     1 passed" in text
    assert "golden     not run" in text


def test_zero_skips_the_privileged_tiers_only(suite: Path) -> None:
    code, text = run(suite, "0")
    assert code == 0, text
    assert "kernel     0 passed, 0 failed, 1 skipped" in text
    assert "1 skipped: AEROSTAT_PRIVILEGED_TESTS=0" in text
    assert "memory     1 passed" in text


def test_one_makes_an_unlisted_skip_a_failure(suite: Path) -> None:
    code, text = run(suite, "1", "tests/unit/test_a.py")
    assert code == 1
    assert "not in expected_skips.toml: not today" in text
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed" in text


def test_one_makes_a_skipped_module_a_failure(suite: Path) -> None:
    code, text = run(suite, "1", "tests/unit/test_b.py")
    assert code != 0
    assert "not in expected_skips.toml" in text


def test_a_directory_gives_its_marker(suite: Path) -> None:
    code, text = run(suite, None, "-m", "memory")
    assert code == 0
    assert "1 passed" in text


def test_another_value_is_refused(suite: Path) -> None:
    code, text = run(suite, "yes")
    assert code == 4
    assert "must be unset, 0 or 1" in text
