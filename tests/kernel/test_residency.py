"""Which pages are resident: by both of the kernel's ways, in pieces, of a process that ends."""

import mmap
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from tracer.errors import ProcessError
from tracer.record import residency

PAGE = mmap.PAGESIZE
PAGES = 300
TOUCHED = (*range(0, 9), *range(62, 67), 128, 200, 201, 299)


@pytest.fixture
def memory():
    """Pages of which some are touched, and their address."""
    made = mmap.mmap(-1, PAGES * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    made.madvise(mmap.MADV_NOHUGEPAGE)
    for page in TOUCHED:
        made[page * PAGE] = 1
    view = np.frombuffer(made, np.uint8)
    address = view.ctypes.data
    del view
    yield address
    made.close()


@pytest.fixture
def pagemap():
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    yield fd
    os.close(fd)


RUNS = [[0, 9], [62, 67], [128, 129], [200, 202], [299, 300]]


@pytest.mark.parametrize("read_pages", [1, 64, 1 << 18])
def test_a_pagemap_is_read_in_pieces(memory, pagemap, monkeypatch, read_pages):
    monkeypatch.setattr(residency, "_READ_PAGES", read_pages)
    found = residency._joined(residency._from_pagemap(pagemap, memory, PAGES * PAGE))
    assert ((found[:, :2] - memory) // PAGE).tolist() == RUNS


@pytest.mark.parametrize("regions", [1, 3, 8192])
def test_a_scan_is_taken_in_pieces(memory, pagemap, monkeypatch, regions):
    monkeypatch.setattr(residency, "_SCAN_REGIONS", regions)
    try:
        found = residency._joined(residency._scan(pagemap, memory, memory + PAGES * PAGE))
    except OSError as error:
        pytest.skip(f"this kernel has no PAGEMAP_SCAN: {error}")
    assert ((found[:, :2] - memory) // PAGE).tolist() == RUNS
    assert found[:, 2].tolist() == [0] * len(RUNS)


def test_a_process_that_has_ended_is_not_taken_for_absent_pages(memory):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    fd = os.open(f"/proc/{child.pid}/pagemap", os.O_RDONLY)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    with pytest.raises(ProcessError):
        residency._from_pagemap(fd, memory, PAGES * PAGE)
    os.close(fd)
