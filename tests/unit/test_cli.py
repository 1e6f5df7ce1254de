"""The frame around every verb: errors, exit codes, pipes, signals, JSON."""

import enum
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pytest

from aerostat import cli
from aerostat.output import plain, printable, refuse_existing
from tracer.trace.errors import (
    AerostatError,
    CaptureIncompleteError,
    ExitCode,
    MissingPrivilegeError,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch):
    """Put a verb `try` into the group whose body the test gives."""

    def install(body):
        command = click.Command("try", callback=body)
        get = cli.LazyGroup.get_command
        monkeypatch.setattr(
            cli.LazyGroup,
            "get_command",
            lambda self, ctx, name: command if name == "try" else get(self, ctx, name),
        )

    return install


@pytest.mark.parametrize("kind", [AerostatError, CaptureIncompleteError, MissingPrivilegeError])
def test_an_error_is_text_and_an_exit_code(verb, capsys, kind) -> None:
    def fail() -> None:
        raise kind("cannot open x.balloon", reason="no such file", remedy="check the name")

    verb(fail)
    assert cli.main(["try"]) == kind.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "aerostat: error: cannot open x.balloon",
        "  reason: no such file",
        "  try:    check the name",
    ]


def test_a_verbs_own_code_is_returned(verb) -> None:
    verb(lambda: ExitCode.INCONCLUSIVE)
    assert cli.main(["try"]) == 4


def test_an_error_cannot_drive_the_terminal(verb, capsys) -> None:
    def fail() -> None:
        raise AerostatError("bad name \x1b[2J\u202e\x07")

    verb(fail)
    cli.main(["try"])
    assert capsys.readouterr().err == "aerostat: error: bad name \\x1b[2J\\u202e\\x07\n"


def test_an_operating_system_error_names_its_object(verb, capsys) -> None:
    verb(lambda: Path("/nonexistent/x").read_text())
    assert cli.main(["try"]) == ExitCode.FAILURE
    assert "cannot use /nonexistent/x\n  reason: No such file" in capsys.readouterr().err


def test_an_interrupt_is_130(verb, capsys) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    verb(interrupt)
    assert cli.main(["try"]) == 130
    assert capsys.readouterr().err.strip() == "aerostat: interrupted"


@pytest.mark.parametrize("arguments", [["nosuchverb"], ["record", "--nosuch"], ["record"]])
def test_wrong_usage_is_2(arguments: list[str], capsys) -> None:
    assert cli.main(arguments) == ExitCode.USAGE
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_verb(flag: str, capsys) -> None:
    assert cli.main([flag]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in cli.VERBS)


def test_a_closed_pipe_is_not_a_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "aerostat", "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=ROOT,
    )
    os.close(write)
    assert done.returncode == cli.BROKEN_PIPE
    assert done.stderr == ""


def test_a_verbs_module_is_loaded_only_when_asked_for() -> None:
    code = (
        "import sys\nfrom aerostat.cli import main\nmain(['--version'])\n"
        "print(sorted(n for n in sys.modules if n.startswith(('aerostat.verbs', 'pyarrow',"
        " 'numpy', 'rich'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    refuse_existing(tmp_path / "new", force=False)
    refuse_existing(tmp_path, force=True)
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(AerostatError, match="will not overwrite"):
        refuse_existing(tmp_path / "dangling", force=False)
    with pytest.raises(AerostatError, match="will not overwrite"):
        refuse_existing(tmp_path, force=False)


def test_printable_leaves_text_alone() -> None:
    assert printable("µs, naïve\nnext line") == "µs, naïve\nnext line"


class Colour(enum.IntEnum):
    RED = 1


@dataclass(frozen=True)
class Sample:
    colour: Colour
    path: Path
    times_ns: tuple[int, ...]
    share: object
    inner: "Sample | None" = None


def test_plain_makes_json_of_library_results() -> None:
    inner = Sample(Colour.RED, Path("b"), (), np.float64(0.5))
    sample = Sample(Colour.RED, Path("a"), (1, 2), np.arange(2), inner)
    assert json.loads(json.dumps(plain({Colour.RED: sample}))) == {
        "red": {
            "colour": "red",
            "path": "a",
            "times_ns": [1, 2],
            "share": [0, 1],
            "inner": {
                "colour": "red",
                "path": "b",
                "times_ns": [],
                "share": 0.5,
                "inner": None,
            },
        }
    }
