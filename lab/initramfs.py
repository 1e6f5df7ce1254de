"""Packs the guest's first file system: busybox, kernel modules, the project, compiled programs.

The archive is the "newc" cpio form that Linux unpacks (kernel:
Documentation/driver-api/early-userspace/buffer-format.rst). It is built in memory for every boot,
so the guest always runs this checkout.
"""

import compileall
import lzma
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from lab.guest_programs import kept_programs
from lab.pairs import Kernel
from tracer.trace.errors import AerostatError

MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "overlay",
    "virtio_balloon",
)
"""Insert order: each module's needs come before it. ext4 is built into Debian's cloud kernels."""
PROJECT_PACKAGES = ("aerostat", "bpf", "lab", "replay", "tracer")
PROJECT_SUFFIXES = (".py", ".pyc", ".c", ".h", ".sh", ".so", ".toml")
PROJECT_IN_GUEST = "/opt/aerostat"
_DIRECTORY, _FILE, _LINK = 0o040755, 0o100755, 0o120777


class Cpio:
    """A cpio archive that grows in memory; parent directories are added as needed."""

    def __init__(self) -> None:
        self._parts = bytearray()
        self._directories: set[str] = set()
        self._count = 0

    def file(self, name: str, content: bytes, mtime_s: int = 0) -> None:
        """Add a regular, executable file at a path relative to the root."""
        self._add(name, _FILE, content, mtime_s)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(name, _LINK, target.encode(), 0)

    def directory(self, name: str) -> None:
        """Add a directory and its parents, once."""
        if name not in self._directories:
            self._directories.add(name)
            self._add(name, _DIRECTORY, b"", 0)

    def close(self) -> bytes:
        """End the archive and return it."""
        self._entry("TRAILER!!!", 0, b"", 0)
        return bytes(self._parts)

    def _add(self, name: str, mode: int, content: bytes, mtime_s: int) -> None:
        parent = name.rpartition("/")[0]
        if parent:
            self.directory(parent)
        self._entry(name, mode, content, mtime_s)

    def _entry(self, name: str, mode: int, content: bytes, mtime_s: int) -> None:
        self._count += 1
        links = 2 if mode == _DIRECTORY else 1
        encoded = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device (4 words), name size, checksum
        words = (self._count, mode, 0, 0, links, mtime_s, len(content), 0, 0, 0, 0, len(encoded), 0)
        self._parts += b"070701" + b"".join(b"%08x" % word for word in words) + encoded
        self._pad()
        self._parts += content
        self._pad()

    def _pad(self) -> None:
        self._parts += bytes(-len(self._parts) % 4)


def build_initramfs(kernel: Kernel, project: Path) -> bytes:
    """Return the initial file system for one boot.

    Args:
        kernel: Whose modules to pack.
        project: The checkout (or site-packages directory) whose packages the guest shall run.

    Raises:
        AerostatError: busybox or a module is missing.
    """
    archive = Cpio()
    archive.file("init", resources.files("lab").joinpath("init.sh").read_bytes())
    archive.file("bin/busybox", _busybox().read_bytes())
    archive.link("bin/sh", "busybox")
    for name in ("dev", "proc", "sys", "lower", "upper", "newroot"):
        archive.directory(name)
    builtin = {Path(n).stem for n in (kernel.modules / "modules.builtin").read_text().split()}
    for position, name in enumerate(MODULES):
        if name not in builtin:
            archive.file(f"modules/{position:02d}-{name}.ko", _module(kernel, name))
    for path in kept_programs():
        archive.file(f"programs/{path.name}", path.read_bytes())
    for path, relative in project_files(project):
        archive.file(f"project/{relative}", path.read_bytes(), int(path.stat().st_mtime))
    return archive.close()


def project_files(project: Path) -> Iterator[tuple[Path, str]]:
    """Yield `(path, path relative to the project)` of each file the guest may need to run it."""
    for package in PROJECT_PACKAGES:
        # An emulated guest takes seconds to compile what this machine compiles at once.
        compileall.compile_dir(project / package, quiet=2)
        for path in sorted((project / package).rglob("*")):
            if path.suffix in PROJECT_SUFFIXES and path.is_file():
                yield path, path.relative_to(project).as_posix()


def _busybox() -> Path:
    found = shutil.which("busybox")
    if found is None:
        raise AerostatError("the lab needs busybox", remedy="apt install busybox-static")
    path = Path(found)
    if b"/lib64/ld-linux" in path.read_bytes()[:4096]:
        reason = f"{found} needs shared libraries, which the first file system lacks"
        raise AerostatError(
            "busybox is not static", reason=reason, remedy="apt install busybox-static"
        )
    return path


def _module(kernel: Kernel, name: str) -> bytes:
    for path in kernel.modules.rglob(f"{name}.ko*"):
        content = path.read_bytes()
        if path.suffix == ".ko":
            return content
        if path.suffix == ".xz":
            return lzma.decompress(content)
    raise AerostatError(
        f"kernel {kernel.release} has no module {name}",
        reason=f"looked for {name}.ko and {name}.ko.xz below {kernel.modules}",
        remedy="use a Debian linux-image-*-cloud-amd64 package",
    )
