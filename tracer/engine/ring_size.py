"""How large a VM's rings have to be, from how fast this machine can discard."""

from __future__ import annotations

import functools
import mmap

import numpy as np

from tracer.cost.machine_code import SYSTEM_CALLS, MachineCode
from tracer.engine import decode, decode_calls
from tracer.errors import ProbeError
from tracer.record.capture import DRAIN_LONGEST_S, DRAIN_SHORTEST_S

_HEADER_BYTES = 8
_CALLS_WAIT_S = 0.02
"""With a record per page a ring fills fifty times as fast, so it is looked at more often."""
_SMALLEST_BYTES = 256 << 10
_LARGEST_BYTES = {"requests": 4 << 20, "discards": 4 << 20, "calls": 16 << 20}
"""Kernel memory for each ring of a VM, and resident in the recorder too. Who asks for every call
gets more than a busy host's longest delays need."""
_MARGIN = 4
_NR_MADVISE = 28
_PROBED_CALLS = 200
_UNKNOWN_NS = 100.0
"""Where nothing could be timed: as fast as the fastest machine that was."""


@functools.cache
def discard_ns() -> float:
    """Time one discard of one untouched page, the cheapest there is, in a loop of machine code.

    16 batches of 200 calls take less than a millisecond. The fastest batch counts: no VMM here
    discards faster, one page a call.

    Returns:
        Nanoseconds, of the first call in this process.
    """
    try:
        code = MachineCode({"calls": SYSTEM_CALLS})
    except ProbeError:
        return _UNKNOWN_NS
    memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page = int(np.frombuffer(memory, np.uint8).ctypes.data)
    arguments = (_NR_MADVISE, page, mmap.PAGESIZE, mmap.MADV_DONTNEED)
    try:
        return code.pass_ns("calls", _PROBED_CALLS, *arguments)
    finally:
        code.close()


def _page_bytes(detail: str) -> float:
    """Room that one page takes in the fuller ring: where no two calls can be merged, a record."""
    if detail == "requests":
        return (_HEADER_BYTES + decode.HOST_REQUEST.itemsize) / decode.PFNS
    record = decode_calls.HOST_CALL if detail == "calls" else decode.HOST_CALLS
    return _HEADER_BYTES + record.itemsize


def longest_wait_s(detail: str, size_bytes: int, page_ns: float | None = None) -> float:
    """How long the rings of a capture may go undrained: until one thread can have half filled one.

    Args:
        detail: requests, discards or calls.
        size_bytes: Of each ring.
        page_ns: What this machine takes to discard one page; measured where None.
    """
    longest_s = DRAIN_LONGEST_S if detail == "requests" else _CALLS_WAIT_S
    half_full_s = size_bytes / 2 / _page_bytes(detail) * (page_ns or discard_ns()) / 1e9
    return max(min(longest_s, half_full_s), DRAIN_SHORTEST_S)


def ring_bytes(detail: str, page_ns: float | None = None) -> int:
    """Choose the size of a VM's rings: room for what one thread can discard between two drains.

    Args:
        detail: requests, discards or calls.
        page_ns: What this machine takes to discard one page; measured where None.

    Returns:
        Bytes, a power of two between 256 KiB and 4 MiB, for calls 16 MiB.
    """
    longest_s = DRAIN_LONGEST_S if detail == "requests" else _CALLS_WAIT_S
    pages = longest_s * 1e9 / (page_ns or discard_ns())
    wanted = int(_MARGIN * pages * _page_bytes(detail))
    return min(max(1 << (wanted - 1).bit_length(), _SMALLEST_BYTES), _LARGEST_BYTES[detail])
