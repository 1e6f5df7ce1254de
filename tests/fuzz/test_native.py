"""The C that reads requests, built with gcc's sanitizers and fuzzed for AEROSTAT_FUZZ_SECONDS."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.fuzz.test_fuzz import OUT, ROOT, SECONDS, keep_count, python

HERE = Path(__file__).parent
NATIVE = ROOT / "replay" / "native"
SANITIZED = ("-g", "-O1", "-std=gnu11", "-pthread", "-fsanitize=address,undefined")
SANITIZED += ("-fno-sanitize-recover=all", f"-I{NATIVE}")


def build(place: Path, replaced: Mapping[str, Path] = {}) -> Path:
    """The driver and every source of the extension, the latter instrumented for coverage."""
    sources = [path for path in sorted(NATIVE.glob("*.c")) if path.name != "_core.c"]
    objects = []
    for source in (replaced.get(path.name, path) for path in sources):
        built = place / f"{source.stem}.o"
        options = ("-fsanitize-coverage=trace-pc", "-c", "-o", built)
        subprocess.run(["gcc", *SANITIZED, *options, source], check=True)
        objects.append(built)
    program = place / "native"
    driver = HERE / "native.c"
    subprocess.run(["gcc", *SANITIZED, "-o", program, driver, *objects], check=True)
    return program


def run(program: Path, seconds: int, kept: Path, *inputs: Path) -> subprocess.CompletedProcess[str]:
    options = {
        "ASAN_OPTIONS": "abort_on_error=1:detect_leaks=1",
        "UBSAN_OPTIONS": "abort_on_error=1:halt_on_error=1:print_stacktrace=1",
    }
    return subprocess.run(
        [program, str(seconds), kept, *inputs],
        env={**os.environ, **options},
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 120,
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("native"))


def test_no_sanitizer_complains(program: Path, tmp_path: Path) -> None:
    corpus, kept = tmp_path / "corpus", OUT / "native" / "crash"
    kept.parent.mkdir(parents=True, exist_ok=True)
    seeded = python("-m", "tests.fuzz.seeds", "wire", corpus, timeout=120)
    assert seeded.returncode == 0, seeded.stderr
    for seed in corpus.iterdir():  # the second byte of a head is for the device model alone
        seed.write_bytes(seed.read_bytes()[1:])
    inputs = sorted([*corpus.iterdir(), *(HERE / "found" / "native").glob("*")])
    done = run(program, SECONDS, kept, *inputs)
    if done.returncode:
        pytest.fail(f"again with: {program} 0 /dev/null {kept}\n{done.stderr[-4000:]}", False)
    found = json.loads(done.stdout)
    assert found["executions"] > 4 * len(inputs)
    keep_count("native", seconds=SECONDS, seeds=len(inputs), **found)
