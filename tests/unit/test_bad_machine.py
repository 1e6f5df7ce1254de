"""The wrong user, process, library or output, through the real command."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.unit.command import ROOT, refused, run
from tests.unit.trace_samples import torn_trace, write_trace
from tracer.trace.errors import ExitCode

NOBODY = 65534


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_trace(tmp_path / "whole.balloon")


def unprivileged() -> dict[str, object]:
    """Options of `run` that take root away, where there is any to take."""
    if os.geteuid() != 0:
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []}


def require_readable() -> None:
    """The tree and its Python must be open to a user who is nobody."""
    done = subprocess.run(
        [sys.executable, "-c", "import aerostat.cli, pyarrow"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        **unprivileged(),
    )
    if done.returncode:
        pytest.skip("this tree cannot be read by an unprivileged user")


@pytest.mark.parametrize(
    "arguments",
    [
        ["record", "--pid", "1", "-o", "aerostat-test.balloon"],
        ["record", "--guest", "-o", "aerostat-test.balloon"],
        ["lab", "-o", "aerostat-test.balloon"],
    ],
    ids=["pid", "guest", "lab"],
)
def test_without_privileges(arguments: list[str]) -> None:
    require_readable()
    # "/" is a directory that nobody may write to but everybody can enter; tmp_path is root's own.
    err = refused(ExitCode.MISSING_PRIVILEGE, *arguments, cwd="/", **unprivileged())
    assert "lacks" in err
    assert "CAP_PERFMON, CAP_BPF" in err
    assert "run with sudo, or grant" in err
    assert not Path("/aerostat-test.balloon").exists()


def test_doctor_without_root() -> None:
    require_readable()
    done = run(["doctor"], cwd="/", **unprivileged())
    assert done.returncode == ExitCode.MISSING_PRIVILEGE
    assert "Traceback" not in done.stderr
    assert "run with sudo" in done.stdout + done.stderr


def test_no_such_pid(tmp_path: Path) -> None:
    largest = int(Path("/proc/sys/kernel/pid_max").read_text())
    if os.geteuid() != 0:
        pytest.skip("needs root")
    err = refused(ExitCode.FAILURE, "record", "--pid", largest + 1, "-o", tmp_path / "x.balloon")
    assert f"there is no process {largest + 1}" in err
    assert not (tmp_path / "x.balloon").exists()


def test_a_pid_that_is_no_vmm(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    err = refused(ExitCode.FAILURE, "record", "--pid", os.getpid(), "-o", tmp_path / "x.balloon")
    assert "is not a VMM" in err
    assert not (tmp_path / "x.balloon").exists()


@pytest.mark.parametrize(
    "verb",
    [["record", "--pid", "1"], ["lab"], ["replay", "TRACE"], ["replay", "TRACE", "--force"]],
    ids=" ".join,
)
def test_an_output_that_exists(verb: list[str], whole: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("do not lose me")
    arguments = [whole if word == "TRACE" else word for word in verb]
    err = refused(ExitCode.FAILURE, *arguments, "-o", precious)
    assert str(precious) in err
    assert (precious / "file").read_text() == "do not lose me"


def test_force_never_deletes_what_is_no_trace(tmp_path: Path) -> None:
    torn_trace(tmp_path / "torn.balloon")
    for name, holds in (("plain", {}), ("fooled", {"manifest.json": '{"format": "other"}'})):
        target = tmp_path / name
        target.mkdir()
        for file, text in {"file": "do not lose me", **holds}.items():
            (target / file).write_text(text)
        before = sorted(file.read_bytes() for file in target.iterdir())
        err = refused(
            ExitCode.FAILURE, "import", tmp_path / "torn.balloon", "-o", target, "--force"
        )
        assert "is not replaced" in err
        assert sorted(file.read_bytes() for file in target.iterdir()) == before


def test_force_keeps_a_trace_with_something_else_in_it(whole: Path, tmp_path: Path) -> None:
    torn_trace(tmp_path / "torn.balloon")
    (whole / "thesis.tex").write_text("do not lose me")
    before = sorted(whole.rglob("*"))
    err = refused(ExitCode.FAILURE, "import", tmp_path / "torn.balloon", "-o", whole, "--force")
    assert "thesis.tex" in err
    assert sorted(whole.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("kind", ["absent", "unrelated"])
def test_bcc(kind: str, tmp_path: Path) -> None:
    """BCC is really absent where only the venv's packages are found, without the system's."""
    here = [sysconfig.get_path("purelib"), str(ROOT)]
    if kind == "unrelated":
        # What Python's index calls bcc: a package without the class that loads programs.
        (tmp_path / "bcc").mkdir()
        (tmp_path / "bcc" / "__init__.py").write_text("__version__ = '1.0'\n")
        here.insert(0, str(tmp_path))
    elif (Path(here[0]) / "bcc").exists():
        pytest.skip("BCC lies beside the other packages")
    without_system = [sys.executable, "-S", "-m", "aerostat"]
    err = refused(
        ExitCode.MISSING_PRIVILEGE,
        *("record", "--guest", "--probes", "kprobe", "-o", tmp_path / "x.balloon"),
        command=without_system,
        env={"PYTHONPATH": os.pathsep.join(here)},
    )
    assert "python3-bpfcc" in err
    assert not (tmp_path / "x.balloon").exists()
