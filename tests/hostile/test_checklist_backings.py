"""Host pages, backings and calls that fail; entries of tests/hostile/test_checklist.py."""

import ctypes
import errno
import json
import mmap
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from replay.backings import BACKINGS, Advice
from replay.native.types import Memory
from replay.wire import Reject
from tests.hostile.machine import (
    FAR_PAGES,
    FAR_PFN,
    HIGH_PFN,
    Machine,
    block,
    found,
    le32,
    running,
    word,
    words,
)
from tests.memory.conftest import huge_page_pool, make_trace  # noqa: F401  (fixtures)
from tests.unit.command import AEROSTAT, run
from tracer.trace.manifest import Region
from tracer.trace.schema import PAGE_BYTES, Queue

HERE = Path(__file__).parent
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_libc = ctypes.CDLL(None, use_errno=True)


def partly_given_host_page(machine: Machine, pages: int) -> None:
    """All of a host page but its last page, and a report that begins one page late."""
    given = le32(*range(FAR_PFN, FAR_PFN + min(pages, 256) - 1))
    handled = machine.send(Queue.INFLATE, given)
    assert found(handled.runs) == []
    assert handled.rejected == {Reject.HOST_PAGE: min(pages, 256) - 1}
    handled = machine.send_blocks(Queue.REPORTING, block(FAR_PFN + 1, min(pages, FAR_PAGES) - 1))
    assert found(handled.runs) == []
    assert handled.rejected == {Reject.HOST_PAGE: min(pages, FAR_PAGES) - 1}


def whole_host_pages(backing: str, host_page_bytes: int) -> None:
    unit = host_page_bytes // PAGE_BYTES
    with running(backing=backing, host_page_bytes=host_page_bytes) as machine:
        partly_given_host_page(machine, unit)
        handled = machine.send_blocks(Queue.REPORTING, block(FAR_PFN, 2 * unit))
        assert found(handled.runs) == machine.pages((FAR_PFN, 2 * unit))
    with running("range_words", backing=backing, host_page_bytes=host_page_bytes) as machine:
        data = words(word(FAR_PFN + 1, 2 * unit))
        handled = machine.send(Queue.INFLATE, data)
        assert found(handled.runs) == machine.pages((FAR_PFN + unit, unit))
        assert handled.rejected == {Reject.HOST_PAGE: unit}


def test_backing_page_2_mib(huge_page_pool: int) -> None:  # noqa: F811
    """On real huge pages: what is not a whole one is never rounded up to its neighbour's memory."""
    assert huge_page_pool
    whole_host_pages("hugetlb", 2 * MIB)


def test_backing_page_1_gib() -> None:
    """No request of a balloon names 2**18 pages as PFNs, so nothing goes; a range of them does."""
    regions = (
        Region("low", 0, None, 0xA0 * PAGE_BYTES, "anon", PAGE_BYTES),
        Region("ram", GIB, None, GIB, "anon", GIB),
    )
    first, pages = GIB // PAGE_BYTES, GIB // PAGE_BYTES
    with running(host_page_bytes=GIB, where=regions, populated_pages=4096) as machine:
        handled = machine.send(Queue.INFLATE, le32(*range(first, first + 256)))
        assert handled.rejected == {Reject.HOST_PAGE: 256}
        late = machine.send_blocks(Queue.REPORTING, block(first + 1, pages - 1))
        assert late.rejected == {Reject.HOST_PAGE: pages - 1}
        assert machine.outcome is None
        handled = machine.send_blocks(Queue.REPORTING, block(first, pages))
        assert found(handled.runs) == machine.pages((first, pages))


def test_backing_page_64_kib() -> None:
    whole_host_pages("anon", 64 * KIB)
    with running(host_page_bytes=64 * KIB) as machine:
        handled = machine.send(Queue.INFLATE, le32(*range(FAR_PFN + 15, FAR_PFN - 1, -1)))
        assert found(handled.runs) == machine.pages((FAR_PFN, 16))


def failing_with(machine: Machine, error: int) -> None:
    """The last request's one call failed: it was counted, with its errno."""
    outcome = machine.outcome
    assert outcome is not None
    assert (outcome.calls, outcome.failures, outcome.first_errno) == (1, 1, error)


def test_read_only_backing() -> None:
    """The VMM's descriptor of the file cannot be written: QEMU 10.0 refuses, older ones fail."""
    with running(backing="memfd") as machine:
        mapping = machine.memory.mapping
        reader = os.open(f"/proc/self/fd/{mapping.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            machine.memory.mapping = replace(mapping, fd=reader)
            machine.send(Queue.INFLATE, le32(HIGH_PFN))
            failing_with(machine, errno.EBADF)
        finally:
            machine.memory.mapping = mapping
            os.close(reader)
        machine.send(Queue.INFLATE, le32(FAR_PFN))
        assert machine.outcome is not None
        assert not machine.outcome.failures


def test_private_file_backing() -> None:
    """The guest's copies go, the file stays as it was; a hole in the file is not even tried."""
    with running(backing="file-private") as machine:
        assert machine.device.context.discard == Advice.DONTNEED
        before = os.fstat(machine.memory.mapping.fd).st_blocks
        handled = machine.send(Queue.INFLATE, le32(HIGH_PFN, HIGH_PFN + 1))
        assert found(handled.runs) == machine.pages((HIGH_PFN, 2))
        assert os.fstat(machine.memory.mapping.fd).st_blocks == before
    assert "private copies" in str(BACKINGS["file-private"].why_not(Advice.PUNCH_HOLE))


def address(mapping: Memory, page: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(mapping.base + page * PAGE_BYTES)


def test_enomem_from_the_syscall() -> None:
    """A page in the middle of a report is not mapped: the kernel does the rest, and says so."""
    with running() as machine:
        ((first, _),) = machine.pages((FAR_PFN, 16))
        hole = address(machine.memory.mapping, first + 8)
        assert _libc.munmap(hole, ctypes.c_size_t(PAGE_BYTES)) == 0
        machine.send_blocks(Queue.REPORTING, block(FAR_PFN, 16))
        failing_with(machine, errno.ENOMEM)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED
        _libc.mmap(hole, PAGE_BYTES, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)


def test_einval_from_the_syscall() -> None:
    """Locked memory is not given back."""
    with running() as machine:
        ((first, _),) = machine.pages((FAR_PFN, 16))
        locked = address(machine.memory.mapping, first)
        assert _libc.mlock(locked, ctypes.c_size_t(PAGE_BYTES)) == 0
        machine.send_blocks(Queue.REPORTING, block(FAR_PFN, 16))
        failing_with(machine, errno.EINVAL)
        assert _libc.munlock(locked, ctypes.c_size_t(PAGE_BYTES)) == 0


@pytest.mark.parametrize(("backing", "calls"), [("anon", 1), ("memfd", 2), ("file-private", 2)])
def test_ebusy_from_the_syscall(backing: str, calls: int, make_trace) -> None:  # noqa: F811
    """Through the real command, its calls refused by a filter: counted in results and said."""
    path = make_trace()
    options = ("-s", "qemu", "--runs", "1", "--warmup", "0", "--backing", backing, "--json")
    refusing = [sys.executable, str(HERE / "refuse_calls.py"), "EBUSY", "discards"]
    done = run(["replay", path, *options], command=[*refusing, *AEROSTAT])
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (qemu,) = [each for each in document["strategies"] if each["name"] == "qemu"]
    (measured,) = qemu["runs"]
    assert measured["first_errno"] == errno.EBUSY
    assert measured["failures"] == calls * 2048
    assert any(f"{calls * 2048} of" in line and "EBUSY" in line for line in document["warnings"])
