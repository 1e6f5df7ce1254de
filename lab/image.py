"""Builds the guest's root disk once: the interpreter that runs this process, and what it needs.

The guest must run the same recorder with the same libraries as the host, so the disk is a copy of
the running environment: the standard library, the named packages, and every shared library those
need. It is an ext4 file in the cache, keyed by what went into it, and mounted read-only under an
overlay, so it can neither go stale nor be changed by a guest. docs/adr/0001-lab-guest.md says why.
"""

import hashlib
import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

from lab.cache import cache_lock
from lab.command import run_command
from tracer.trace.errors import AerostatError
from tracer.trace.progress import Progress, silent

GUEST_PACKAGES = (
    "bcc",
    "_cffi_backend",
    "numpy",
    "pyarrow",
    "click",
    "rich",
    "markdown_it",
    "mdurl",
    "pygments",
    "elftools",
)
"""Import names the recorder in the guest needs; the project itself comes with each boot."""
LAYOUT = 3
"""Raise when the disk's layout changes, so that older images are built anew."""
KEEP_IMAGES = 2
_INSTALLED_AS = {
    "bcc": "python3-bpfcc",
    "_cffi_backend": "cffi",
    "elftools": "pyelftools",
    "markdown_it": "markdown-it-py",
}
_SKIPPED = frozenset({"test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip", "include"})
_APPLETS = ("sh", "cat", "ls", "poweroff", "mount", "dmesg", "sleep", "sync", "free", "ps")


def ensure_root_image(progress: Progress = silent) -> Path:
    """Return the root disk for this environment, building it if the cache has none.

    Returns:
        Path of a read-only ext4 image.

    Raises:
        AerostatError: A package or tool is missing, or the disk cannot be made.
    """
    trees = _trees()
    key = _fingerprint(trees)
    with cache_lock("root") as base:
        home = base / "root"
        home.mkdir(exist_ok=True)
        image = home / f"{key}.ext4"
        if not image.exists():
            progress("build guest disk")
            _build(trees, image)
        os.utime(image)
        _prune(home)
    return image


def _trees() -> list[Path]:
    """Return the directories and files that make up the environment, without shared libraries."""
    trees = [Path(sysconfig.get_path("stdlib")), Path("/etc/ld.so.conf.d")]
    for name in GUEST_PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            package = _INSTALLED_AS.get(name, name)
            raise AerostatError(
                f"the lab guest needs the Python package {name}",
                reason="it is not installed for the interpreter that runs aerostat",
                remedy=f"install {package} (apt for python3-bpfcc, pip for the others)",
            )
        origin = Path(spec.origin)
        trees.append(origin.parent if origin.name == "__init__.py" else origin)
    return trees


def _files(trees: Iterable[Path]) -> Iterator[Path]:
    for tree in trees:
        if tree.is_file():  # a module of one file
            yield tree
        for directory, names, files in os.walk(tree):
            names[:] = sorted(n for n in names if n not in _SKIPPED and n != "site-packages")
            yield from (Path(directory) / name for name in sorted(files))


def _fingerprint(trees: list[Path]) -> str:
    digest = hashlib.sha256(f"{LAYOUT} {sys.prefix} {sys.version}".encode())
    digest.update(_start_script())
    for path in _files(trees):
        status = path.lstat()
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _build(trees: list[Path], image: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".build-", dir=image.parent) as work:
        root = Path(work) / "root"
        _lay_out(root)
        files = list(_files(trees))
        files += _libraries([p for p in files if ".so" in p.suffixes or p.suffix == ".so"])
        for path in files:
            _copy(path, root)
        # BCC asks for libbcc by its short name, a link that the copy of what is mapped lacks.
        argv = ["ldconfig", "-r", str(root)]
        run_command(argv, what="cannot index the guest's libraries", remedy="apt install libc-bin")
        _make_disk(root, image)


def _lay_out(root: Path) -> None:
    for name in ("usr/bin", "usr/sbin", "usr/lib/aerostat", "usr/lib64"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    for name in ("dev", "proc", "sys", "tmp", "etc", "opt", "root", "run", "var/tmp"):
        (root / name).mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    shutil.copy2("/etc/ld.so.conf", root / "etc/ld.so.conf")
    busybox = shutil.which("busybox")
    if busybox is None:
        raise AerostatError("the lab needs busybox", remedy="apt install busybox-static")
    shutil.copy2(busybox, root / "usr/bin/busybox")
    for name in _APPLETS:
        (root / "usr/bin" / name).symlink_to("busybox")
    start = root / "usr/lib/aerostat/start"
    start.write_bytes(_start_script())
    start.chmod(0o755)
    # A script and not a link: a venv is recognised by the path its interpreter is called by.
    python = root / "usr/lib/aerostat/python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    _copy(Path(sys.executable), root)
    _copy(Path(sys.executable).parent / "python3", root)
    _copy(Path(sys.base_prefix) / "bin/python3", root)
    if sys.prefix != sys.base_prefix:
        _copy(Path(sys.prefix) / "pyvenv.cfg", root)


def _start_script() -> bytes:
    return resources.files("lab").joinpath("start.sh").read_bytes()


def _libraries(objects: list[Path]) -> list[Path]:
    """Return the shared libraries that the interpreter and these objects load."""
    # BCC opens libbcc by name, so no object lists it: see what a process that imports it maps.
    probe = f"import {', '.join(GUEST_PACKAGES)}; print(open('/proc/self/maps').read())"
    maps = run_command([sys.executable, "-c", probe], what="cannot import what the guest needs")
    mapped = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if ".so" in line}
    argv = ["ldd", os.path.realpath(sys.executable), *map(str, objects), *sorted(mapped)]
    listing = run_command(argv, what="cannot list shared libraries", remedy="apt install libc-bin")
    found = {word for word in listing.split() if word.startswith("/") and not word.endswith(":")}
    return [Path(name) for name in sorted(found | mapped)]


def _copy(path: Path, root: Path) -> None:
    """Copy a file to its own place below `root`, with each link on the way to it."""
    while True:
        # Directories that are links (/lib on a merged /usr, lib64 in a venv) are followed.
        place = Path(os.path.realpath(path.parent)) / path.name
        target = root / place.relative_to("/")
        if target.exists() or target.is_symlink():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_symlink():
            shutil.copy2(path, target)
            return
        link = path.readlink()
        target.symlink_to(link)
        path = place.parent / link


def _make_disk(root: Path, image: Path) -> None:
    content = sum(p.lstat().st_size + 4096 for p in root.rglob("*"))
    blocks = (content * 11 // 10 + (32 << 20)) // 4096
    partial = image.with_suffix(".part")
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal"]
    argv += ["-E", "root_owner=0:0", "-d", str(root), str(partial), str(blocks)]
    try:
        run_command(argv, what="cannot make the guest disk", remedy="apt install e2fsprogs")
        partial.rename(image)
    finally:
        partial.unlink(missing_ok=True)


def _prune(home: Path) -> None:
    """Drop images of environments that are gone; a running QEMU keeps its own open."""
    images = sorted(home.glob("*.ext4"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    for stale in images[KEEP_IMAGES:]:
        stale.unlink(missing_ok=True)
