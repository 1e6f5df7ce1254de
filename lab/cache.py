"""Where the lab keeps what it built or fetched, and the lock that lets two runs share it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tracer.trace.errors import AerostatError


def cache_dir() -> Path:
    """Return the lab's cache directory, made if it is missing.

    Returns:
        `$AEROSTAT_CACHE` if set, else `$XDG_CACHE_HOME/aerostat`, else `~/.cache/aerostat`.

    Raises:
        AerostatError: The directory cannot be made.
    """
    named = os.environ.get("AEROSTAT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(named) if named else Path(base).expanduser() / "aerostat"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AerostatError(
            f"cannot make the lab's cache {path}",
            reason=str(error),
            remedy="set AEROSTAT_CACHE to a directory you can write to",
        ) from error
    return path.resolve()


@contextmanager
def cache_lock(name: str) -> Iterator[Path]:
    """Hold an exclusive lock on one part of the cache; waits for another run that builds it.

    Args:
        name: The part, for example `root` or `pair-7.2`.

    Yields:
        The cache directory. The kernel drops the lock if this process dies.
    """
    base = cache_dir()
    with (base / f".{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield base
