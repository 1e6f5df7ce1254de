"""Fuzzes what reads bytes that nobody vouches for, AEROSTAT_FUZZ_SECONDS a target.

An input that makes a target fail is kept in out/fuzz/TARGET. Mend the defect, and put the input in
tests/fuzz/found/TARGET: every run begins with those.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOUND = Path(__file__).parent / "found"
OUT = ROOT / "out" / "fuzz"
SECONDS = int(os.environ.get("AEROSTAT_FUZZ_SECONDS", "10"))
TARGETS = {"wire": 8192, "ring": 4096, "segment": 16384, "manifest": 16384, "trace": 16384}
"""Most bytes of an input."""
MEMORY_MB = 2048
SHARED_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
INPUT_SECONDS = 10
STATISTIC = re.compile(r"stat::(\w+):\s+(\d+)")


def python(*arguments: object, timeout: int) -> subprocess.CompletedProcess[str]:
    """Run Python on files that are not on a disk where that is possible, and gone afterwards."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as place:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": place},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout,
        )


def keep_count(target: str, **counts: int) -> None:
    """Add a line to out/fuzz/counts.jsonl, and print it."""
    line = json.dumps({"target": target, **counts})
    print(line)
    with (OUT / "counts.jsonl").open("a") as file:
        file.write(line + "\n")


def fail_with_input(target: str, report: str) -> None:
    """Fail with the input that was kept and how to run it again."""
    kept = re.findall(r"written to (\S+)", report)
    again = f"python -m tests.fuzz.{target} {kept[-1] if kept else '(no input was kept)'}"
    pytest.fail(f"{target} failed; again with: {again}\n{report[-4000:]}", pytrace=False)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_escapes(target: str, tmp_path: Path) -> None:
    """Coverage-guided, from real requests and files; then every input ever found to fail."""
    corpus, artifacts = tmp_path / "corpus", OUT / target
    artifacts.mkdir(parents=True, exist_ok=True)
    seeded = python("-m", "tests.fuzz.seeds", target, corpus, timeout=120)
    assert seeded.returncode == 0, seeded.stderr
    known = sorted((FOUND / target).glob("*"))
    options = [
        f"-max_total_time={SECONDS}",
        f"-max_len={TARGETS[target]}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-timeout={INPUT_SECONDS}",
        f"-artifact_prefix={artifacts}/",
        "-print_final_stats=1",
    ]
    if known:
        again = python("-m", f"tests.fuzz.{target}", *known, timeout=120)
        if again.returncode:
            fail_with_input(target, again.stderr)
    done = python("-m", f"tests.fuzz.{target}", corpus, *options, timeout=SECONDS + 180)
    if done.returncode:
        fail_with_input(target, done.stdout + done.stderr)
    found = {name: int(value) for name, value in STATISTIC.findall(done.stderr)}
    assert found["number_of_executed_units"] > int(seeded.stdout)
    covered = re.findall(r"cov: (\d+)", done.stderr)
    keep_count(
        target,
        seconds=SECONDS,
        seeds=int(seeded.stdout),
        executions=found["number_of_executed_units"],
        new_inputs=found["new_units_added"],
        branches=int(covered[-1]),
        peak_rss_mb=found["peak_rss_mb"],
    )
