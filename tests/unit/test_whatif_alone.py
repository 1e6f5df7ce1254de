"""`aerostat whatif` needs no privilege and none of the guest's memory: really run."""

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.capture_bundle import write_host
from tests.unit.command import run
from tests.unit.test_bad_machine import NOBODY, require_readable, unprivileged
from tracer.trace.manifest import Region

GUEST_BYTES = 64 << 30
"""Far more address space than a process that maps none of it uses."""
LOOKED_AT = """
import sys
from pathlib import Path
from aerostat.cli import main
code = main(sys.argv[1:])
sys.stdout.flush()
sys.stderr.write(Path("/proc/self/status").read_text())
sys.exit(code)
"""


@pytest.fixture
def trace() -> Iterator[Path]:
    """A trace of a large guest where any user may read it; tmp_path is its owner's alone."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        region = Region("ram", 0, None, GUEST_BYTES, "anon", 4096)
        yield write_host(Path(place) / "large.balloon", regions=(region,))


def status(text: str) -> dict[str, str]:
    """Fields of /proc/PID/status."""
    return dict(re.findall(r"^(\w+):\t\s*(.*)$", text, re.MULTILINE))


def test_whatif_counts_every_strategy_without_privilege_or_guest_memory(trace: Path) -> None:
    require_readable()
    looking = [sys.executable, "-c", LOOKED_AT]
    done = run(["whatif", trace, "--json"], command=looking, cwd="/", **unprivileged())
    assert done.returncode == 0, done.stderr
    found = status(done.stderr)
    assert set(found["Uid"].split()) != {"0"}
    assert int(found["CapEff"], 16) == int(found["CapPrm"], 16) == 0
    if unprivileged():
        assert set(found["Uid"].split()) == {str(NOBODY)}
    # The most address space that the process ever had: guest memory would be in it, touched or not.
    assert int(found["VmPeak"].split()[0]) << 10 < GUEST_BYTES
    counted = {each["name"]: each["operations"] for each in json.loads(done.stdout)["strategies"]}
    assert counted["qemu"] == 256 + 128 + 128 + 2
    assert counted["oracle"] > 0
