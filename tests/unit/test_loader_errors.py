"""What a user is told whose machine lacks what recording needs."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRY_IMPORT = """
from tracer.loader import import_bcc
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
    assert "pip uninstall bcc" in text


def test_recording_without_root_says_what_to_do(tmp_path):
    code = """
import os
os.setuid(65534)
from tracer.privilege import require_root
from tracer.trace.errors import AerostatError
try:
    require_root("process 1")
except AerostatError as error:
    print(int(error.exit_code)); print(error)
"""
    if os.geteuid() != 0:
        code = code.replace("os.setuid(65534)\n", "")
    text = run(code)
    assert text.startswith("6\n")
    assert "without root" in text
    assert "sudo" in text
