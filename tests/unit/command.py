"""The real command in a process of its own, and the form that its errors must have."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
AEROSTAT = [sys.executable, "-m", "aerostat"]


def run(arguments: list[object], **options) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run(
        [*options.pop("command", AEROSTAT), *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        **options,
    )


def refused(code: int, *arguments: object, **options) -> str:
    """Run the command, hold its error to the form that docs/cli.md gives, and return the text."""
    done = run(list(arguments), **options)
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    what, reason, remedy = done.stderr.splitlines()[-3:]
    assert what.startswith("aerostat: error: ")
    assert reason.startswith("  reason: ")
    assert len(reason) > len("  reason: ")
    assert remedy.startswith("  try:    ")
    assert len(remedy) > len("  try:    ")
    return done.stderr
