"""The reference traces are what traces/manifest.toml says, whole, and open in every tool."""

import hashlib
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.compute as pc
import pytest

from aerostat.cli import cli
from tracer.account.ledger import ledger
from tracer.trace.check import check_trace
from tracer.trace.reader import Trace, open_trace
from tracer.trace.schema import TABLES, Side

ROOT = Path(__file__).parents[2]
TRACES = ROOT / "traces"
ENTRIES = tomllib.loads((TRACES / "manifest.toml").read_text())["trace"]
MAX_BYTES = 1 << 20

each = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])


def bundle(entry: dict) -> Path:
    return TRACES / f"{entry['name']}.balloon"


def opened(entry: dict) -> Trace:
    return open_trace(bundle(entry))


def sha256_of_bundle(path: Path) -> str:
    """As traces/README.md states it, and sha256sum does it."""
    names = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    lines = (
        f"{hashlib.sha256(names[name].read_bytes()).hexdigest()}  {name}\n"
        for name in sorted(names, key=str.encode)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_every_trace_is_listed() -> None:
    assert {f"{entry['name']}.balloon" for entry in ENTRIES} == {
        path.name for path in TRACES.iterdir() if path.is_dir()
    }
    text = (TRACES / "README.md").read_text()
    assert all(f"`{entry['name']}.balloon`" in text for entry in ENTRIES)


def test_git_keeps_every_file() -> None:
    files = [str(path.relative_to(ROOT)) for path in TRACES.rglob("*") if path.is_file()]
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ignored.returncode, ignored.stdout) == (1, "")


@each
def test_the_bytes_are_those_that_were_captured(entry: dict) -> None:
    size_bytes = sum(file.stat().st_size for file in bundle(entry).rglob("*") if file.is_file())
    assert size_bytes == entry["bytes"] < MAX_BYTES
    assert sha256_of_bundle(bundle(entry)) == entry["sha256"]


def test_the_stated_command_gives_the_same_sum() -> None:
    text = (TRACES / "README.md").read_text()
    match = re.search(r"^    (find .*)$", text, re.MULTILINE)
    assert match
    done = subprocess.run(
        ["sh", "-c", match[1]], cwd=bundle(ENTRIES[0]), capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0] == ENTRIES[0]["sha256"]


@each
def test_the_entry_says_what_the_trace_says(entry: dict) -> None:
    trace = opened(entry)
    manifest = trace.manifest
    vm = manifest.vm
    assert vm is not None
    said = {
        "format_version": manifest.format_version,
        "session_id": manifest.session_id,
        "vmm": vm.vmm,
        "vmm_version": vm.vmm_version,
        "accelerator": vm.accel,
        "memory_bytes": vm.memory_bytes,
        "vcpus": vm.vcpus,
        "guest_kernel": manifest.sides["guest"].kernel_release,
        "host_kernel": manifest.sides["host"].kernel_release,
        "requests": trace.table("requests", Side.HOST).num_rows,
        "pages": pc.sum(trace.table("requests", Side.HOST)["pages"]).as_py(),
    }
    assert {key: entry[key] for key in said} == said


@each
def test_the_command_is_one_and_fits_the_trace(entry: dict) -> None:
    program, verb, *arguments = shlex.split(entry["command"])
    assert (program, verb) == ("aerostat", "lab")
    command = cli.get_command(None, verb)
    context = command.make_context(verb, arguments)
    vm = opened(entry).manifest.vm
    assert context.params["scenario"] == opened(entry).manifest.scenario
    assert context.params["memory"] == vm.memory_bytes
    assert vm.vmm_version.startswith(context.params["pair"])
    assert context.params["output"].name == bundle(entry).name


@each
def test_nothing_is_wrong_or_missing(entry: dict) -> None:
    trace = opened(entry)
    assert check_trace(trace) == []
    assert trace.is_complete
    assert trace.losses == ()
    assert trace.sides == (Side.HOST, Side.GUEST)
    assert ledger(trace).balanced is True


@each
@pytest.mark.parametrize("name", TABLES)
def test_every_tool_reads_the_same_rows(name: str, entry: dict) -> None:
    trace = opened(entry)
    rows = trace.table(name).num_rows
    assert rows > 0
    files = sorted((bundle(entry) / name).glob("*.arrow"))
    assert sum(len(pd.read_feather(file)) for file in files) == rows
    lazy = pl.scan_ipc([str(file) for file in files])
    assert lazy.select(pl.len()).collect().item() == rows
    with duckdb.connect() as connection:
        connection.register("found", trace.dataset(name))
        assert connection.sql("select count(*) from found").fetchall() == [(rows,)]


@each
def test_every_tool_adds_up_the_same_pages(entry: dict) -> None:
    trace = opened(entry)
    files = sorted((bundle(entry) / "requests").glob("*.arrow"))
    pages = pc.sum(trace.table("requests")["pages"]).as_py()
    assert sum(int(pd.read_feather(file)["pages"].sum()) for file in files) == pages
    assert pl.scan_ipc([str(f) for f in files]).select(pl.col("pages").sum()).collect().item() == (
        pages
    )
    with duckdb.connect() as connection:
        connection.register("requests", trace.dataset("requests"))
        assert connection.sql("select sum(pages) from requests").fetchall() == [(pages,)]
