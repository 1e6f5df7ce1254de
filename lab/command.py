"""Runs a host command for the lab and turns its failure into one clear error."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tracer.trace.errors import AerostatError

TIMEOUT_S = 1200.0
"""Long enough for a slow mirror; nothing else the lab runs comes near it."""


def run_command(
    argv: Sequence[str],
    *,
    what: str,
    remedy: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a command to its end and return its standard output.

    Args:
        argv: The command and its arguments; no shell is involved.
        what: What fails if the command does, for the error's first line.
        remedy: What the user can do then.
        cwd: Directory to run in.
        env: Variables added to this process's own.

    Raises:
        AerostatError: The command is missing, failed, or took too long. The reason holds the
            last lines it wrote to standard error.
    """
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C", **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise AerostatError(what, reason=f"{argv[0]} is not installed", remedy=remedy) from error
    except subprocess.TimeoutExpired as error:
        reason = f"{argv[0]} took longer than {TIMEOUT_S:.0f} s"
        raise AerostatError(what, reason=reason, remedy=remedy) from error
    if done.returncode != 0:
        tail = "; ".join(done.stderr.strip().splitlines()[-3:])
        reason = f"{argv[0]} ended with status {done.returncode}: {tail}"
        raise AerostatError(what, reason=reason, remedy=remedy)
    return done.stdout
