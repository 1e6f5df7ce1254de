"""What a user is told whose machine lacks what recording needs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRY_IMPORT = """
from tracer.engine.compiler import import_bcc
from tracer.trace.errors import AerostatError
try:
    import_bcc()
except AerostatError as error:
    print(int(error.exit_code)); print(error)
"""


def run(code: str, *, path: Path | None = None, isolated: bool = False) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{path or ''}{os.pathsep}{ROOT}"}
    # -S leaves out site-packages, and with them any BCC there may be.
    argv = [sys.executable, *(["-S"] if isolated else []), "-c", code]
    return subprocess.run(
        argv, check=True, capture_output=True, text=True, env=environment, cwd="/"
    ).stdout


def test_no_bcc_names_the_package_to_install():
    text = run(TRY_IMPORT, isolated=True)
    assert text.startswith("6\n")
    assert "apt-get install python3-bpfcc" in text
    assert "--system-site-packages" in text


def test_the_unrelated_package_of_that_name_is_told_apart(tmp_path):
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "__init__.py").write_text('"""N-dim BCC lattice."""\n')
    text = run(TRY_IMPORT, path=tmp_path)
    assert text.startswith("6\n")
    assert "is not BCC" in text
    assert "pip uninstall --yes bcc" in text


def test_bcc_without_its_library_says_which_package_to_mend(tmp_path):
    """The real package, made to look for a version of its library that is not installed."""
    source = Path("/usr/lib/python3/dist-packages/bcc")
    if not source.exists():
        pytest.skip("needs python3-bpfcc")
    shutil.copytree(source, tmp_path / "bcc")
    library = tmp_path / "bcc" / "libbcc.py"
    library.write_text(library.read_text().replace("libbcc.so.0", "libbcc.so.999"))
    text = run(TRY_IMPORT, path=tmp_path)
    assert text.startswith("6\n")
    assert "libbcc.so.999: cannot open shared object file" in text
    assert "apt-get install --reinstall libbpfcc" in text
