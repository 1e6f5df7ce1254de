"""Keeps what the compiler answered, so that a recorder that starts again need not wait for it.

An answer is kept under a digest of all that it depends on. Whoever could write it could have a
privileged recorder load programs, so a directory or file that others may write to is not used, nor
one that is reached through a directory of another user's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import re
import stat
import tempfile
from importlib.util import find_spec
from pathlib import Path

from tracer.engine.compile_process import compile_apart
from tracer.engine.compiled import Answer, Compiled

_KEPT_FILES = 16
"""One host program, and one for each layout of a guest's driver: a few kernels' worth."""
_MAX_BYTES = 8 << 20
_OURS = re.compile(r"[0-9a-f]{64}\.json|tmp\w{8}\.new")
"""Names that are made here, and so may be removed: an answer's, and that of one being written."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def compile_once(name: str, text: str, flags: list[str], root: Path) -> Compiled:
    """Compile a source, or take what it was compiled to before on this kernel with this BCC.

    Args:
        name: What to call the source in an error.
        text: The source.
        flags: For the compiler.
        root: bpf/, with all that the source includes.

    Raises:
        BccError: BCC is missing, does not compile the source, or may not make its maps.
    """
    place = _directory()
    key = _key(text, flags, root)
    if place is None or key is None:
        return Compiled.of(compile_apart(name, text, flags, root / "headers"))
    file = place / f"{key}.json"
    kept = _kept(file)
    if kept is not None:
        return kept
    answer = compile_apart(name, text, flags, root / "headers")
    # A full disk or a read-only one is no reason not to record.
    with contextlib.suppress(OSError):
        _keep(file, answer)
    return Compiled.of(answer)


def _directory() -> Path | None:
    """Where this user's answers are kept; None where nothing safe can be had.

    `$HOME` is not asked: sudo may leave it at the home of the user who called it.
    """
    named = os.environ.get("CACHE_DIRECTORY") or os.environ.get("AEROSTAT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        if named:
            place = Path(named)
        elif base:
            place = Path(base) / "aerostat"
        else:
            place = Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".cache" / "aerostat"
        place = place / "programs"
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        # As a link leads to: whoever may write to a directory on the way may exchange the rest.
        place = place.resolve(strict=True)
        safe = _is_ours(place.stat()) and all(_is_kept(each.stat()) for each in place.parents)
        return place if safe else None
    except (OSError, KeyError):
        return None


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_kept(status: os.stat_result) -> bool:
    """Whether nobody but root and this user can rename what a directory of this status holds."""
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX
    return status.st_uid in (0, os.geteuid()) and not others


def _key(text: str, flags: list[str], root: Path) -> str | None:
    """Digest what an answer depends on; None where there is no BCC, as the compiler has to say."""
    found = find_spec("bcc")
    if found is None or not found.origin:
        return None
    digest = hashlib.sha256()
    # BCC asks the running kernel which helpers it has.
    kernel = os.uname()
    version = Path(found.origin).with_name("version.py")
    told = [text, *flags, kernel.release, kernel.version, kernel.machine, str(version)]
    files = [version, *sorted(path for path in root.rglob("*.h") if path.is_file())]
    for word in told:
        digest.update(word.encode() + b"\0")
    for path in files:
        content = path.read_bytes() if path.exists() else b""
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _kept(file: Path) -> Compiled | None:
    """Read a kept answer; None where there is none, or it is not to be trusted."""
    try:
        with os.fdopen(os.open(file, _READ), "rb") as handle:
            status = os.fstat(handle.fileno())
            if not _is_ours(status) or status.st_size > _MAX_BYTES:
                return None
            found = Compiled.of(json.loads(handle.read()))
            # On a file system that is read-only it stays as old as it is.
            with contextlib.suppress(OSError):
                os.utime(handle.fileno())
            return found
    except (OSError, AttributeError, KeyError, TypeError, ValueError):
        return None


def _keep(file: Path, answer: Answer) -> None:
    descriptor, name = tempfile.mkstemp(dir=file.parent, suffix=".new")
    try:
        with os.fdopen(descriptor, "w") as handle:
            json.dump(answer, handle)
        Path(name).replace(file)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
    files = [path for path in file.parent.iterdir() if _OURS.fullmatch(path.name)]
    for old in sorted(files, key=_age_s)[_KEPT_FILES:]:
        old.unlink(missing_ok=True)


def _age_s(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0  # Another recorder has removed it: the oldest of all, and gone already.
