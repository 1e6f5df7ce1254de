"""What a guest's BCC compiled, kept for the next boot: an emulated guest takes seconds for it.

It goes back to guests alone. This machine's own recorder never loads what a guest has sent.
"""

import os
import re
from pathlib import Path, PurePosixPath

from lab.agent import GuestAgent
from lab.cache import cache_dir

IN_GUEST = str(PurePosixPath("/root", ".cache/aerostat/programs"))
"""Where tracer/engine/compile_cache.py keeps root's."""
_NAME = re.compile(r"[0-9a-f]{64}\.json")
_MAX_BYTES = 1 << 20
_KEPT_FILES = 16


def kept_programs() -> list[Path]:
    """Return the files to give to a guest."""
    return sorted(path for path in _directory().iterdir() if _NAME.fullmatch(path.name))


def keep_programs(agent: GuestAgent) -> None:
    """Copy from a guest what it has compiled in this boot.

    Raises:
        AgentError: The guest does not answer, or sends more than such a file has.
    """
    if not agent.exists(IN_GUEST):
        return
    place = _directory()
    for name in sorted(agent.list_files(IN_GUEST))[:_KEPT_FILES]:
        target = place / name
        if _NAME.fullmatch(name) and not target.exists():
            content = agent.read_file(f"{IN_GUEST}/{name}", _MAX_BYTES)
            part = target.with_suffix(f".{os.getpid()}")
            part.write_bytes(content)
            part.replace(target)
    newest = sorted(kept_programs(), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in newest[_KEPT_FILES:]:
        old.unlink(missing_ok=True)


def _directory() -> Path:
    place = cache_dir() / "guest-programs"
    place.mkdir(exist_ok=True)
    return place
