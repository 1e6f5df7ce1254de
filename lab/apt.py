"""Asks apt for packages without touching the machine's own apt state."""

import re
from collections.abc import Iterator
from pathlib import Path

from lab.command import run_command
from tracer.trace.errors import AerostatError

DEBIAN_RELEASE = "bookworm"
"""The Debian release the lab's guest kernels and emulators come from."""
SOURCES = Path("/etc/apt")
_REMEDY = "check the network and the Debian mirror in /etc/apt/sources.list.d"


class PrivateApt:
    """The machine's mirror, with lists and archives kept in one private directory.

    Args:
        home: Directory for apt's lists, archives and sources list.
        suite: Suite to prefer, for example `bookworm-backports`; None for the stable suites.
    """

    def __init__(self, home: Path, suite: str | None) -> None:
        self._home = home
        self._suite = suite
        self._updated = False

    def kernel_package(self, meta: str) -> str:
        """Return the versioned kernel package that a meta package depends on.

        Raises:
            AerostatError: The meta package names none.
        """
        argv = ["apt-cache", *self._options(), "show", "--no-all-versions", meta]
        text = run_command(argv, what=f"apt does not know {meta}", remedy=_REMEDY)
        found = re.search(r"^Depends:.*?(linux-image-\d[^\s,]*)", text, re.MULTILINE)
        if found is None:
            raise AerostatError(f"{meta} names no kernel package", remedy=_REMEDY)
        return found.group(1)

    def packages_for(self, package: str) -> list[str]:
        """Return the package and those of its dependencies that this machine lacks."""
        argv = ["apt-get", *self._options(), "install", "--print-uris", "-qq", "-y"]
        argv += ["--no-install-recommends", package]
        text = run_command(argv, what=f"apt cannot resolve {package}", remedy=_REMEDY)
        return re.findall(r"^'[^']*' ([a-z0-9][a-z0-9+.-]*)_", text, re.MULTILINE)

    def download(self, packages: list[str], target: Path) -> list[Path]:
        """Download packages into a directory; apt checks their signatures.

        Raises:
            AerostatError: A package cannot be fetched.
        """
        argv = ["apt-get", *self._options(), "download", *packages]
        what = f"cannot download {', '.join(packages)}"
        run_command(argv, what=what, remedy=_REMEDY, cwd=target)
        return sorted(target.glob("*.deb"))

    def _options(self) -> list[str]:
        if not self._updated:
            self._prepare()
        return self._flags()

    def _flags(self) -> list[str]:
        settings = {
            "Dir::Etc::sourcelist": self._home / "sources.list",
            "Dir::Etc::sourceparts": self._home / "empty",
            "Dir::Etc::preferences": self._home / "none",
            "Dir::Etc::preferencesparts": self._home / "empty",
            "Dir::State::lists": self._home / "lists",
            "Dir::Cache": self._home / "cache",
            # apt's own user could not write below a private cache directory.
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
        }
        if self._suite is not None:
            settings["APT::Default-Release"] = self._suite
        return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]

    def _prepare(self) -> None:
        for part in ("empty", "lists/partial", "cache/archives/partial"):
            (self._home / part).mkdir(parents=True, exist_ok=True)
        (self._home / "sources.list").write_text("".join(private_sources(SOURCES, self._suite)))
        argv = ["apt-get", *self._flags(), "update"]
        run_command(argv, what="cannot read the Debian package lists", remedy=_REMEDY)
        self._updated = True


def private_sources(etc: Path, suite: str | None) -> list[str]:
    """Return source lines on the mirrors that this machine already uses.

    Args:
        etc: The machine's `/etc/apt`.
        suite: A further suite, taken from the mirror that serves the release itself.

    Raises:
        AerostatError: The machine's sources name no mirror of the Debian release.
    """
    mirrors: dict[str, str] = {}
    for uri, name in machine_sources(etc):
        mirrors.setdefault(name, uri)
    if DEBIAN_RELEASE not in mirrors:
        raise AerostatError(
            f"this machine's apt sources name no mirror of Debian {DEBIAN_RELEASE}",
            reason=f"looked in {etc}",
            remedy="add one, or pass an unpacked kernel and a QEMU binary of your own",
        )
    suites = [DEBIAN_RELEASE]
    if suite is not None:
        mirrors.setdefault(suite, mirrors[DEBIAN_RELEASE])
        suites.append(suite)
    security = f"{DEBIAN_RELEASE}-security"
    if security in mirrors:
        suites.append(security)
    return [f"deb {mirrors[name]} {name} main\n" for name in suites]


def machine_sources(etc: Path) -> Iterator[tuple[str, str]]:
    """Yield `(uri, suite)` of each binary source in `/etc/apt`, one-line and deb822 style."""
    parts = etc / "sources.list.d"
    for path in [etc / "sources.list", *sorted(parts.glob("*.list"))]:
        if path.is_file():
            for line in path.read_text(errors="replace").splitlines():
                found = re.match(r"deb\s+(?:\[[^]]*\]\s*)?(\S+)\s+(\S+)\s", line)
                if found:
                    yield found.group(1), found.group(2)
    for path in sorted(parts.glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text(errors="replace")):
            keys = dict(re.findall(r"^(Types|URIs|Suites):\s*(.*)$", stanza, re.MULTILINE))
            if "deb" in keys.get("Types", "").split():
                for uri in keys.get("URIs", "").split():
                    for name in keys.get("Suites", "").split():
                        yield uri, name
