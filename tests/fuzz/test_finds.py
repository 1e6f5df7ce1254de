"""The fuzzers find what they are for: a planted defect in Python, and one in C."""

import re
from pathlib import Path

from tests.fuzz import test_native
from tests.fuzz.test_fuzz import ROOT, python

BROKEN = """
import sys
sys.path.insert(0, {place!r})
from tests.fuzz.engine import explore, instrumented
with instrumented("planted"):
    import planted
explore(planted.one)
"""
PLANTED = """
def one(data):
    if len(data) > 3 and data[0] == 0x42:
        if data[1] == 0x99:
            if data[2] == data[3]:
                raise RuntimeError("found me")
"""


def test_branches_guide_to_a_planted_defect(tmp_path: Path) -> None:
    """Three bytes deep: blind bytes would need some ten million tries."""
    (tmp_path / "planted.py").write_text(PLANTED)
    target = tmp_path / "target.py"
    target.write_text(BROKEN.format(place=str(tmp_path)))
    options = ["-max_total_time=60", "-runs=500000", f"-artifact_prefix={tmp_path}/"]
    done = python(
        "-c",
        f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r});"
        f" runpy.run_path({str(target)!r}, run_name='__main__')",
        *options,
        timeout=120,
    )
    assert done.returncode != 0
    assert "found me" in done.stdout + done.stderr
    (kept,) = tmp_path.glob("crash-*")
    assert kept.read_bytes()[:2] == b"\x42\x99"


def test_a_decoder_that_reads_too_far_is_seen(tmp_path: Path) -> None:
    """stages.c with the bound of its words taken away: eight bytes are read where four are left."""
    source = (test_native.NATIVE / "stages.c").read_text()
    broken, count = re.subn(r"end - at >= 8; at \+= 8", "end - at >= 4; at += 8", source)
    assert count == 1
    (tmp_path / "stages.c").write_text(broken)
    program = test_native.build(tmp_path, replaced={"stages.c": tmp_path / "stages.c"})
    kept, seed = tmp_path / "crash", tmp_path / "seed"
    seed.write_bytes(bytes(9 + 16 + 4))
    done = test_native.run(program, 20, kept, seed)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
    assert kept.stat().st_size > 0
