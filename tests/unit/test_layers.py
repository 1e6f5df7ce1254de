"""Who may import whom (docs/architecture.md), read from the source, late and typing imports too."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("aerostat", "bpf", "lab", "replay", "tracer")
ALLOWED = {
    "aerostat": {"aerostat", "lab", "tracer", "replay"},
    "lab": {"lab", "tracer", "bpf"},
    "tracer": {"tracer", "bpf"},
    "replay": {"replay", "tracer.trace"},
    "tracer.trace": {"tracer.trace"},
    "bpf": {"bpf"},
}
ONLY_IN = {
    "bcc": ("tracer/engine/compiler.py",),
    "elftools": ("tracer/sites/elf.py",),
    "click": ("aerostat/",),
    "rich": ("aerostat/",),
    "prometheus_client": ("aerostat/metrics.py",),
    "qemu": ("lab/qmp.py",),
}
PURE = ("replay/strategies/", "replay/plan.py", "replay/ranges.py")
IMPURE = {"mmap", "os", "ctypes", "time"}


def imported(source: str, package: str) -> Iterator[str]:
    """Every module a source file imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func)
            name = node.args[0]
            if called.endswith(("import_module", "__import__")) and isinstance(name, ast.Constant):
                yield str(name.value)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def violations(path: str, source: str) -> list[str]:
    """What a file at this path (relative to the root) may not import."""
    package = ".".join(Path(path).parent.parts)
    layer = "tracer.trace" if within(package, "tracer.trace") else package.split(".")[0]
    found = []
    for module in sorted(set(imported(source, package))):
        top = module.split(".")[0]
        if top in PACKAGES and not any(within(module, name) for name in ALLOWED[layer]):
            found.append(f"{path} imports {module}")
        if top in ONLY_IN and not path.startswith(ONLY_IN[top]):
            found.append(f"{path} imports {module}")
        if path.startswith(PURE) and top in IMPURE:
            found.append(f"{path} imports {module}")
    return found


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_no_package_reaches_over_its_wall() -> None:
    found = []
    for path in sources():
        found += violations(str(path.relative_to(ROOT)), path.read_text())
    assert found == []
    assert len(sources()) > 10


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("replay/worker.py", "from tracer import elf"),
        ("replay/worker.py", "import tracer.trace.reader, tracer.host_side.host"),
        ("replay/worker.py", "def f():\n    from lab.vm import Vm"),
        (
            "tracer/host_side/host.py",
            "import typing\nif typing.TYPE_CHECKING:\n    import replay.plan",
        ),
        ("tracer/trace/reader.py", "from ..elf import symbols"),
        ("tracer/engine/loader.py", "import bcc"),
        ("tracer/btf.py", "import importlib\nimportlib.import_module('bcc')"),
        ("tracer/btf.py", "from elftools.elf import elffile"),
        ("replay/results.py", "import click"),
        ("aerostat/verbs/record.py", "import prometheus_client"),
        ("lab/vm.py", "from qemu.qmp import QMPClient"),
        ("lab/vm.py", "import aerostat"),
        ("replay/strategies/huge.py", "from time import monotonic_ns"),
        ("replay/plan.py", "import os.path"),
    ],
)
def test_the_check_sees_a_forbidden_import(path: str, source: str) -> None:
    assert violations(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("replay/worker.py", "import os, mmap\nfrom tracer.trace.reader import open_trace"),
        ("tracer/engine/compiler.py", "import bcc"),
        ("aerostat/render.py", "import rich.table\nfrom lab.session import run_lab"),
        ("tracer/trace/reader.py", "from .errors import TraceError"),
        ("replay/strategies/huge.py", "import operator\nimport timeit"),
    ],
)
def test_the_check_lets_a_lawful_import_pass(path: str, source: str) -> None:
    assert violations(path, source) == []


@pytest.mark.parametrize("module", ["aerostat", "aerostat.cli", "replay", "tracer.trace"])
def test_import_needs_no_capture_library(module: str) -> None:
    assert loaded_by(f"import {module}") == []


def loaded_by(statement: str) -> list[str]:
    """Which capture libraries a fresh interpreter has loaded after a statement."""
    late = {"bcc", "elftools", "prometheus_client", "qemu"}
    code = f"{statement}\nimport sys\nprint(*({late} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.split()


@pytest.mark.parametrize("verb", ["show", "whatif", "replay", "compare"])
def test_offline_verbs_need_no_capture_library(verb: str, tmp_path: Path) -> None:
    """The verb really runs here, on a path that is no trace, so late imports are seen as well."""
    missing = str(tmp_path / "missing.balloon")
    arguments = [verb, missing] + ([missing] if verb == "compare" else [])
    statement = f"from aerostat.cli import main\nassert main({arguments!r}) == 1"
    assert loaded_by(statement) == []
