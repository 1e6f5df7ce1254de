"""Pairs of QEMU and guest kernel that a lab VM can be made of, fetched with apt, never installed.

A pair's Debian packages are unpacked below the cache directory. The mirror is the one this
machine's own apt sources name; apt's lists and archives stay private to the cache, so the machine's
own apt state is not touched.
"""

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab.apt import PrivateApt
from lab.cache import cache_lock
from lab.command import run_command
from tracer.trace.errors import AerostatError
from tracer.trace.progress import Progress, silent

QEMU_BINARY = "qemu-system-x86_64"


@dataclass(frozen=True)
class PairSpec:
    """Which packages make a pair.

    Attributes:
        suite: Debian suite to take both from; None lets apt choose within the stable suites.
        qemu_version: What the emulator's own version must start with.
    """

    suite: str | None
    qemu_version: str


PAIRS = {
    "7.2": PairSpec(suite=None, qemu_version="7.2"),
    "10.0": PairSpec(suite="bookworm-backports", qemu_version="10.0"),
}
DEFAULT_PAIR = "7.2"


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package.

    Attributes:
        image: The bootable `vmlinuz`.
        modules: Its `lib/modules/RELEASE` directory.
    """

    image: Path
    modules: Path

    @property
    def release(self) -> str:
        """What `uname -r` says in the guest."""
        return self.modules.name


@dataclass(frozen=True)
class Qemu:
    """An emulator to run.

    Attributes:
        binary: The executable.
        data: Directories for `-L`, searched before its built-in ones.
        libraries: Directory of shared libraries it needs beyond the machine's own.
    """

    binary: Path
    data: tuple[Path, ...] = ()
    libraries: Path | None = None

    def environment(self) -> dict[str, str]:
        """Return the variables the emulator needs to find its libraries and loadable parts."""
        if self.libraries is None:
            return {}
        return {
            "LD_LIBRARY_PATH": str(self.libraries),
            "QEMU_MODULE_DIR": str(self.libraries / "qemu"),
        }

    def version(self) -> str:
        """Return the version the binary reports, for example `7.2.22`."""
        text = run_command(
            [str(self.binary), "--version"],
            what=f"cannot run {self.binary}",
            remedy="install qemu-system-x86",
            env=self.environment(),
        )
        found = re.search(r"version (\d[\w.]*)", text)
        if found is None:
            raise AerostatError(f"{self.binary} is not QEMU", reason=text[:200])
        return found.group(1)


@dataclass(frozen=True)
class Pair:
    """One emulator and one kernel."""

    name: str
    qemu: Qemu
    kernel: Kernel


def find_kernel(root: Path) -> Kernel:
    """Return the kernel in an unpacked package.

    Args:
        root: Directory that holds `boot/vmlinuz-*` and `lib/modules/*` (or `usr/lib/modules/*`).

    Raises:
        AerostatError: There is not exactly one of each.
    """
    images = sorted((root / "boot").glob("vmlinuz-*"))
    modules = [p for d in ("lib", "usr/lib") for p in sorted((root / d / "modules").glob("*"))]
    if len(images) != 1 or len(modules) != 1:
        raise AerostatError(
            f"{root} does not hold one unpacked kernel",
            reason=f"{len(images)} images in boot/, {len(modules)} directories in lib/modules/",
            remedy="unpack one linux-image package there with `dpkg-deb -x`",
        )
    return Kernel(image=images[0], modules=modules[0])


def ensure_pair(name: str = DEFAULT_PAIR, progress: Progress = silent) -> Pair:
    """Return a pair, fetching and unpacking what the cache lacks.

    The installed emulator is used if its version fits the pair, else its packages are unpacked.

    Args:
        name: A key of `PAIRS`.
        progress: Told about each package step.

    Raises:
        AerostatError: No such pair, or apt cannot fetch it.
    """
    if name not in PAIRS:
        known = ", ".join(PAIRS)
        raise AerostatError(f"there is no lab pair named {name!r}", remedy=f"use one of: {known}")
    spec = PAIRS[name]
    with cache_lock(f"pair-{name}") as base:
        home = base / "pairs" / name
        apt = PrivateApt(base / "apt" / (spec.suite or "stable"), spec.suite)
        if not (home / "kernel").is_dir():
            progress("fetch kernel")
            _unpack(apt, [apt.kernel_package("linux-image-cloud-amd64")], home / "kernel")
        qemu = _installed_qemu(spec)
        if qemu is None and not (home / "qemu").is_dir():
            progress("fetch QEMU")
            _unpack(apt, apt.packages_for("qemu-system-x86"), home / "qemu")
    return Pair(name, qemu or _unpacked_qemu(home / "qemu"), find_kernel(home / "kernel"))


def _installed_qemu(spec: PairSpec) -> Qemu | None:
    path = shutil.which(QEMU_BINARY)
    if path is None:
        return None
    qemu = Qemu(Path(path))
    return qemu if qemu.version().startswith(spec.qemu_version) else None


def _unpacked_qemu(root: Path) -> Qemu:
    libraries = root / "usr" / "lib" / "x86_64-linux-gnu"
    shares = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
    data = tuple(root / share for share in shares if (root / share).is_dir())
    return Qemu(root / "usr" / "bin" / QEMU_BINARY, data, libraries)


def _unpack(apt: PrivateApt, packages: list[str], target: Path) -> None:
    """Download packages and unpack them to `target`, which appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=target.parent) as work:
        tree = Path(work) / "tree"
        for archive in apt.download(packages, Path(work)):
            argv = ["dpkg-deb", "-x", str(archive), str(tree)]
            run_command(argv, what=f"cannot unpack {archive.name}", remedy="install dpkg")
        tree.rename(target)
