"""What closing a ledger, and showing a trace, takes of memory, however long the trace."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.flood_trace import write_guest, write_host
from tracer.account.merge import merge_sides

MIB = 1 << 20
REQUESTS = 12_000
"""Three million pages, and as many calls where they are recorded: 380 MiB as Arrow rows."""
LARGE = 28 * MIB


def peak_bytes(path: Path, what: str) -> int:
    """Most that a process of its own takes for a trace, over what it takes for a small one.

    Arrow takes its memory from the system: its own allocator keeps some MiB for each thread, more
    or fewer by chance, which nobody holds.
    """
    command = [sys.executable, "-m", "tests.bench.peak", str(path), what]
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(run.stdout)


@pytest.fixture(scope="module")
def flood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host's trace with a call for each page."""
    return write_host(tmp_path_factory.mktemp("flood") / "host.balloon", REQUESTS)


def test_closing_the_ledger_of_a_flood_of_calls_holds_a_batch_at_a_time(flood: Path) -> None:
    assert peak_bytes(flood, "account") < LARGE


def test_showing_it_holds_a_batch_at_a_time_too(flood: Path) -> None:
    """Its requests are held against the guest's memory, of which the trace has a map."""
    assert peak_bytes(flood, "show") < LARGE


def test_closing_a_guests_ledger_holds_a_batch_at_a_time(tmp_path: Path) -> None:
    guest = write_guest(tmp_path / "guest.balloon", 2 * REQUESTS)
    assert peak_bytes(guest, "account") < LARGE


def test_joining_both_sides_keeps_some_bytes_of_a_request_and_none_of_a_page(
    tmp_path: Path,
) -> None:
    host = write_host(tmp_path / "host.balloon", 2 * REQUESTS, calls=False, lossy=True)
    merge_sides(host, write_guest(tmp_path / "guest.balloon", 2 * REQUESTS))
    # 140 MiB of ranges, as Arrow has them.
    assert peak_bytes(host, "account") < LARGE + 2 * REQUESTS * 1024
